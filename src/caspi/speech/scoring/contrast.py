"""Two rounds of predictions of the same clips, compared: per test set and bucket, on average, and pooled."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from caspi.config import Compare, Evaluate
from caspi.records import ComparedSet, Prediction
from caspi.speech.scoring.score import pool
from caspi.speech.scoring.scoreboard import BUCKETS, Bucket, ScoredPrediction, by_test_set, in_bucket, score_prediction
from caspi.speech.scoring.significance import (
    Blocks,
    Bootstrap,
    Interval,
    bootstrap,
    effective_num_blocks,
    interval,
    matched_pairs_test,
    num_utterances_needed,
    permutation_p_value,
    sum_by_block,
    verdict,
)

Weighting = Literal["mean_wer", "pooled_wer"]
AVERAGE: Weighting = "mean_wer"
POOLED: Weighting = "pooled_wer"
"""Also the names of the rows over all test sets: the guide's unweighted average, and all errors over all words."""


class Pair(NamedTuple):
    """One test set, or a bucket of it, under both rounds: the same utterances, none with an empty reference."""

    test_set: str
    bucket: Bucket
    round1: list[ScoredPrediction]
    round2: list[ScoredPrediction]


class Spread(NamedTuple):
    difference: float
    """WER of Round 2 minus Round 1."""
    of_difference: Interval | None
    of_round1: Interval | None
    of_round2: Interval | None
    standard_error: float
    p_value: float


def compare_rounds(
    round1: Sequence[Prediction], round2: Sequence[Prediction], section: Compare, buckets: Evaluate
) -> list[ComparedSet]:
    """Every test set, whole and by bucket, then the average and the pool of the whole sets.

    Both rounds hold the same clips in the same order. Raises ValueError when no reference has a word.
    """
    scored = [by_test_set(score_prediction(row, section.profile) for row in rows) for rows in (round1, round2)]
    rows, whole = [], []
    for test_set in scored[0]:
        for bucket in BUCKETS:
            pair = pair_of(test_set, bucket, scored[0], scored[1], buckets)
            if pair.round1:
                rows.append(compare_pairs([pair], test_set, bucket, POOLED, section))
            if pair.round1 and bucket == "all":
                whole.append(pair)
    if not whole:
        raise ValueError("nothing to compare: no reference has a word under the scoring profile")
    return [*rows, *(compare_pairs(whole, name, "all", name, section) for name in (AVERAGE, POOLED))]


def pair_of(
    test_set: str,
    bucket: Bucket,
    round1: Mapping[str, list[ScoredPrediction]],
    round2: Mapping[str, list[ScoredPrediction]],
    buckets: Evaluate,
) -> Pair:
    sides = [
        [one for one in in_bucket(side[test_set], bucket, buckets) if one.words.num_reference]
        for side in (round1, round2)
    ]
    return Pair(test_set, bucket, sides[0], sides[1])


def compare_pairs(
    pairs: Sequence[Pair], name: str, bucket: Bucket, weighting: Weighting, section: Compare
) -> ComparedSet:
    """One row: the pairs are independent strata of it."""
    blocking = {block_kind(pair) for pair in pairs}
    strata = [blocks_of(pair) for pair in pairs]
    spread = spread_of(strata, weighting, section, generator(section.seed, name, bucket))
    round1 = [one for pair in pairs for one in pair.round1]
    round2 = [one for pair in pairs for one in pair.round2]
    segments = matched_pairs_test(
        [one.reference for one in round1], [one.hypothesis for one in round1], [one.hypothesis for one in round2]
    )
    enough = len(round1) >= section.min_utterances
    decision = verdict(spread.of_difference) if enough else "cannot tell"
    return ComparedSet(
        test_set=name,
        bucket=bucket,
        num_utterances=len(round1),
        num_words=sum(one.words.num_reference for one in round1),
        blocks="group" if blocking == {"group"} else "utterance",
        num_blocks=sum(len(stratum.num_reference) for stratum in strata),
        round1_wer=rate([pair.round1 for pair in pairs], "words", weighting),
        round2_wer=rate([pair.round2 for pair in pairs], "words", weighting),
        round1_cer=rate([pair.round1 for pair in pairs], "characters", weighting),
        round2_cer=rate([pair.round2 for pair in pairs], "characters", weighting),
        difference=spread.difference,
        low=spread.of_difference.low if spread.of_difference else None,
        high=spread.of_difference.high if spread.of_difference else None,
        round1_low=spread.of_round1.low if spread.of_round1 else None,
        round1_high=spread.of_round1.high if spread.of_round1 else None,
        round2_low=spread.of_round2.low if spread.of_round2 else None,
        round2_high=spread.of_round2.high if spread.of_round2 else None,
        p_value=spread.p_value,
        mapsswe_p_value=segments.p_value if segments else None,
        verdict=decision,
        num_utterances_needed=needed(len(round1), spread, section) if decision == "cannot tell" else None,
        note=note_of(enough, spread, pairs, section),
    )


