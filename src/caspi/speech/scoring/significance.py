"""Is one system better than the other? Paired statistics over the errors of both on the same utterances.

The difference is Round 2 minus Round 1, so below 0 is an improvement. Utterances of one recording or speaker are not
independent, so the unit that is redrawn is the block (Bisani & Ney 2004, with blocks for utterances).
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import jiwer
import numpy as np
from scipy.special import ndtr, ndtri, stdtrit

Verdict = Literal["better", "worse", "cannot tell"]
MAX_CELLS_AT_ONCE = 4_000_000
"""Draws are made in portions of about this many counts (32 MB)."""


class Blocks(NamedTuple):
    """Sums per block of one test set; int64 [num_blocks] each."""

    errors_1: np.ndarray
    errors_2: np.ndarray
    num_reference: np.ndarray

    @property
    def difference(self) -> float:
        """Pooled WER of system 2 minus that of system 1."""
        return float((self.errors_2.sum() - self.errors_1.sum()) / self.num_reference.sum())


class Interval(NamedTuple):
    low: float
    high: float


class Bootstrap(NamedTuple):
    """Resampled sums; float64 [num_draws, num_strata] each."""

    errors_1: np.ndarray
    errors_2: np.ndarray
    num_reference: np.ndarray
    num_blocks: tuple[int, ...]


class SegmentTest(NamedTuple):
    """Matched-pairs sentence-segment word-error test; positive z: the second system makes fewer errors."""

    num_segments: int
    mean_difference: float
    standard_deviation: float
    z: float
    p_value: float


def sum_by_block(
    errors_1: Sequence[int], errors_2: Sequence[int], num_reference: Sequence[int], groups: Sequence[str]
) -> Blocks:
    """Aggregate utterances by group, in the order in which groups first appear."""
    index_of = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    indices = [index_of[group] for group in groups]
    sums = [np.zeros(len(index_of), dtype=np.int64) for _ in range(3)]
    for total, values in zip(sums, (errors_1, errors_2, num_reference), strict=True):
        np.add.at(total, indices, values)
    return Blocks(*sums)


def bootstrap(strata: Sequence[Blocks], num_draws: int, rng: np.random.Generator) -> Bootstrap:
    """Redraw the blocks of each stratum (test set) with replacement, both systems together."""
    sums = np.empty((3, num_draws, len(strata)))
    for column, stratum in enumerate(strata):
        num_blocks = len(stratum.num_reference)
        values = np.stack(stratum).T.astype(np.float64)
        portion = max(1, MAX_CELLS_AT_ONCE // num_blocks)
        for start in range(0, num_draws, portion):
            stop = min(start + portion, num_draws)
            times_drawn = rng.multinomial(num_blocks, np.full(num_blocks, 1 / num_blocks), size=stop - start)
            sums[:, start:stop, column] = (times_drawn @ values).T
    return Bootstrap(sums[0], sums[1], sums[2], tuple(len(stratum.num_reference) for stratum in strata))


def interval(draws: np.ndarray, effective_blocks: float, confidence_fraction: float) -> Interval | None:
    """Expanded percentile interval of a resampled statistic [num_draws].

    The plain percentile interval is too narrow with few blocks; its tails are moved out to those of Student's t, as in
    Hesterberg 2015 (The American Statistician 69:371). None where the spread is not known: with fewer than two blocks,
    or when all draws are alike, since blocks that happen to agree do not show that all do.
    """
    if effective_blocks < 2 or np.ptp(draws) == 0:
        return None
    tail = (1 - confidence_fraction) / 2
    degrees = effective_blocks - 1
    tail = float(ndtr(np.sqrt(effective_blocks / degrees) * stdtrit(degrees, tail)))
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Interval(float(low), float(high))


def effective_num_blocks(num_blocks: Sequence[int], variances: Sequence[float]) -> float:
    """Blocks behind a sum over strata, by Welch and Satterthwaite: few and noisy blocks count most.

    Args:
        num_blocks: blocks of each stratum.
        variances: the stratum's contribution to the variance of the sum.
    """
    if min(num_blocks) < 2:
        return 1.0
    total = sum(variances)
    if total == 0:
        return float(sum(num_blocks) - len(num_blocks) + 1)
    parts = (variance**2 / (blocks - 1) for variance, blocks in zip(variances, num_blocks, strict=True))
    return float(1 + total**2 / sum(parts))


def verdict(difference: Interval | None) -> Verdict:
    """What an interval of the difference allows one to say."""
    if difference is None or difference.low <= 0 <= difference.high:
        return "cannot tell"
    return "better" if difference.high < 0 else "worse"


def permutation_p_value(
    strata: Sequence[Blocks], weights: Sequence[float], num_draws: int, rng: np.random.Generator
) -> float:
    """Two-sided p: if the systems were alike, either could have made the errors of either in each block.

    Random sign flips of the weighted sum of error differences, one weight per stratum; the observed labelling counts
    as one of them, so p is never 0.
    """
    pairs = zip(strata, weights, strict=True)
    gaps = np.concatenate([(stratum.errors_2 - stratum.errors_1) * float(weight) for stratum, weight in pairs])
    gaps = gaps[gaps != 0]
    observed = abs(gaps.sum()) * (1 - 1e-9)
    portion = max(1, MAX_CELLS_AT_ONCE // max(1, len(gaps)))
    num_extreme = 0
    for start in range(0, num_draws, portion):
        signs = rng.integers(0, 2, size=(min(portion, num_draws - start), len(gaps))) * 2 - 1
        num_extreme += int((np.abs(signs @ gaps) >= observed).sum())
    return (1 + num_extreme) / (1 + num_draws)


def num_utterances_needed(
    num_utterances: int, difference: float, standard_error: float, confidence_fraction: float, power_fraction: float
) -> int | None:
    """Utterances with which a true difference of this size would show with this power, all else equal.

    None without a difference: no number of utterances is enough.
    """
    if difference == 0:
        return None
    wanted = float(ndtri(1 - (1 - confidence_fraction) / 2) + ndtri(power_fraction))
    return int(np.ceil(num_utterances * (wanted * standard_error / difference) ** 2))


def matched_pairs_test(
    references: Sequence[str], hypotheses_1: Sequence[str], hypotheses_2: Sequence[str], num_boundary_words: int = 2
) -> SegmentTest | None:
    """MAPSSWE of Gillick & Cox 1989 as NIST's sc_stats runs it, on normalised texts.

    Stretches with errors, separated by words that both systems got right, are compared. None when the systems never
    differ in their number of errors, or in a single segment only.
    """
    gaps: list[int] = []
    for reference, *hypotheses in zip(references, hypotheses_1, hypotheses_2, strict=True):
        slots_1, slots_2 = (slot_errors(reference, hypothesis) for hypothesis in hypotheses)
        gaps += segment_gaps(slots_1, slots_2, num_boundary_words)
    if len(gaps) < 2 or np.std(gaps) == 0:
        return None
    mean, deviation = float(np.mean(gaps)), float(np.std(gaps, ddof=1))
    z = mean / (deviation / np.sqrt(len(gaps)))
    return SegmentTest(len(gaps), mean, deviation, float(z), float(2 * ndtr(-abs(z))))


def slot_errors(reference: str, hypothesis: str) -> list[int]:
    """Errors in the slots of a reference of n words: gap, word, gap, ... word, gap (2 n + 1 of them)."""
    num_words = len(reference.split())
    slots = [0] * (2 * num_words + 1)
    if not num_words or not hypothesis.split():
        return [len(hypothesis.split())] if not num_words else [0, *[1, 0] * num_words]
    for chunk in jiwer.process_words(reference, hypothesis).alignments[0]:
        if chunk.type == "insert":
            slots[2 * chunk.ref_start_idx] += chunk.hyp_end_idx - chunk.hyp_start_idx
        elif chunk.type != "equal":
            for word in range(chunk.ref_start_idx, chunk.ref_end_idx):
                slots[2 * word + 1] += 1
    return slots


def segment_gaps(slots_1: list[int], slots_2: list[int], num_boundary_words: int) -> list[int]:
    """Errors of system 1 minus those of system 2 in each segment of one utterance."""
    gaps: list[int] = []
    gap, num_right, is_open = 0, 0, False
    for position, (errors_1, errors_2) in enumerate(zip(slots_1, slots_2, strict=True)):
        if errors_1 or errors_2:
            gap, num_right, is_open = gap + errors_1 - errors_2, 0, True
        elif position % 2:
            num_right += 1
            if is_open and num_right == num_boundary_words:
                gaps.append(gap)
                gap, is_open = 0, False
    return [*gaps, gap] if is_open else gaps
