"""How well a transcript and its audio fit, from word spans and a speech mask (AUDIT section 3).

Everything here is a pure function; which score makes a word accepted is decided in `calibration`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from caspi.config import QualityThresholds
from caspi.speech.alignment.vad import FRAME_SECONDS, runs

REASONS = (
    "LOW_COVERAGE",
    "LOW_CONFIDENCE",
    "UNTRANSCRIBED_SPEECH",
    "LENGTH_MISMATCH",
    "DECOY_WINS",
    "NO_SPEECH",
    "EMPTY_TRANSCRIPT",
    "TOO_LONG",
    "AUDIO_ERROR",
    "ALIGN_ERROR",
)
"""Why an utterance is low quality, in the order of the report."""

FAILURES = frozenset({"AUDIO_ERROR", "ALIGN_ERROR"})
"""Reasons that say the measurement failed, not that the transcript is wrong."""


class Alignment(NamedTuple):
    """What an aligner says about one (audio, transcript) pair."""

    spans: tuple[tuple[float, float] | None, ...]
    """Start and end of every word in seconds; None: the aligner found no place for the word."""
    word_scores: tuple[float, ...]
    """How well each word matches its span; higher is better, comparable within one backend only."""
    score: float
    """The same for the whole utterance."""
    word_confidences: tuple[float, ...] | None = None
    """The model's own probability of each word's span, 0 to 1, for backends that have one."""
    has_times: bool = True
    """False: the backend scores words without placing them; its spans are all None, and words count by score alone."""
    word_features: Mapping[str, tuple[float, ...]] | None = None
    """Raw measurements of each word by name, for backends whose scores are learned (`learned_score`)."""
    features: Mapping[str, float] | None = None
    """Raw measurements of the whole utterance, for the same backends."""


@dataclass(frozen=True)
class Pair:
    """One audio with one transcript, aligned; no threshold has been applied yet."""

    letters: tuple[int, ...]
    """Letters of each word, as `speech.text.num_letters` counts."""
    num_characters: int
    """Characters of the transcript, spaces included."""
    duration_seconds: float
    speech: NDArray[np.bool_]
    """Speech mask of the audio, [num_frames] of 10 ms."""
    alignment: Alignment

    @cached_property
    def speech_seconds(self) -> float:
        return float(self.speech.sum() * FRAME_SECONDS)

    @cached_property
    def letters_per_second(self) -> float | None:
        """Letters per second of speech; None without speech."""
        return sum(self.letters) / self.speech_seconds if self.speech_seconds > 0 else None

    @cached_property
    def starts_ends(self) -> NDArray[np.float64]:
        """[num_words, 2] seconds, NaN where the word has no span."""
        return np.array([span or (np.nan, np.nan) for span in self.alignment.spans], dtype=np.float64).reshape(-1, 2)


class Outcome(NamedTuple):
    """What the alignment of one utterance came to, all its controls counted."""

    id: str
    pairs: dict[str, Pair]
    failures: dict[str, str]
    """Control to message, for pairs that could not be aligned."""
    speech_seconds: float | None = None
    snr_db: float | None = None
    audio_error: str | None = None
    is_crash: bool = False
    """The process that measured it ended or hung; `failures` says how. Another attempt may go well."""


class Measures(NamedTuple):
    """What the accepted words say about a pair."""

    accepted: NDArray[np.bool_]
    """[num_words]"""
    alignment_coverage: float
    """Share of the transcript's letters in accepted words: is the text in the audio?"""
    speech_coverage: float | None
    """Share of the speech inside accepted words: is the audio in the text? 1 without speech; None without times."""
    longest_untranscribed_seconds: float | None
    """Most speech between two neighbouring accepted words, or before the first or after the last; None likewise."""


def measure(pair: Pair, min_word_score: float, limits: QualityThresholds) -> Measures:
    """Apply a word score threshold to a pair. The pair needs at least one word."""
    accepted = np.array(pair.alignment.word_scores) >= min_word_score
    letters = np.array(pair.letters, dtype=np.float64)
    if not pair.alignment.has_times:
        return Measures(accepted, float(letters[accepted].sum() / letters.sum()), None, None)
    accepted &= plausible_words(pair, limits)
    covered = covered_frames(pair.starts_ends[accepted], len(pair.speech), limits)
    num_speech = int(pair.speech.sum())
    return Measures(
        accepted=accepted,
        alignment_coverage=float(letters[accepted].sum() / letters.sum()),
        speech_coverage=float((pair.speech & covered).sum() / num_speech) if num_speech else 1.0,
        longest_untranscribed_seconds=FRAME_SECONDS
        * max((int(pair.speech[start:end].sum()) for start, end in runs(~covered)), default=0),
    )


def covered_frames(spans: NDArray[np.float64], num_frames: int, limits: QualityThresholds) -> NDArray[np.bool_]:
    """Frames inside padded spans, short gaps between consecutive spans filled; [num_frames]."""
    covered = np.zeros(num_frames, dtype=bool)
    previous_end: float | None = None
    for start, end in spans.tolist():
        if previous_end is not None and 0 <= start - previous_end <= limits.max_filled_gap_seconds:
            start = previous_end
        first = max(0, round((start - limits.span_padding_seconds) / FRAME_SECONDS))
        covered[first : max(0, round((end + limits.span_padding_seconds) / FRAME_SECONDS))] = True
        previous_end = end
    return covered


