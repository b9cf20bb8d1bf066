"""Turning clips into raw text: one protocol, in process (`local`) or through a server.

A transcriber gives exactly what the model wrote after the last `<asr_text>`: repetition loops stay in the text, cut-off
texts say so, and a clip that fails is an outcome, so that none of them is hidden from the error rate.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

TEXT_MARK = "<asr_text>"
"""In what the model writes, the text comes after this."""
LANGUAGE_TAG = re.compile(rf"language ([^\s<]+){TEXT_MARK}")
"""And before it, unless it is forced, the language."""
WAY_OUT = (
    "its chat template lacks `forced_language`; serve a folder written by caspi export, start the server with that "
    "folder's chat template, or give --language-forcing prefill"
)


class PromptCheck(NamedTuple):
    result: str
    """What was compared, for the run record."""
    prompt: str | None
    """The prompt, where the check has shown it to be this one."""


class Transcription(NamedTuple):
    text: str
    """Raw, not normalised; empty when the model wrote nothing or the clip failed."""
    finish_reason: Literal["stop", "length", "error", "unknown"]
    """`length`: the token limit was reached before the end of the text; `unknown`: a server's route does not say."""
    error: str | None = None
    """What failed, with an `error` only."""
    language_tag: str | None = None
    """Language that the model named before its text, empty if none; None where it was not left to the model."""

    @classmethod
    def of_output(
        cls, output: str, finish_reason: Literal["stop", "length", "unknown"], is_forced: bool
    ) -> "Transcription":
        """What the model wrote, `language NAME<asr_text>TEXT`; with a forced language, what comes after the mark."""
        text = output.rpartition(TEXT_MARK)[2]
        if is_forced:
            return cls(text, finish_reason)
        named = LANGUAGE_TAG.match(output)
        return cls(text, finish_reason, language_tag=named[1] if named else "")


class Transcriber(Protocol):
    """One model ready to transcribe with fixed settings."""

    num_concurrent: int
    """Batches that may be transcribed at the same time, from as many threads."""
    batch_size: int
    """Clips that `transcribe` should be given at once."""
    folder: Path | None
    """The checkpoint, where it is on this machine."""
    packages: tuple[str, ...]
    """Whose versions decide the texts."""

    def transcribe(self, audios: Sequence[np.ndarray], language: str | None = None) -> list[Transcription]:
        """Transcribe float32 clips [num_samples], mono at 16 kHz; results in the order of the clips.

        `language`: its name, where it is not that of the run; no matter where the model is to find it out.
        """
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