def generator(seed: int, name: str, bucket: str) -> np.random.Generator:
    """A stream of its own for each row, so that a row does not depend on which others there are."""
    return np.random.default_rng(list(hashlib.sha256(f"{seed}\0compare\0{name}\0{bucket}".encode()).digest()))


def block_labels(rows: Sequence[Prediction]) -> tuple[Literal["group", "utterance"], list[str]]:
    """What is redrawn: groups if there are at least two; with one, only its utterances are left to redraw."""
    groups = {row.group_id or row.id for row in rows}
    if len(groups) < 2 or not any(row.group_id for row in rows):
        return "utterance", [f"utterance {row.test_set} {row.id}" for row in rows]
    return "group", [f"group {row.group_id}" if row.group_id else f"utterance {row.test_set} {row.id}" for row in rows]


def block_kind(pair: Pair) -> Literal["group", "utterance"]:
    return block_labels([one.prediction for one in pair.round1])[0]


def blocks_of(pair: Pair) -> Blocks:
    return sum_by_block(
        [one.words.errors for one in pair.round1],
        [one.words.errors for one in pair.round2],
        [one.words.num_reference for one in pair.round1],
        block_labels([one.prediction for one in pair.round1])[1],
    )


def spread_of(strata: Sequence[Blocks], weighting: Weighting, section: Compare, rng: np.random.Generator) -> Spread:
    draws = bootstrap(strata, section.num_bootstrap_draws, rng)
    gaps = statistic(draws.errors_2 - draws.errors_1, draws, weighting)
    sizes = np.array([stratum.num_reference.sum() for stratum in strata], dtype=np.float64)
    weights = 1 / sizes.sum() * np.ones(len(sizes)) if weighting == POOLED else 1 / sizes / len(sizes)

    def interval_of(errors: np.ndarray) -> Interval | None:
        variances = (errors * weights).var(axis=0)
        effective = effective_num_blocks(draws.num_blocks, variances.tolist())
        return interval(statistic(errors, draws, weighting), effective, section.confidence_fraction)

    return Spread(
        difference=float(sum(w * (s.errors_2.sum() - s.errors_1.sum()) for w, s in zip(weights, strata, strict=True))),
        of_difference=interval_of(draws.errors_2 - draws.errors_1),
        of_round1=interval_of(draws.errors_1),
        of_round2=interval_of(draws.errors_2),
        standard_error=float(gaps.std()),
        p_value=permutation_p_value(strata, weights.tolist(), section.num_permutations, rng),
    )


def statistic(errors: np.ndarray, draws: Bootstrap, weighting: Weighting) -> np.ndarray:
    """Resampled rate [num_draws] of errors [num_draws, num_strata]."""
    if weighting == AVERAGE:
        return np.asarray((errors / draws.num_reference).mean(axis=1))
    return np.asarray(errors.sum(axis=1) / draws.num_reference.sum(axis=1))


def rate(
    sides: Sequence[Sequence[ScoredPrediction]], unit: Literal["words", "characters"], weighting: Weighting
) -> float:
    pooled = [pool(getattr(one, unit) for one in side) for side in sides]
    return sum(one.rate for one in pooled) / len(pooled) if weighting == AVERAGE else pool(pooled).rate


def needed(num_utterances: int, spread: Spread, section: Compare) -> int | None:
    number = num_utterances_needed(
        num_utterances, spread.difference, spread.standard_error, section.confidence_fraction, section.power_fraction
    )
    return None if number is None else max(number, section.min_utterances)


def note_of(enough: bool, spread: Spread, pairs: Sequence[Pair], section: Compare) -> str:
    notes = [] if enough else [f"fewer than {section.min_utterances} utterances"]
    if spread.of_difference is None:
        notes.append("no interval: a single utterance in a test set, or no difference in any block")
    alone = [
        pair.test_set
        for pair in pairs
        if block_kind(pair) == "utterance" and any(one.prediction.group_id for one in pair.round1)
    ]
    if alone:
        notes.append(f"one group only ({', '.join(alone)}): the interval holds for that recording or speaker")
    return "; ".join(notes)