def plausible_words(pair: Pair, limits: QualityThresholds) -> NDArray[np.bool_]:
    """Words whose span is physically possible and lies on speech, whatever their score; [num_words]."""
    start, end = pair.starts_ends.T
    letters = np.array(pair.letters, dtype=np.float64)
    longest = limits.max_word_seconds + limits.max_word_seconds_per_letter * letters
    with np.errstate(invalid="ignore"):
        possible = (start >= 0) & (end >= start) & (end <= pair.duration_seconds + limits.max_overrun_seconds)
        possible &= end - start <= longest
    possible &= ~collapsed_words(pair.starts_ends, letters, limits)
    possible &= ~hurried_words(pair.starts_ends, letters, limits)
    for index in np.flatnonzero(possible):
        share = speech_share(pair, start[index], end[index], limits.span_tolerance_seconds)
        possible[index] = share >= limits.min_span_speech_fraction
    return np.asarray(possible)


def collapsed_words(
    spans: NDArray[np.float64], letters: NDArray[np.float64], limits: QualityThresholds
) -> NDArray[np.bool_]:
    """Words in a run of zero-length spans too long to be quantisation; [num_words]."""
    with np.errstate(invalid="ignore"):
        empty = spans[:, 1] - spans[:, 0] <= 0
    collapsed = np.zeros(len(spans), dtype=bool)
    for first, last in runs(empty):
        share = letters[first:last].sum() / letters.sum()
        if last - first >= limits.min_collapsed_words or share > limits.max_collapsed_letters_fraction:
            collapsed[first:last] = True
    return collapsed


def hurried_words(
    spans: NDArray[np.float64], letters: NDArray[np.float64], limits: QualityThresholds
) -> NDArray[np.bool_]:
    """Words in a window of three that would have to be spoken impossibly fast; [num_words].

    Three words, because a single one may be short by the aligner's time resolution.
    """
    hurried = np.zeros(len(spans), dtype=bool)
    placed = np.flatnonzero(~np.isnan(spans[:, 0]))
    for window in np.lib.stride_tricks.sliding_window_view(placed, 3) if len(placed) >= 3 else ():
        seconds = spans[window[-1], 1] - spans[window[0], 0]
        if letters[window].sum() > limits.max_local_letters_per_second * seconds:
            hurried[window] = True
    return hurried


def length_mismatch(pair: Pair, typical: tuple[float, float] | None, limits: QualityThresholds) -> bool:
    """Is the text too long or too short for the amount of speech?

    Args:
        typical: median and robust deviation of ln(letters per second of speech) in the domain, if known.
    """
    if pair.letters_per_second is None:
        return False
    characters_per_second = pair.num_characters / pair.speech_seconds
    if not limits.min_characters_per_second <= characters_per_second <= limits.max_characters_per_second:
        return True
    if typical is None:
        return False
    median, deviation = typical
    distance = abs(float(np.log(pair.letters_per_second)) - median)
    return bool(distance / max(limits.min_length_ratio_deviation, deviation) > limits.length_ratio_z)


def typical_length(pairs: list[Pair]) -> tuple[float, float] | None:
    """Median of ln(letters per second of speech) and its scaled median absolute deviation."""
    rates = [pair.letters_per_second for pair in pairs if pair.letters_per_second]
    if not rates:
        return None
    logs = np.log(rates)
    median = float(np.median(logs))
    return median, float(1.4826 * np.median(np.abs(logs - median)))


def quality_reasons(
    measures: Measures,
    *,
    speech_seconds: float,
    confidence: float | None,
    is_length_mismatch: bool,
    decoy_margin: float | None,
    limits: QualityThresholds,
) -> list[str]:
    """Reasons why a pair is low quality, in the order of `REASONS`; empty: it is good."""
    coverage, longest = measures.speech_coverage, measures.longest_untranscribed_seconds
    untranscribed = (coverage is not None and coverage < limits.min_speech_coverage) or (
        longest is not None and longest > limits.max_untranscribed_seconds
    )
    raised = {
        "LOW_COVERAGE": measures.alignment_coverage < limits.min_coverage,
        "LOW_CONFIDENCE": confidence is not None and confidence < limits.min_confidence,
        "UNTRANSCRIBED_SPEECH": untranscribed,
        "LENGTH_MISMATCH": is_length_mismatch,
        "DECOY_WINS": decoy_margin is not None and decoy_margin <= 0,
        "NO_SPEECH": speech_seconds < limits.min_speech_seconds,
    }
    return [reason for reason in REASONS if raised.get(reason)]


def speech_share(pair: Pair, start: float, end: float, tolerance_seconds: float) -> float:
    """Share of a span, widened on both sides, that is speech; at least one frame is looked at."""
    first = max(0, round((start - tolerance_seconds) / FRAME_SECONDS))
    last = max(first + 1, round((end + tolerance_seconds) / FRAME_SECONDS))
    inside = pair.speech[first:last]
    return float(inside.mean()) if len(inside) else 0.0
