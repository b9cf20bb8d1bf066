"""What is known from elsewhere about the audited corpus: its own segment times and its own quality score (AUDIT V5)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata

from caspi.records import SegmentTimes
from caspi.speech.alignment.calibration import Measured
from caspi.speech.alignment.controls import DECOY, ORIGINAL
from caspi.speech.alignment.findings import Finding
from caspi.speech.alignment.quality import Pair

MIN_CORRELATED = 10
"""Fewer utterances say nothing about a correlation."""


def segment_time_errors(
    measured: Sequence[Measured], segments: Mapping[str, Sequence[SegmentTimes]]
) -> dict[str, Any] | None:
    """How far the aligner's word times are from the corpus' segment times, and how far those of the decoys are.

    The decoy's words at the same place of its transcript stand in for a segment's first and last word: an aligner that
    spreads any text over the audio is as close with the wrong transcript.

    Args:
        segments: by utterance id.
    """
    timed = [item for item in measured if segments.get(item.id) and item.pairs[ORIGINAL].alignment.has_times]
    if not timed:
        return None
    own = [error for item in timed for error in boundary_errors(item.pairs[ORIGINAL], segments[item.id])]
    wrong = [
        error
        for item in timed
        if DECOY in item.pairs
        for error in boundary_errors(item.pairs[DECOY], scaled(segments[item.id], item))
    ]
    return {
        "num_utterances": len(timed),
        "num_boundaries": len(own),
        "median_error_seconds": float(np.median(own)) if own else None,
        "shuffled_median_error_seconds": float(np.median(wrong)) if wrong else None,
    }


def boundary_errors(pair: Pair, segments: Sequence[SegmentTimes]) -> list[float]:
    """Seconds between the start of each segment's first word and the end of its last one, and the segment's times.

    The two ends of a transcript are left out: silence around the speech gives them away to any text.
    """
    spans = pair.alignment.spans
    errors = []
    for segment in segments:
        last = segment.first_word + segment.num_words - 1
        if last >= len(spans):
            continue
        first_span, last_span = spans[segment.first_word], spans[last]
        if segment.first_word > 0 and first_span is not None:
            errors.append(abs(first_span[0] - segment.start))
        if last < len(spans) - 1 and last_span is not None:
            errors.append(abs(last_span[1] - segment.end))
    return errors


def scaled(segments: Sequence[SegmentTimes], item: Measured) -> list[SegmentTimes]:
    """The segments at the same place of the decoy."""
    num_own, num_other = (len(item.pairs[control].letters) for control in (ORIGINAL, DECOY))
    moved = []
    for segment in segments:
        first = min(num_other - 1, segment.first_word * num_other // num_own)
        end = min(num_other, max(first + 1, (segment.first_word + segment.num_words) * num_other // num_own))
        moved.append(segment.model_copy(update={"first_word": first, "num_words": end - first}))
    return moved


def quality_score_correlation(findings: Sequence[Finding]) -> dict[str, Any] | None:
    """Spearman's correlation of the corpus' own score with what the audit measured; None without such scores."""
    scored = [f for f in findings if f.dataset_quality_score is not None and f.alignment_coverage is not None]
    if len(scored) < MIN_CORRELATED:
        return None
    theirs = np.array([f.dataset_quality_score for f in scored], dtype=np.float64)
    return {
        "num_utterances": len(scored),
        "alignment_coverage": spearman(theirs, np.array([f.alignment_coverage for f in scored], dtype=np.float64)),
        "low_quality": spearman(theirs, np.array([f.low_quality for f in scored], dtype=np.float64)),
    }


def spearman(left: np.ndarray, right: np.ndarray) -> float | None:
    """None where one of the two does not vary."""
    ranks = rankdata(left), rankdata(right)
    if min(float(np.ptp(rank)) for rank in ranks) == 0:
        return None
    return float(np.corrcoef(*ranks)[0, 1])
