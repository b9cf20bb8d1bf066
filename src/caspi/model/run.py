"""What all stages of one training run share."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from transformers import Qwen3ASRForConditionalGeneration, Qwen3ASRProcessor, TrainerCallback

from caspi.config import Train
from caspi.model.batch import Encoder, Utterances
from caspi.model.dev_set import DevSet
from caspi.model.sampler import Plan
from caspi.model.stages import LearningRates, StageSpan
from caspi.records import Rejected, Utterance


class CheckpointStore(Protocol):
    """Where checkpoints become valid; only the main process calls it."""

    def begin(self, folder: Path) -> None:
        """The folder is about to be written; until `commit` it is no checkpoint."""

    def commit(self, folder: Path, stage: str, step: int, trainable: list[str], best_step: int | None) -> None:
        """The folder is written: make it valid, and make room by deleting what is older."""


class StopSignal(Protocol):
    exit_code: int
    """0 until a signal has asked the run to stop."""


@dataclass
class Run:
    """What all stages of a run share."""

    config: Train
    model: Qwen3ASRForConditionalGeneration
    processor: Qwen3ASRProcessor
    encoder: Encoder
    assigned: dict[str, str]
    """Layer group by parameter name."""
    utterances: list[Utterance]
    dev_set: DevSet
    plan: Plan
    spans: tuple[StageSpan, ...]
    rates: LearningRates
    store: CheckpointStore
    stop: StopSignal
    callbacks: list[TrainerCallback] = field(default_factory=list)
    rejected: dict[str, Rejected] = field(default_factory=dict)
    """Clips that could not be decoded while training, by id."""
    num_rejected: int = 0
    """Over all processes."""

    def dataset(self) -> Utterances:
        cache_mib = self.config.feature_cache_mib if self.config.num_loader_workers == 0 else 0.0
        return Utterances(self.utterances, self.encoder, cache_mib)
