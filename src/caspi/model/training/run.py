"""What all stages of one training run share."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from transformers import Qwen3ASRForConditionalGeneration, Qwen3ASRProcessor, TrainerCallback

from caspi.config import Train
from caspi.model.checkpoints.checkpoint import load_asr, save_asr
from caspi.model.training.adapters import Adapters
from caspi.model.training.augmentation import Augmenter
from caspi.model.training.batch import Encoder, Utterances
from caspi.model.training.dev_set import DevSet
from caspi.model.training.forecast import Forecast
from caspi.model.training.parts import Parts
from caspi.model.training.quarantine import Quarantine
from caspi.model.training.sampler import Plan
from caspi.model.training.sharding import is_sharded
from caspi.model.training.stages import LearningRates, StageSpan
from caspi.model.training.weights import load_weights
from caspi.records import Utterance


class CheckpointStore(Protocol):
    """Where checkpoints become valid; only the main process calls it."""

    def begin(self, folder: Path) -> None:
        """The folder is about to be written; until `commit` it is no checkpoint."""

    def commit(
        self,
        folder: Path,
        stage: str,
        step: int,
        trainable: list[str],
        best_step: int | None,
        limits: dict[str, int],
    ) -> None:
        """The folder is written: make it valid, and make room by deleting what is older. `limits`: `Parts.record`."""


class StopSignal(Protocol):
    exit_code: int
    """0 until a signal has asked the run to stop."""


def load_base(config: Train) -> tuple[Qwen3ASRForConditionalGeneration, Qwen3ASRProcessor]:
    """
    Raises:
        ValueError: the base model does not load exactly.
    """
    return load_asr(config.base_model, torch.bfloat16 if torch.cuda.is_available() else torch.float32)


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
    quarantine: Quarantine
    adapters: Adapters | None
    parts: Parts
    """What is computed at once; the recipe's limit, or less where memory did not suffice."""
    fit_out: Callable[[Qwen3ASRForConditionalGeneration], None]
    """What is done to a model that was loaded before it trains."""
    forecast: Forecast = field(default_factory=Forecast)
    callbacks: list[TrainerCallback] = field(default_factory=list)

    def plain_model(self) -> AbstractContextManager[None]:
        """While the block runs, the model has no adapters beside its weights: they are merged."""
        return self.adapters.merged() if self.adapters else nullcontext()

    def save_model(self, folder: Path, tensors: dict[str, torch.Tensor] | None = None) -> None:
        """A checkpoint that every reader takes; with adapters, what they need to train on as well.

        `tensors` is what `full_tensors` gave.
        """
        with self.plain_model():
            save_asr(self.model, self.processor, folder, tensors)
        if self.adapters:
            self.adapters.save(folder)

    def renew_model(self) -> None:
        """Where the model is sharded, begin again with the base model in one piece; a checkpoint is to be loaded."""
        if is_sharded(self.model):
            self.model = load_base(self.config)[0]
            self.fit_out(self.model)

    def load_model(self, folder: Path) -> None:
        """What `save_model` wrote. Weights under adapters stay the base model's.

        Raises:
            ValueError: a file is damaged or does not fit.
        """
        under = {f"{name}.weight" for name in self.adapters.names} if self.adapters else set()
        load_weights(self.model, folder, under)
        if self.adapters:
            self.adapters.load(folder)

    @property
    def num_loader_workers(self) -> int:
        return self.config.loader_workers(len(os.sched_getaffinity(0)), torch.cuda.device_count())

    def dataset(self) -> Utterances:
        cache_mib = self.config.feature_cache_mib if self.num_loader_workers == 0 else 0.0
        augmenter = Augmenter(self.config.augmentation, self.config.seed)
        return Utterances(self.utterances, self.encoder, cache_mib, self.quarantine.items, augmenter)
