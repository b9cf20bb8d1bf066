"""Outcomes of the battery as JSON, exact to the bit, so that a remembered one judges like a fresh one."""

import math
from itertools import chain
from typing import Any, Self

import numpy as np
from pydantic import ValidationError

from caspi.config import one_line
from caspi.model.aligners.battery import Outcome, Task
from caspi.records import Record
from caspi.speech.alignment.quality import Alignment, Pair
from caspi.speech.alignment.vad import runs

NOT_FINITE = "the aligner returned a score or time that is not a finite number"


class PairRecord(Record):
    """A `Pair`."""

    letters: tuple[int, ...]
    num_characters: int
    duration_seconds: float
    num_frames: int
    speech_runs: tuple[tuple[int, int], ...]
    """Stretches of speech as half-open frame ranges."""
    spans: tuple[tuple[float, float] | None, ...]
    word_scores: tuple[float, ...]
    score: float
    word_confidences: tuple[float, ...] | None
    has_times: bool
    word_features: dict[str, tuple[float, ...]] | None
    features: dict[str, float] | None

    @classmethod
    def of(cls, pair: Pair) -> Self:
        aligned = pair.alignment
        confidences = aligned.word_confidences
        return cls(
            letters=pair.letters,
            num_characters=pair.num_characters,
            duration_seconds=pair.duration_seconds,
            num_frames=len(pair.speech),
            speech_runs=tuple(runs(pair.speech)),
            spans=tuple(None if span is None else (float(span[0]), float(span[1])) for span in aligned.spans),
            word_scores=tuple(map(float, aligned.word_scores)),
            score=float(aligned.score),
            word_confidences=None if confidences is None else tuple(map(float, confidences)),
            has_times=aligned.has_times,
            word_features=None if aligned.word_features is None else dict(aligned.word_features),
            features=None if aligned.features is None else dict(aligned.features),
        )

    def pair(self) -> Pair:
        speech = np.zeros(self.num_frames, dtype=bool)
        for first, last in self.speech_runs:
            speech[first:last] = True
        alignment = Alignment(
            self.spans,
            self.word_scores,
            self.score,
            self.word_confidences,
            self.has_times,
            self.word_features,
            self.features,
        )
        return Pair(self.letters, self.num_characters, self.duration_seconds, speech, alignment)


class OutcomeRecord(Record):
    """An `Outcome` without its id: equal audio and texts have equal outcomes."""

    pairs: dict[str, PairRecord]
    failures: dict[str, str]
    speech_seconds: float | None
    snr_db: float | None
    audio_error: str | None


def outcome_json(outcome: Outcome) -> dict[str, Any]:
    """What the cache keeps. A pair whose numbers are not finite becomes a failure: JSON has no NaN."""
    finite = {control: pair for control, pair in outcome.pairs.items() if _is_finite(pair.alignment)}
    failures = outcome.failures | dict.fromkeys(outcome.pairs.keys() - finite.keys(), NOT_FINITE)
    return OutcomeRecord(
        pairs={control: PairRecord.of(pair) for control, pair in finite.items()},
        failures=failures,
        speech_seconds=outcome.speech_seconds,
        snr_db=outcome.snr_db,
        audio_error=outcome.audio_error,
    ).model_dump(mode="json")


def outcome_of(utterance_id: str, value: Any) -> Outcome:
    """The outcome that `outcome_json` wrote.

    Raises:
        ValueError: it did not write this.
    """
    try:
        record = OutcomeRecord.model_validate(value)
    except ValidationError as error:
        raise ValueError(f"remembered alignment of {utterance_id}: {one_line(error)}") from None
    pairs = {control: pair.pair() for control, pair in record.pairs.items()}
    return Outcome(utterance_id, pairs, record.failures, record.speech_seconds, record.snr_db, record.audio_error)


def request_json(task: Task) -> list[Any]:
    """What of a task decides its outcome, besides the bytes of its audio file and the model."""
    planned = [[plan.control, list(plan.words), plan.distortion, plan.amount] for plan in task.planned]
    return [task.offset_seconds, task.duration_seconds, planned, list(task.spoken)]


def _is_finite(alignment: Alignment) -> bool:
    numbers = [alignment.score, *alignment.word_scores, *(alignment.word_confidences or ())]
    numbers += [*(alignment.features or {}).values(), *chain.from_iterable((alignment.word_features or {}).values())]
    numbers += [second for span in alignment.spans if span is not None for second in span]
    return all(map(math.isfinite, numbers))
