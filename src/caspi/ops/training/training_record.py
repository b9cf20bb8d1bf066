"""What a training run writes about itself, and what it may be resumed with."""

import hashlib
import time
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from caspi.config import Recipe, Train
from caspi.files import read_object
from caspi.ops import provenance
from caspi.ops.training.artifacts import Checkpoint, commit, differing_keys, rotate, withdraw
from caspi.records import Utterance, dump_json, sha256_of_file, write_json

WITHOUT_EFFECT_ON_WEIGHTS = frozenset(
    {
        *("manifest", "output_dir", "gate_report", "signoff_file", "accept_risk", "yes", "overwrite_recipe"),
        *("num_processes", "data_parallel", "batch_size", "gradient_accumulation_steps"),
        *("num_loader_workers", "feature_cache_mib"),
        *("logging_steps", "save_total_limit", "eval_batch_size", "early_stop_evaluations", "final_model"),
        *("push_to_hub", "hub_model_id", "max_undecodable_fraction", "max_first_loss", "health", "shutdown_seconds"),
        *(
            "price",
            "max_budget_usd",
            "trackio_project",
            "step",
            "token_budget",
            "compile",
            "liger",
            "num_checkpointed_llm_layers",
        ),
        *("mirror", "mirroring", "trackio_project"),
    }
)
"""Fields of `config.Train` that may change when a run resumes. Batch size, accumulation and number of processes count
by their product; the manifest counts by what it holds."""


def weights_recipe(recipe: Recipe, num_processes: int) -> dict[str, Any]:
    """Everything of the recipe that decides the weights or which of them are best."""
    fields = recipe.train.model_dump(mode="json", exclude=set(WITHOUT_EFFECT_ON_WEIGHTS))
    return fields | {
        "effective_batch_size": recipe.train.effective_batch_size(num_processes),
        "language": recipe.language.name,
    }


def data_sha256(training: Sequence[Utterance], evaluation: Sequence[Utterance]) -> str:
    """Hash of the utterances on both sides, in order: sound, stretch and transcript."""
    digest = hashlib.sha256()
    for side in (training, evaluation):
        for item in side:
            digest.update(dump_json([item.id, item.source_sha256, item.offset, item.duration, item.text]).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def check_same_recipe(checkpoint: Checkpoint, recipe: dict[str, Any], data_hash: str, overwrite: bool) -> None:
    """
    Raises:
        ValueError: the checkpoint was made with another recipe or other data, and that was not asked for.
    """
    differences = differing_keys(checkpoint.marker.recipe, recipe)
    if checkpoint.marker.data_sha256 != data_hash:
        differences.append("the utterances of the manifest differ")
    if differences and not overwrite:
        raise ValueError(
            f"{checkpoint.folder} was made with another recipe ({'; '.join(differences)}); "
            "restore it, choose another --output-dir, or resume all the same with --overwrite-recipe"
        )


class CheckpointKeeper:
    """Makes checkpoints valid and deletes old ones."""

    def __init__(
        self,
        config: Train,
        recipe: dict[str, Any],
        data_hash: str,
        world_size: int,
        in_use: Callable[[], frozenset[int]] = frozenset,
    ) -> None:
        """`in_use`: steps that are being copied and may not be deleted."""
        self.config = config
        self.in_use = in_use
        self.recipe = recipe
        self.data_hash = data_hash
        self.world_size = world_size

    def begin(self, folder: Path) -> None:
        withdraw(folder)

    def commit(
        self,
        folder: Path,
        stage: str,
        step: int,
        trainable: list[str],
        best_step: int | None,
        limits: dict[str, int],
    ) -> None:
        commit(
            folder,
            step=step,
            stage=stage,
            trainable=trainable,
            world_size=self.world_size,
            recipe=self.recipe,
            data_sha256=self.data_hash,
            versions=provenance.versions(),
            **limits,
        )
        keep = frozenset() if best_step is None else frozenset({best_step})
        rotate(self.config.output_dir, self.config.save_total_limit, keep, self.in_use())


class TrainingRecord:
    """run.json: recipe, versions, hardware, hashes, gate, and how far the run is; only the main process writes it."""

    def __init__(self, recipe: Recipe, is_main: bool) -> None:
        """A run that is resumed keeps its W&B run, its starts and the time it took."""
        config = recipe.train
        self.path = config.output_dir / "run.json"
        self.is_main = is_main
        previous = self.read()
        self.content: dict[str, Any] = {
            "recipe": recipe.model_dump(mode="json"),
            "versions": provenance.versions(),
            "commit": provenance.commit(),
            "host": provenance.host_id(),
            "hardware": provenance.hardware(),
            "manifest_sha256": sha256_of_file(config.manifest),
            "accept_risk": config.accept_risk,
            "label_policy": "transcript and end of turn carry loss; the forced language prefix is part of the prompt",
            "wandb_run_id": previous.get("wandb_run_id") or uuid.uuid4().hex[:12],
            "starts": [*previous.get("starts", []), now()],
            "train_seconds": previous.get("train_seconds", 0.0),
            "paid_seconds": previous.get("paid_seconds", previous.get("train_seconds", 0.0)),
        }

    def read(self) -> dict[str, Any]:
        """What an earlier start wrote; empty if there was none."""
        return read_object(self.path) if self.path.exists() else {}

    def update(self, **facts: Any) -> None:
        if self.is_main:
            self.content |= facts | {"updated": now()}
            write_json(self.path, self.content)


class Progress(TrainerCallback):
    """Keeps run.json up to date at every save: seconds spent in training, all starts together, and peak memory."""

    def __init__(self, record: TrainingRecord) -> None:
        self.record = record
        self.began = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began = time.monotonic()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        now = time.monotonic()
        seconds = self.record.content["train_seconds"] + now - self.began
        peaks = [entry["gpu_memory_gib"] for entry in state.log_history if "gpu_memory_gib" in entry]
        self.record.update(
            train_seconds=round(seconds, 3),
            steps_done=state.global_step,
            peak_gpu_memory_gib=max(peaks) if peaks else None,
        )
        self.began = now


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
