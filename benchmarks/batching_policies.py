"""C1: padding, imbalance of ranks and number of micro-batches of batching policies, counted over the whole corpus.

    python -m benchmarks.batching_policies

Time is taken as proportional to the positions of the slower rank. Baselines are the samplers of transformers.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers.trainer_pt_utils import BatchRebalanceSampler, LengthGroupedSampler

from benchmarks.measure import markdown_table, write_result
from benchmarks.workload import CORPUS_SIZE, clip_seconds, prompt_tokens
from caspi.model.training.sampler import Plan

NUM_RANKS = 2
CLIPS_PER_STEP = 64
CLIPS_PER_RANK = CLIPS_PER_STEP // NUM_RANKS
MEAN_SECONDS = (5.7, 8.5)
RESULT = Path("docs/results/benchmarks/batching_policies.json")

MicroBatch = list[int]
"""Positions of each clip."""
Step = list[list[MicroBatch]]
"""By rank."""


class Cost(NamedTuple):
    padding_fraction: float
    time_over_ideal: float
    micro_batches_per_rank: float
    largest_micro_batch: int
    """Positions, padding included."""


def cost_of(steps: Sequence[Step], is_padded: bool) -> Cost:
    real = paid = slowest = num_micro_batches = largest = 0
    for step in steps:
        by_rank = []
        for rank in step:
            sizes = [len(batch) * max(batch) if is_padded else sum(batch) for batch in rank]
            by_rank.append(sum(sizes))
            largest = max(largest, *sizes)
            num_micro_batches += len(sizes)
            real += sum(map(sum, rank))
        paid += sum(by_rank)
        slowest += max(by_rank)
    per_rank = num_micro_batches / len(steps) / NUM_RANKS
    return Cost(1 - real / paid, slowest / (real / NUM_RANKS), per_rank, largest)


def dealt(steps: np.ndarray, lengths: np.ndarray, micro_size: int) -> list[Step]:
    """Each step's clips dealt to the ranks micro-batch by micro-batch, as the Trainer deals them."""
    grouped = steps.reshape(len(steps), -1, NUM_RANKS, micro_size)
    return [[[lengths[batch].tolist() for batch in step[:, rank]] for rank in range(NUM_RANKS)] for step in grouped]


def rebalanced(lengths: np.ndarray, num_micro: int) -> list[Step]:
    options: dict[str, Any] = {"effective_batch_size": CLIPS_PER_STEP, "dp_size": NUM_RANKS, "grad_accum": num_micro}
    ranks = [
        list(BatchRebalanceSampler(lengths=lengths.tolist(), rank=rank, seed=1, **options)) for rank in range(NUM_RANKS)
    ]
    num_steps = min(map(len, ranks)) // num_micro
    return [
        [[lengths[batch].tolist() for batch in rank[step * num_micro : (step + 1) * num_micro]] for rank in ranks]
        for step in range(num_steps)
    ]


def ours(lengths: np.ndarray) -> list[Step]:
    """Our plan of one epoch: random steps, each dealt to the ranks by length, one packed sequence a rank."""
    plan = Plan(len(lengths), CLIPS_PER_STEP, seed=1, lengths=lengths.tolist())
    steps = range(len(lengths) // CLIPS_PER_STEP)
    return [[[lengths[plan.share(0, step, rank, NUM_RANKS)].tolist()] for rank in range(NUM_RANKS)] for step in steps]


def policies(lengths: np.ndarray) -> Iterator[tuple[str, Cost]]:
    whole = len(lengths) // CLIPS_PER_STEP * CLIPS_PER_STEP
    random = np.random.default_rng(0).permutation(len(lengths))[:whole].reshape(-1, CLIPS_PER_STEP)
    generator = torch.Generator().manual_seed(0)
    sampler = LengthGroupedSampler(batch_size=CLIPS_PER_STEP, lengths=lengths.tolist(), generator=generator)
    grouped = np.array(list(sampler))[:whole].reshape(-1, CLIPS_PER_STEP)
    yield "random 2 x 16 (guide, official script)", cost_of(dealt(random, lengths, 2), is_padded=True)
    yield "random 32 x 1", cost_of(dealt(random, lengths, CLIPS_PER_RANK), is_padded=True)
    yield "group_by_length 2 x 16", cost_of(dealt(grouped, lengths, 2), is_padded=True)
    for size in (2, 8, 32):
        steps = rebalanced(lengths, CLIPS_PER_RANK // size)
        yield f"batch_rebalance {size} x {CLIPS_PER_RANK // size}", cost_of(steps, is_padded=True)
    unbalanced = dealt(random, lengths, CLIPS_PER_RANK)
    yield "packed, ranks at random", cost_of(unbalanced, is_padded=False)
    yield "packed, ranks balanced (ours)", cost_of(ours(lengths), is_padded=False)


def planning_seconds(lengths: np.ndarray) -> float:
    """To plan one epoch for one rank, from nothing."""
    start = time.perf_counter()
    plan = Plan(len(lengths), CLIPS_PER_STEP, seed=2, lengths=lengths.tolist())
    for step in range(plan.steps_per_epoch):
        plan.share(0, step, 0, NUM_RANKS)
    return time.perf_counter() - start


def run() -> dict[str, Any]:
    result: dict[str, Any] = {}
    for mean_seconds in MEAN_SECONDS:
        seconds = clip_seconds(CORPUS_SIZE, mean_seconds, seed=0)
        lengths = prompt_tokens(seconds)
        found = dict(policies(lengths))
        rows = [
            (name, f"{cost.padding_fraction:.1%}", f"{cost.time_over_ideal:.3f}", f"{cost.micro_batches_per_rank:.1f}",
             f"{cost.largest_micro_batch:,}")
            for name, cost in found.items()
        ]  # fmt: skip
        planning = planning_seconds(lengths)
        print(f"\n{CORPUS_SIZE:,} clips, mean {seconds.mean():.1f} s; our plan of an epoch took {planning:.2f} s\n")
        print(markdown_table(("policy", "padding", "time / ideal", "micro-batches", "largest micro-batch"), rows))
        policies_found = {name: cost._asdict() for name, cost in found.items()}
        result[f"mean {mean_seconds} s"] = {"planning_seconds": planning, "policies": policies_found}
    return result


if __name__ == "__main__":
    write_result(RESULT, run())
