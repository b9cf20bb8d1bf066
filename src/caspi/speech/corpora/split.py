"""Which utterances train, which evaluate, and which do neither."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from caspi.records import Utterance

EVALUATION_SPLITS = frozenset({"eval", "evaluation", "validation", "valid", "dev"})
TRAINING_SPLITS = frozenset({"", "train"})
ROUNDING = 1e-6
"""0.07 of 100 is 7, also in floating point."""


class LeftOut(NamedTuple):
    """An utterance that is not used, and why."""

    id: str
    reason: str
    """TOO_SHORT, TOO_LONG, NEEDS_RESEGMENTATION or OTHER_SPLIT."""


class Split(NamedTuple):
    training: list[Utterance]
    evaluation: list[Utterance]
    left_out: list[LeftOut]


def split_utterances(
    utterances: Sequence[Utterance],
    *,
    min_duration_seconds: float,
    max_duration_seconds: float,
    evaluation_fraction: float,
    seed: int,
) -> Split:
    """Separate training from evaluation; no recording or speaker is on both sides.

    Utterances marked in the manifest's `split` column are taken at its word. Without any that is marked for evaluation,
    whole groups (`group_id`, else the utterance itself) are held out, chosen by hash, so that adding data does not
    reshuffle them, until they hold at least `evaluation_fraction` of the utterances.

    Raises:
        ValueError: one side is empty.
    """
    left_out = [
        LeftOut(item.id, reason)
        for item in utterances
        if (reason := reason_to_leave_out(item, min_duration_seconds, max_duration_seconds))
    ]
    unusable = {item.id for item in left_out}
    usable = [item for item in utterances if item.id not in unusable]
    evaluation = [item for item in usable if split_name(item) in EVALUATION_SPLITS]
    training = [item for item in usable if split_name(item) in TRAINING_SPLITS]
    if not evaluation:
        training, evaluation = hold_out(training, evaluation_fraction, seed)
    if not training or not evaluation:
        raise ValueError(
            f"{len(training)} utterances to train on, {len(evaluation)} to evaluate with, {len(left_out)} left out: "
            "both need some; mark utterances with a split column or raise train.eval_fraction"
        )
    return Split(training, evaluation, left_out)


def reason_to_leave_out(item: Utterance, min_duration_seconds: float, max_duration_seconds: float) -> str | None:
    if item.needs_resegmentation:
        return "NEEDS_RESEGMENTATION"
    if item.duration > max_duration_seconds:
        return "TOO_LONG"
    if item.duration < min_duration_seconds:
        return "TOO_SHORT"
    if split_name(item) not in TRAINING_SPLITS | EVALUATION_SPLITS:
        return "OTHER_SPLIT"
    return None


def split_name(item: Utterance) -> str:
    return (item.split or "").strip().lower()


def hold_out(utterances: Sequence[Utterance], fraction: float, seed: int) -> tuple[list[Utterance], list[Utterance]]:
    """Training and held-out utterances, both in their order; the last group is never held out."""
    groups = sorted({group_of(item) for item in utterances}, key=lambda group: hashed(seed, "held-out group", group))
    sizes = dict.fromkeys(groups, 0)
    for item in utterances:
        sizes[group_of(item)] += 1
    chosen: set[str] = set()
    for group in groups[:-1]:
        if sum(sizes[name] for name in chosen) >= fraction * len(utterances) - ROUNDING:
            break
        chosen.add(group)
    training = [item for item in utterances if group_of(item) not in chosen]
    return training, [item for item in utterances if group_of(item) in chosen]


def group_of(item: Utterance) -> str:
    return item.group_id or f"utterance {item.id}"


def fixed_subset(utterances: Sequence[Utterance], size: int, seed: int) -> list[int]:
    """Indices of at most `size` utterances, chosen by hash of their ids: a larger subset contains a smaller one."""
    by_hash = sorted(range(len(utterances)), key=lambda index: hashed(seed, "transcribed", utterances[index].id))
    return sorted(by_hash[:size])


def hashed(seed: int, purpose: str, identity: str) -> bytes:
    return hashlib.sha256(f"{seed}/{purpose}/{identity}".encode()).digest()
