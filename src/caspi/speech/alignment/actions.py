"""What becomes of an utterance after the full pass: the first rule of AUDIT section 9 that holds."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from caspi.config import Clean, QualityThresholds
from caspi.records import Action, Utterance
from caspi.speech.alignment.calibration import Judgement
from caspi.speech.alignment.quality import Measures, Pair, covered_frames
from caspi.speech.alignment.resegmentation import (
    ROUND_DIGITS,
    Recording,
    Segment,
    between,
    boundaries,
    floor_ms,
    levels_db,
    rescue_runs,
    split_recording,
)
from caspi.speech.alignment.vad import FRAME_SECONDS, runs
from caspi.speech.text import alignment_words

HOPELESS = frozenset({"AUDIO_ERROR", "EMPTY_TRANSCRIPT", "NO_SPEECH"})
NOT_MEASURED = frozenset({"TOO_LONG", "ALIGN_ERROR"})
"""Says nothing against the utterance, so a person decides."""
CURED_BY_TRIMMING = frozenset({"UNTRANSCRIBED_SPEECH", "LENGTH_MISMATCH"})


class Clip(NamedTuple):
    """An utterance, or a new segment of one, after alignment."""

    utterance: Utterance
    reasons: list[str]
    """Why it is low quality, as in the audit; empty: it is good."""
    error: str | None = None
    pair: Pair | None = None
    """Audio and transcript; None together with `judgement`: there is nothing to measure."""
    judgement: Judgement | None = None

    @property
    def measures(self) -> Measures | None:
        return self.judgement.measures if self.judgement else None

    @property
    def coverage(self) -> float:
        return self.measures.alignment_coverage if self.measures else 0.0


class Lengths(NamedTuple):
    """Of what may be trained on, in seconds."""

    shortest: float
    longest: float


class Choice(NamedTuple):
    action: Action
    segments: list[Segment]
    """What is kept of the audio, to be aligned and judged again; empty for `keep`, `review` and `drop`."""
    why: str
    """In words; empty where the reasons say it."""
    left_out: Sequence[Segment] = ()
    """Words and their audio that a rescue drops."""


def not_alignable(utterance: Utterance, max_seconds: float) -> Clip:
    """What no aligner was asked about."""
    if not alignment_words(utterance.text):
        return Clip(utterance, ["EMPTY_TRANSCRIPT"], "the transcript has no word")
    found = f"{utterance.duration:.1f} s, the aligner takes at most {max_seconds:g} s"
    return Clip(utterance, ["TOO_LONG"], found)


def choose(
    clip: Clip, load: Callable[[], NDArray[np.float32]], lengths: Lengths, limits: QualityThresholds, settings: Clean
) -> Choice:
    """The action for one utterance.

    Args:
        load: gives the samples [num_samples] of the utterance; called only where something may be cut.
    """
    if is_hopeless(clip, settings):
        return Choice("drop", [], "")
    if NOT_MEASURED & set(clip.reasons):
        return Choice("review", [], "")
    is_long = clip.utterance.needs_resegmentation or clip.utterance.duration > lengths.longest
    if not (clip.reasons or is_long or _longest_edge_silence(clip) > settings.max_edge_silence_seconds):
        return Choice("keep", [], "")
    recording = recording_of(clip, load(), settings)
    first = _resegment(recording, lengths, settings) if is_long else _trim(clip, recording, lengths, limits, settings)
    if first:
        return first
    if clip.reasons or is_long:
        rescued = _rescue(recording, lengths, settings)
        if rescued:
            return rescued
    if clip.reasons:
        return Choice(verdict(clip, settings), [], "")
    return Choice("review", [], "there is no way to cut it") if is_long else Choice("keep", [], "")


def is_hopeless(clip: Clip, settings: Clean) -> bool:
    """Nothing of it can be used, whoever looks at it."""
    decoy_wins = "DECOY_WINS" in clip.reasons and clip.coverage < settings.max_decoy_win_coverage
    return bool(HOPELESS & set(clip.reasons)) or decoy_wins


def verdict(clip: Clip, settings: Clean) -> Action:
    """For low quality that nothing repairs, and for new segments that do not pass."""
    if is_hopeless(clip, settings):
        return "drop"
    measured = not NOT_MEASURED & set(clip.reasons)
    return "drop" if measured and clip.coverage < settings.min_review_coverage else "review"


def tier(clip: Clip, settings: Clean) -> str:
    """`strong` if both coverages are high; a backend without times cannot show that."""
    measures = clip.measures
    assert measures is not None, "only what was measured is kept"
    both = min(measures.alignment_coverage, measures.speech_coverage or 0.0)
    return "strong" if both >= settings.min_strong_coverage else "normal"


def recording_of(clip: Clip, samples: NDArray[np.float32], settings: Clean) -> Recording:
    assert clip.pair is not None
    assert clip.judgement is not None
    return Recording(
        text=clip.utterance.text,
        words=alignment_words(clip.utterance.text),
        spans=clip.pair.starts_ends,
        accepted=clip.judgement.measures.accepted,
        letters=np.array(clip.pair.letters, dtype=np.float64),
        speech=clip.pair.speech,
        level_db=levels_db(samples, settings.cuts.window_seconds),
        duration_seconds=clip.utterance.duration,
    )


def _resegment(recording: Recording, lengths: Lengths, settings: Clean) -> Choice | None:
    segments = split_recording(recording, lengths.longest, lengths.shortest, settings.cuts)
    return Choice("resegment", segments, "") if segments else None


def _rescue(recording: Recording, lengths: Lengths, settings: Clean) -> Choice | None:
    segments = rescue_runs(recording, lengths.longest, settings.min_run_coverage, settings.cuts)
    left_out = between(recording, segments)
    return Choice("rescue", segments, "", left_out) if segments and left_out else None


def _trim(
    clip: Clip, recording: Recording, lengths: Lengths, limits: QualityThresholds, settings: Clean
) -> Choice | None:
    """Cut off silence around a good utterance, or untranscribed speech around a transcript that was heard."""
    if not clip.reasons:
        start, end = _around_speech(recording, settings.cuts.padding_seconds)
    elif set(clip.reasons) <= CURED_BY_TRIMMING and _is_heard_between_edges(recording, limits, settings):
        bounds = boundaries(recording, settings.cuts)
        if not (bounds[0].is_admissible and bounds[-1].is_admissible):
            return None
        start, end = bounds[0].start_seconds, bounds[-1].end_seconds
    else:
        return None
    if end - start < lengths.shortest:
        return None
    return Choice("trim", [Segment(0, len(recording.words), start, end, recording.text)], "")


def _around_speech(recording: Recording, padding_seconds: float) -> tuple[float, float]:
    """From before the first sound of speech or word to behind the last one."""
    frames = np.flatnonzero(recording.speech)
    times = [frames[0] * FRAME_SECONDS, (frames[-1] + 1) * FRAME_SECONDS]
    times += recording.spans[~np.isnan(recording.spans)].tolist()
    start = round(max(0.0, min(times) - padding_seconds), ROUND_DIGITS)
    return start, min(floor_ms(recording.duration_seconds), round(max(times) + padding_seconds, ROUND_DIGITS))


def _is_heard_between_edges(recording: Recording, limits: QualityThresholds, settings: Clean) -> bool:
    """Is the transcript in the audio, and all speech between its first and its last word in the transcript?"""
    if not (recording.accepted[0] and recording.accepted[-1]):
        return False
    if recording.letters[recording.accepted].sum() < settings.min_run_coverage * recording.letters.sum():
        return False
    spans = recording.spans[recording.accepted]
    covered = covered_frames(spans, len(recording.speech), limits)
    first, last = (round(second / FRAME_SECONDS) for second in (spans[0, 0], spans[-1, 1]))
    inner = recording.speech[first:last] & ~covered[first:last]
    longest = max((end - start for start, end in runs(inner)), default=0) * FRAME_SECONDS
    return longest <= limits.max_untranscribed_seconds


def _longest_edge_silence(clip: Clip) -> float:
    """Seconds before the first or after the last sound of speech, whichever is more."""
    assert clip.pair is not None
    frames = np.flatnonzero(clip.pair.speech)
    if len(frames) == 0:
        return 0.0
    return float(max(frames[0], len(clip.pair.speech) - 1 - frames[-1]) * FRAME_SECONDS)
