"""What the raw time distributions of a forced aligner say about its repaired times (AUDIT section 2).

The official decode makes any output look orderly: outliers are moved, gaps are interpolated. These measurements look at
what was there before. None of them tells alone whether the audio was used; the audit's wrong transcripts do.

Shapes: S slots (two per word: its start and its end), C classes of the head, K classes inside the audio.
"""

from bisect import bisect_right
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, log_softmax, logsumexp

from caspi.speech.seeds import seeded_generator

BOUNDARY_RADIUS_BINS = 2
MONOTONE_EPSILON = 0.02
"""Share of uniform noise mixed into each slot, so that one outlier does not forbid every ordered path."""
NUM_CHANCE_DRAWS = 64
MIN_AGREEMENT_WORDS = 3
"""With fewer words random times are in order too often to say anything."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class TimestampEvidence(NamedTuple):
    out_of_audio_mass: float
    """Mean probability of times behind the end of the audio."""
    word_confidences: Floats
    """[num_words] geometric mean of the probability around the reported start and end, 0 to 1."""
    entropies: Floats
    """[num_words] mean entropy of start and end, 0 sharp to 1 flat."""
    lis_agreement: float | None
    """Share of raw times in order, chance corrected: about 0 for random times, 1 for ordered ones; None: too few."""
    monotone_evidence: float
    """How much likelier ordered times are than under flat distributions: 0 chance, 1 certain, below 0 out of order."""
    displacements: Floats
    """[num_words] mean distance in bins between raw and reported times: what the official decode made up."""
    collapse_run: int
    """Words in the longest run of zero-length spans."""


def measure_timestamps(logits: Floats, reported: Ints, num_bins: int) -> TimestampEvidence:
    """
    Args:
        logits: [S, C] raw outputs of the head at the slots.
        reported: [S] times after the official repair, in bins.
        num_bins: K, classes that lie inside the audio.

    Raises:
        ValueError: there is no slot, an odd number of them, or the audio has more bins than the head has classes.
    """
    num_slots, num_classes = logits.shape
    if num_slots == 0 or num_slots % 2 or len(reported) != num_slots:
        raise ValueError(f"expected two slots and two times per word, found {num_slots} and {len(reported)}")
    if not 2 <= num_bins <= num_classes:
        raise ValueError(f"the audio spans {num_bins} time classes, expected 2 to {num_classes}")
    log_inside = log_softmax(logits[:, :num_bins], axis=1)
    inside = np.exp(log_inside)
    out_of_audio = 1 - np.exp(logsumexp(logits[:, :num_bins], axis=1) - logsumexp(logits, axis=1))
    boundary = boundary_mass(inside, reported).reshape(-1, 2)
    entropy = -(inside * log_inside).sum(axis=1) / np.log(num_bins)
    raw = logits.argmax(axis=1)
    return TimestampEvidence(
        out_of_audio_mass=float(np.clip(out_of_audio, 0, 1).mean()),
        word_confidences=np.sqrt(boundary.prod(axis=1)),
        entropies=entropy.reshape(-1, 2).mean(axis=1),
        lis_agreement=lis_agreement(raw, num_bins),
        monotone_evidence=monotone_evidence(inside),
        displacements=np.abs(raw - reported).reshape(-1, 2).mean(axis=1),
        collapse_run=collapse_run(reported),
    )


def boundary_mass(inside: Floats, reported: Ints) -> Floats:
    """Probability within `BOUNDARY_RADIUS_BINS` of the reported times, [S]; 0 for a time outside the audio."""
    bins = np.arange(inside.shape[1])
    near = np.abs(bins[None, :] - reported[:, None]) <= BOUNDARY_RADIUS_BINS
    return np.asarray(np.minimum((inside * near).sum(axis=1), 1.0))


def longest_ordered(times: Ints) -> int:
    """Length of the longest non-decreasing subsequence."""
    tails: list[int] = []
    for time in times.tolist():
        place = bisect_right(tails, time)
        tails[place : place + 1] = [time]
    return len(tails)


@lru_cache(maxsize=4096)
def chance_ordered(num_slots: int, num_bins: int) -> float:
    """Mean of `longest_ordered` over seeded uniform times."""
    generator = seeded_generator(0, "ordered by chance", f"{num_slots} {num_bins}")
    draws = generator.integers(0, num_bins, (NUM_CHANCE_DRAWS, num_slots))
    return float(np.mean([longest_ordered(draw) for draw in draws]))


def lis_agreement(raw: Ints, num_bins: int) -> float | None:
    num_slots = len(raw)
    if num_slots < 2 * MIN_AGREEMENT_WORDS:
        return None
    chance = chance_ordered(num_slots, num_bins)
    return (longest_ordered(raw) - chance) / (num_slots - chance)


def monotone_evidence(inside: Floats) -> float:
    """1 - ln Z / ln Z0: Z is the total probability of all non-decreasing paths, Z0 the same for flat distributions.

    Args:
        inside: [S, K] probabilities of the times inside the audio.
    """
    num_slots, num_bins = inside.shape
    emissions = np.log((1 - MONOTONE_EPSILON) * inside + MONOTONE_EPSILON / num_bins)
    paths = emissions[0]
    for emission in emissions[1:]:
        paths = np.logaddexp.accumulate(paths) + emission
    ways = gammaln(num_slots + num_bins) - gammaln(num_slots + 1) - gammaln(num_bins)
    chance = ways - num_slots * np.log(num_bins)
    return float(1 - logsumexp(paths) / chance)


def collapse_run(reported: Ints) -> int:
    longest = current = 0
    for start, end in reported.reshape(-1, 2).tolist():
        current = current + 1 if end <= start else 0
        longest = max(longest, current)
    return longest
