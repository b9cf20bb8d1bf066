"""Forced aligners behind one small interface.

A backend is built in a module of its own, imported only when it is asked for. Which scores mean "this word is
really there" is not the backend's business: the audit calibrates that with wrong transcripts.
"""

import importlib
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from caspi.config import Recipe
from caspi.speech.alignment.quality import Alignment, Outcome

if TYPE_CHECKING:
    from caspi.model.aligners.battery import Task


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


class Workers(Protocol):
    """Where groups of tasks are aligned. As a context it loads the backend, or says why it cannot (ValueError)."""

    @property
    def model(self) -> "Description":
        """What was loaded."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def run(self, groups: "Sequence[Sequence[Task]]") -> Iterator[list[Outcome]]:
        """Yield the outcomes of each group, or of parts of it, as they come.

        Raises:
            RunFailed: the workers cannot work.
        """
        ...


Description = dict[str, str]
"""`model_id`, `device` and `dtype` of what was loaded."""

BACKENDS = {
    "qwen": "caspi.model.aligners.qwen:load_qwen_aligner",
    "ctc": "caspi.model.aligners.ctc:CtcAligner",
    "asr": "caspi.model.aligners.asr:AsrVerifier",
    "tts-dtw": "caspi.model.aligners.tts_dtw:TtsDtwAligner",
    "uniform": "caspi.model.aligners.blind:UniformAligner",
    "random": "caspi.model.aligners.blind:RandomAligner",
}
"""Backend name to module and what builds it from a recipe."""

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
    module, _, builder = BACKENDS[name].partition(":")
    aligner: Aligner = getattr(importlib.import_module(module), builder)(recipe)
    return aligner


def describe(aligner: Aligner) -> Description:
    return {"model_id": aligner.model_id, "device": aligner.device, "dtype": aligner.dtype}


def start_workers(recipe: Recipe) -> Workers:
    """Workers of `audit.engine`; enter them to load the backend.

    Raises:
        ValueError: what the engine needs is not installed.
    """
    if recipe.audit.engine == "ray":
        from caspi.model.aligners.ray_workers import RayWorkers

        return RayWorkers(recipe)
    from caspi.model.aligners.workers import LocalWorkers

    return LocalWorkers(recipe)
