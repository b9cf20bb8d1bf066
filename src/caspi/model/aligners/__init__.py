"""Forced aligners behind one small interface.

A backend is a class in a module of its own, imported only when it is asked for. Which scores mean "this word is
really there" is not the backend's business: the audit calibrates that with wrong transcripts.
"""

import importlib
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from caspi.config import Recipe
from caspi.speech.alignment.quality import Alignment


class FailedToAlign(RuntimeError):
    """This pair could not be aligned; a counted outcome, not a score."""


class AlignmentItem(NamedTuple):
    samples: NDArray[np.float32]
    """Mono audio at 16 kHz, [num_samples]. Items may share one array; its preparation is then shared too."""
    words: tuple[str, ...]
    """At least one, as `speech.text.alignment_words` splits."""


class Aligner(Protocol):
    model_id: str
    """What was loaded, for the report."""
    device: str
    dtype: str
    """Where and in which precision it computes, for the report."""

    def align(self, items: Sequence[AlignmentItem]) -> list[Alignment | FailedToAlign]:
        """Align a batch; one outcome per item, in order, independent of what else is in the batch."""
        ...


BACKENDS = {
    "qwen": "caspi.model.aligners.qwen:QwenAligner",
    "ctc": "caspi.model.aligners.ctc:CtcAligner",
    "asr": "caspi.model.aligners.asr:AsrVerifier",
    "tts-dtw": "caspi.model.aligners.tts_dtw:TtsDtwAligner",
    "uniform": "caspi.model.aligners.blind:UniformAligner",
    "random": "caspi.model.aligners.blind:RandomAligner",
}
"""Backend name to module and class."""

MODEL_BACKENDS = frozenset({"qwen", "ctc", "asr"})
"""Backends that load weights with torch."""


def build_aligner(recipe: Recipe) -> Aligner:
    """Load the backend of `recipe.audit`.

    Raises:
        ValueError: the backend is unknown or cannot be loaded; the message names the cause and the way out.
    """
    name = recipe.audit.backend
    if name not in BACKENDS:
        raise ValueError(f"audit.backend is {name!r}, expected one of {', '.join(BACKENDS)}")
    module, _, class_name = BACKENDS[name].partition(":")
    aligner: Aligner = getattr(importlib.import_module(module), class_name)(recipe)
    return aligner
