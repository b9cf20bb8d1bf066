"""The plan: which utterances every optimizer step takes.

A step's utterances are a pure function of the list of utterances, the seed and the epoch. Rank, world size and
micro-batch size only say how they are dealt out, so that a run continues identically after a kill, and equally (to
rounding) with another number of processes. There is no position to save: the step number is the position.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from caspi.model.packed.batch import balance


def generator(seed: int, purpose: str, identity: object) -> np.random.Generator:
    """A random generator of its own for one purpose and one thing, for example one epoch."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{identity}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))


class Pool(NamedTuple):
    """One source of a mixture."""

    name: str
    indices: np.ndarray
    """Of its utterances."""
    num_per_epoch: int


def make_pools(sources: Sequence[str], weights: Mapping[str, float]) -> tuple[Pool, ...]:
    """One pool per source; they share an epoch of `len(sources)` utterances in proportion to the weights.

    Raises:
        ValueError: the weights are not for exactly the sources that there are.
    """
    if set(weights) != set(sources):
        differing = ", ".join(sorted(set(weights) ^ set(sources)))
        raise ValueError(
            f"train.dataset_weights must name every source of the manifest and no other: look at {differing}"
        )
    exact = {name: len(sources) * weight / sum(weights.values()) for name, weight in sorted(weights.items())}
    counts = {name: int(number) for name, number in exact.items()}
    by_remainder = sorted(exact, key=lambda name: counts[name] - exact[name])
    for name in by_remainder[: len(sources) - sum(counts.values())]:
        counts[name] += 1
    names = np.asarray(sources)
    return tuple(Pool(name, np.flatnonzero(names == name), counts[name]) for name in counts)


class Plan:
    """Utterances of every optimizer step: each epoch takes every utterance once, in an order of its own.

    With pools, an epoch takes `num_per_epoch` of each instead, going through a pool again and again in new orders, so
    that none of its utterances is taken twice before all are taken once. The last step of an epoch takes what is left
    and may be smaller; the loss is normalised by target tokens, so no utterance weighs more for it.
    """

    def __init__(
        self,
        num_utterances: int,
        utterances_per_step: int,
        seed: int,
        pools: Sequence[Pool] = (),
        lengths: Sequence[float] | None = None,
    ) -> None:
        """`lengths` are what the utterances cost, in any unit; without, they cost the same."""
        if num_utterances < 1 or utterances_per_step < 1:
            raise ValueError(f"cannot plan {num_utterances} utterances in steps of {utterances_per_step}")
        self.num_utterances = num_utterances
        self.utterances_per_step = utterances_per_step
        self.seed = seed
        self.pools = pools
        self.lengths = lengths
        self.steps_per_epoch = -(-num_utterances // utterances_per_step)
        self.order = lru_cache(maxsize=2)(self._order)

    def _order(self, epoch_index: int) -> np.ndarray:
        rng = generator(self.seed, "epoch", epoch_index)
        if not self.pools:
            return rng.permutation(self.num_utterances)
        return rng.permutation(np.concatenate([self.stretch(pool, epoch_index) for pool in self.pools]))

    def stretch(self, pool: Pool, epoch_index: int) -> np.ndarray:
        """The part of a pool's endless sequence of permutations that an epoch takes."""
        size, first = len(pool.indices), epoch_index * pool.num_per_epoch
        rounds = range(first // size, -(-(first + pool.num_per_epoch) // size))
        orders = [generator(self.seed, f"pool {pool.name}", number).permutation(pool.indices) for number in rounds]
        start = first - rounds.start * size
        return np.concatenate([*orders, pool.indices[:0]])[start : start + pool.num_per_epoch]

    def step(self, epoch_index: int, step_index: int) -> list[int]:
        """Utterance indices of one optimizer step; both indices count from 0, the step within its epoch."""
        if not 0 <= step_index < self.steps_per_epoch:
            raise ValueError(f"step {step_index} is outside an epoch of {self.steps_per_epoch} steps")
        first = step_index * self.utterances_per_step
        return [int(index) for index in self.order(epoch_index)[first : first + self.utterances_per_step]]

    def share(self, epoch_index: int, step_index: int, rank: int, world_size: int) -> list[int]:
        """The part of a step that one process computes, in the plan's order.

        Shares are of about equal cost. Empty where a short step has fewer utterances than ranks.
        """
        indices = self.step(epoch_index, step_index)
        costs = [self.lengths[index] for index in indices] if self.lengths else [1.0] * len(indices)
        return [indices[place] for place in sorted(balance(costs, world_size)[rank])]


class StepSampler(Sampler[list[tuple[int, int]]]):
    """Batch sampler whose one batch is a process's share of one optimizer step, as (epoch index, utterance index)."""

    def __init__(self, plan: Plan, rank: int, world_size: int) -> None:
        self.plan = plan
        self.rank = rank
        self.world_size = world_size
        self.epoch_index = 0

    def set_epoch(self, epoch_index: int) -> None:
        self.epoch_index = epoch_index

    def __len__(self) -> int:
        return self.plan.steps_per_epoch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step_index in range(self.plan.steps_per_epoch):
            share = self.plan.share(self.epoch_index, step_index, self.rank, self.world_size)
            yield [(self.epoch_index, index) for index in share]
