"""A training run as later steps see it: which checkpoint is meant, and what it was trained to be."""

from pathlib import Path
from typing import NamedTuple

from caspi.config import Export, Train
from caspi.ops.comparison.criteria import read_object
from caspi.ops.training.artifacts import read_marker
from caspi.ops.training.evaluations import EvaluatedCheckpoint, checkpoint_at, last_checkpoint, rank_checkpoints
from caspi.records import sha256_of_file

RUN_FILE = "run.json"
TRAIN_FIELDS = ("base_model", "stages", "num_llm_top_layers", "num_audio_top_layers", "manifest")
OPTIONAL_FIELDS = ("lora_rank",)
"""Runs that have no such field had no adapters."""
MODEL_FILES = (
    *("*.safetensors", "config.json", "adapter_config.json", "generation_config.json", "*processor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "chat_template.*"),
)
"""Files of a folder that decide what a model writes."""


class Choice(NamedTuple):
    """The checkpoint folders that were asked for."""

    folders: tuple[Path, ...]
    described: tuple[str, ...]
    """For each, what it is: step, stage, error rate while training."""
    stages: tuple[str, ...]
    """Stage that took the last step of each."""
    notes: tuple[str, ...]
    """What the user must know about the choice."""


def choose(section: Export) -> Choice:
    """
    Raises:
        ValueError: the run has no such checkpoint that is complete, or fewer than are to be averaged.
    """
    run_dir = section.run_dir
    if section.checkpoint == "final":
        return choose_final(run_dir)
    if section.checkpoint == "last":
        return choice_of([last_checkpoint(run_dir)])
    if section.checkpoint.isdecimal():
        return choice_of([checkpoint_at(run_dir, int(section.checkpoint))])
    wanted = section.num_averaged if section.checkpoint == "average" else 1
    ranking = rank_checkpoints(run_dir, wanted)
    if len(ranking.best) < wanted:
        raise ValueError(
            f"{wanted} checkpoints are to be averaged, but {run_dir} has {len(ranking.best)} that are complete and "
            "evaluated; give --num-averaged, and keep more while training with --save-total-limit"
        )
    return choice_of(ranking.best, [f"passed over {line}" for line in ranking.passed_over])


def choice_of(checkpoints: list[EvaluatedCheckpoint], notes: list[str] | None = None) -> Choice:
    return Choice(
        tuple(one.folder for one in checkpoints),
        tuple(describe(one) for one in checkpoints),
        tuple(one.marker.stage for one in checkpoints),
        tuple(notes or ()),
    )


def describe(one: EvaluatedCheckpoint) -> str:
    score = "not evaluated" if one.eval_wer is None else f"eval_wer {one.eval_wer:.2%} (trainer_state.json)"
    return f"step {one.step}, stage {one.marker.stage}, {score}"


def choose_final(run_dir: Path) -> Choice:
    """The model in the run folder itself, which `train` copied from a checkpoint when it ended."""
    run = read_object(run_dir / RUN_FILE)
    if "final_step" not in run:
        raise ValueError(f"{run_dir} has no final model: the run has not ended; use --checkpoint best")
    one = checkpoint_at(run_dir, run["final_step"])
    weights = sorted(path.name for path in run_dir.glob("*.safetensors"))
    differing = [name for name in weights if sha256_of_file(run_dir / name) != one.marker.files[name].sha256]
    if not weights or differing:
        raise ValueError(f"the model in {run_dir} is not that of {one.folder.name}, as its run.json says")
    return Choice((run_dir,), (f"final model: {describe(one)}",), (one.marker.stage,), ())


def trained_as(run_dir: Path, folder: Path) -> tuple[Train, str]:
    """What a checkpoint was trained with, and its language: from its marker, and run.json for the manifest.

    Raises:
        ValueError: neither says so.
    """
    recipe = read_object(run_dir / RUN_FILE).get("recipe", {})
    fields = {key: value for key, value in recipe.get("train", {}).items() if key in (*TRAIN_FIELDS, *OPTIONAL_FIELDS)}
    language = recipe.get("language", {}).get("name")
    if folder != run_dir:
        marked = read_marker(folder).recipe
        fields |= {key: value for key, value in marked.items() if key in (*TRAIN_FIELDS, *OPTIONAL_FIELDS)}
        language = marked.get("language", language)
    missing = [key for key in TRAIN_FIELDS[:-1] if key not in fields]
    if missing or not language:
        raise ValueError(f"neither {run_dir / RUN_FILE} nor the checkpoint says {', '.join(missing) or 'language'}")
    return Train.model_validate(fields), language


def trained_groups(train: Train, stages: tuple[str, ...]) -> frozenset[str]:
    """Layer groups that had trained when the latest of these stages was running."""
    names = [stage.name for stage in train.stages]
    last = max(names.index(stage) for stage in stages)
    return frozenset(group for stage in train.stages[: last + 1] for group in stage.learning_rates)


def model_files(folder: Path) -> dict[str, str]:
    """SHA-256 by name of the files that decide what the model in a folder writes."""
    paths = {path for pattern in MODEL_FILES for path in folder.glob(pattern) if path.is_file()}
    return {path.name: sha256_of_file(path) for path in sorted(paths)}
