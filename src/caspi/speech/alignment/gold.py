"""A gold set: clips whose text and word times people have verified (AUDIT section 4, P2).

It says in real Hebrew what synthetic speech cannot: how far the aligner's boundaries are off, and how often the audit
flags a pair that is known to be right. ivrit-ai/eval-forced-alignment is such a set.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ConfigDict, Field, model_validator

from caspi.config import Audit
from caspi.records import Record, read_jsonl
from caspi.speech.alignment.calibration import Measured, Thresholds, control_scores, fold_of, judge
from caspi.speech.alignment.controls import DECOY, ORIGINAL, DecoyChooser, PlannedPair, Transcript
from caspi.speech.alignment.learned_score import ScoreModel, rescored
from caspi.speech.alignment.quality import Outcome
from caspi.speech.alignment.sampling import clopper_pearson
from caspi.speech.alignment.validity import FALSE_ACCEPTANCE_ALPHA, auc
from caspi.speech.corpora.audio import AudioError, probe_audio
from caspi.speech.text import alignment_words, normalize_transcript, num_letters

GOLD = "gold"
"""Domain of gold clips and beginning of their task ids."""
NEAR_SECONDS = (0.08, 0.16)
"""One and two bins of the Qwen aligner."""


class GoldWord(Record):
    word: str
    start: float = Field(ge=0)
    """Seconds from the start of the clip."""
    end: float

    @model_validator(mode="after")
    def ends_after_its_start(self) -> "GoldWord":
        if self.end < self.start:
            raise ValueError(f"{self.word!r} ends at {self.end:g} s, before it starts at {self.start:g} s")
        return self


class GoldClip(Record):
    """One line of a gold manifest; other keys are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    id: str = Field(min_length=1)
    audio_filepath: str
    """Absolute, or relative to the manifest's folder."""
    offset: float = Field(default=0.0, ge=0)
    duration: float | None = Field(default=None, gt=0)
    """Seconds; None: to the end of the file."""
    words: tuple[GoldWord, ...] = Field(min_length=1)

    @property
    def seconds(self) -> float:
        assert self.duration is not None, f"{self.id} was not read by read_gold"
        return self.duration

    def spoken(self) -> list[tuple[str, float, float]]:
        """Alignment words with their times; punctuation that stands alone has none."""
        spoken = []
        for word in self.words:
            text = "".join(part.text for part in alignment_words(normalize_transcript(word.word)))
            if text:
                spoken.append((text, word.start, word.end))
        return spoken

    def transcript(self) -> Transcript:
        words = tuple(word for word, _, _ in self.spoken())
        return Transcript(self.id, GOLD, GOLD, words, sum(map(num_letters, words)))


def read_gold(path: Path) -> list[GoldClip]:
    """Gold clips with absolute paths and durations.

    Raises:
        ValueError: the file is missing, empty, has an id twice, a line is not a gold clip or its audio cannot be read;
            the message names file, line or clip, and problem.
    """
    clips: dict[str, GoldClip] = {}
    for clip in read_jsonl(path, GoldClip):
        if clip.id in clips:
            raise ValueError(f"{path}: id {clip.id!r} occurs twice")
        if not clip.spoken():
            raise ValueError(f"{path}: clip {clip.id!r} has no word that could be aligned")
        clips[clip.id] = _located(clip, path)
    if not clips:
        raise ValueError(f"{path} holds no gold clip")
    return list(clips.values())


def _located(clip: GoldClip, manifest: Path) -> GoldClip:
    audio = (manifest.parent / clip.audio_filepath).resolve()
    try:
        duration = clip.duration or probe_audio(audio).duration_seconds - clip.offset
    except AudioError as error:
        raise ValueError(f"{manifest}: clip {clip.id!r}: {error}") from None
    return clip.model_copy(update={"audio_filepath": str(audio), "duration": duration})


def plan_gold(clips: Sequence[GoldClip], settings: Audit) -> dict[str, tuple[PlannedPair, ...]]:
    """The verified transcript of each clip and a decoy from the others, by id."""
    transcripts = [clip.transcript() for clip in clips]
    chooser = DecoyChooser(transcripts, settings.calibration, settings.seed)
    planned = {}
    for transcript in transcripts:
        decoy = chooser.choose(transcript)
        others = () if decoy is None else (PlannedPair(DECOY, decoy.words),)
        planned[transcript.id] = (PlannedPair(ORIGINAL, transcript.words), *others)
    return planned


def gold_figures(
    clips: Sequence[GoldClip],
    outcomes: Mapping[str, Outcome],
    score_model: ScoreModel | None,
    thresholds: Thresholds | None,
    settings: Audit,
) -> dict[str, Any]:
    """Boundary errors, and what the audit's thresholds say about pairs that are right.

    Args:
        outcomes: by clip id.
    """
    measured = [
        Measured(clip.id, GOLD, fold_of(clip.id, settings.seed), outcomes[clip.id].pairs)
        for clip in clips
        if ORIGINAL in outcomes[clip.id].pairs
    ]
    measured = measured if score_model is None else rescored(measured, score_model)
    starts, ends = _shifts(clips, measured)
    errors = np.abs(np.concatenate([starts, ends]))
    figures: dict[str, Any] = {"num_clips": len(clips), "num_failed": len(clips) - len(measured)}
    if len(errors):
        figures |= {
            "num_words": len(starts),
            "median_boundary_error_seconds": float(np.median(errors)),
            "p90_boundary_error_seconds": float(np.percentile(errors, 90)),
            "within": {f"{limit:g} s": float(np.mean(errors <= limit)) for limit in NEAR_SECONDS},
            "mean_start_shift_seconds": float(starts.mean()),
            "mean_end_shift_seconds": float(ends.mean()),
        }
    if measured and thresholds is not None:
        flagged = sum(bool(judge(item, ORIGINAL, thresholds, settings).reasons) for item in measured)
        upper = clopper_pearson(flagged, len(measured), FALSE_ACCEPTANCE_ALPHA)[1]
        figures |= {"flagged_fraction": flagged / len(measured), "flagged_fraction_upper95": upper}
    paired = [item for item in measured if item.is_paired]
    if paired:
        figures["auc"] = auc(control_scores(paired, ORIGINAL), control_scores(paired, DECOY))
    return figures


def _shifts(clips: Sequence[GoldClip], measured: Sequence[Measured]) -> tuple[np.ndarray, np.ndarray]:
    """Aligner minus gold, [num_words] for starts and ends; words that found no place are left out."""
    truths = {clip.id: clip.spoken() for clip in clips}
    shifts = [
        (span[0] - start, span[1] - end)
        for item in measured
        for span, (_, start, end) in zip(item.pairs[ORIGINAL].alignment.spans, truths[item.id], strict=True)
        if span is not None
    ]
    both = np.array(shifts, dtype=np.float64).reshape(-1, 2)
    return both[:, 0], both[:, 1]
