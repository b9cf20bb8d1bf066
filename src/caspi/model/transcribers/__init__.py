"""Turning clips into raw text: one protocol, in process (`local`) or through a server.

A transcriber gives exactly what the model wrote after the last `<asr_text>`: repetition loops stay in the text, cut-off
texts say so, and a clip that fails is an outcome, so that none of them is hidden from the error rate.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np


class Transcription(NamedTuple):
    text: str
    """Raw, not normalised; empty when the model wrote nothing or the clip failed."""
    finish_reason: Literal["stop", "length", "error"]
    """`length`: the token limit was reached before the end of the text."""
    error: str | None = None
    """What failed, with an `error` only."""


class Transcriber(Protocol):
    """One model ready to transcribe with fixed settings."""

    def transcribe(self, audios: Sequence[np.ndarray]) -> list[Transcription]:
        """Transcribe float32 clips [num_samples], mono at 16 kHz; results in the order of the clips."""
        ...

    def describe(self) -> dict[str, Any]:
        """Everything that decides the texts (weights, prompt, decoding, versions), as JSON for the run record."""
        ...


def plan_batches(durations: Sequence[float], batch_size: int, max_batch_seconds: float) -> Iterator[list[int]]:
    """Indices of the clips of each batch: neighbours in length, the longest first, so that memory runs out at once.

    A batch holds at most `batch_size` clips and, padded to its longest, at most `max_batch_seconds` of audio; a clip
    longer than that goes alone.
    """
    batch: list[int] = []
    for index in sorted(range(len(durations)), key=lambda index: (-durations[index], index)):
        longest = durations[batch[0]] if batch else durations[index]
        if batch and (len(batch) == batch_size or (len(batch) + 1) * longest > max_batch_seconds):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
