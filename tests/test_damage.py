"""Every way a checkpoint can be damaged: one clear message, the checkpoint before it, and the same weights in the end.

Through what `caspi train` does when it starts: choose the checkpoint, load weights, moments and random state.
"""

import json
import logging
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import NUM_STEPS, STEPS_PER_EPOCH, build_inputs, train_in_child, weights, weights_hash

from caspi.config import Recipe, load_recipe
from caspi.model.training.build import build_run, check_data, load_data, open_quarantine
from caspi.model.training.optimizer import OPTIMIZER_FILE, named_parameters
from caspi.model.training.run import Run
from caspi.model.training.trainer import StageTrainer
from caspi.ops.training.artifacts import MARKER
from caspi.ops.training.resume import checkpoint_to_resume
from caspi.ops.training.training_record import data_sha256, weights_recipe
from caspi.records import sha256_of_file

WEIGHTS, STATE = "model.safetensors", "trainer_state.json"
NEWEST, BEFORE, LAST = "checkpoint-6", f"checkpoint-{STEPS_PER_EPOCH}", f"checkpoint-{NUM_STEPS}"


class Opened:
    """A pickle that tells on whoever opens it."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("/tmp/caspi-unpickled-a-foreign-file",)


def vouch_for(folder: Path) -> None:
    """Make the marker agree with the files as they are: a damage that no hash can find."""
    marker = json.loads((folder / MARKER).read_text())
    for name in marker["files"]:
        path = folder / name
        marker["files"][name] = {"num_bytes": path.stat().st_size, "sha256": sha256_of_file(path)}
    (folder / MARKER).write_text(json.dumps(marker))


def change_marker(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    marker = json.loads((folder / MARKER).read_text())
    change(marker)
    (folder / MARKER).write_text(json.dumps(marker))


def truncate(folder: Path) -> None:
    os.truncate(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size * 2 // 3)


def flip_a_bit(folder: Path) -> None:
    data = bytearray((folder / OPTIMIZER_FILE).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / OPTIMIZER_FILE).write_bytes(data)


def swap(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "aside")
    (folder / OPTIMIZER_FILE).rename(folder / WEIGHTS)
    (folder / "aside").rename(folder / OPTIMIZER_FILE)


def put_a_pickle_in_place(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(pickle.dumps(Opened()))
    vouch_for(folder)


def copy_the_one_before(folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name(BEFORE), folder)


def take_the_state_of_another(folder: Path) -> None:
    shutil.copy(folder.with_name(BEFORE) / STATE, folder / STATE)
    vouch_for(folder)


def reach_outside(folder: Path) -> None:
    change_marker(folder, lambda marker: marker["files"].update({"../secret": {"num_bytes": 1, "sha256": ""}}))


def replace_by_a_folder(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()


def make_a_pipe(folder: Path) -> None:
    (folder / MARKER).unlink()
    os.mkfifo(folder / MARKER)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated weights": (truncate, "model.safetensors has "),
    "a flipped bit": (flip_a_bit, "optimizer.safetensors is not as it was written: its SHA-256 differs"),
    "a missing file": (lambda c: (c / OPTIMIZER_FILE).unlink(), "optimizer.safetensors is missing"),
    "an empty file": (lambda c: (c / STATE).write_bytes(b""), "trainer_state.json has 0 bytes instead of "),
    "no marker": (lambda c: (c / MARKER).unlink(), "it has no COMPLETE.json: saving was interrupted"),
    "half a marker": (lambda c: os.truncate(c / MARKER, 400), "COMPLETE.json is damaged"),
    "a marker with a wrong hash": (
        lambda c: change_marker(c, lambda m: m["files"][STATE].update(sha256="0" * 64)),
        "trainer_state.json is not as it was written: its SHA-256 differs",
    ),
    "a marker without the history": (
        lambda c: change_marker(c, lambda m: m["files"].pop(STATE)),
        "its marker names no trainer_state.json",
    ),
    "weights that the marker does not name": (
        lambda c: shutil.copy(c / WEIGHTS, c / "model-2.safetensors"),
        "model-2.safetensors is not among the files that COMPLETE.json names",
    ),
    "a marker that reaches outside": (reach_outside, "../secret is not in the checkpoint"),
    "a marker that is a pipe": (make_a_pipe, "is a FIFO, expected a file"),
    "swapped files": (swap, "model.safetensors has "),
    "a folder in place of a file": (replace_by_a_folder, "model.safetensors is missing"),
    "a foreign pickle in place of the weights": (put_a_pickle_in_place, "model.safetensors is no safetensors file"),
    "a copy of another checkpoint": (copy_the_one_before, "it is a copy of another one: its marker says step 4"),
    "the state of another step": (take_the_state_of_another, "trainer_state.json is of step 4, the marker of step 6"),
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def finished(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("finished")
    assert train_in_child(recipe, output, "--save-total-limit", "9") == 0
    return output


@pytest.fixture(scope="module")
def run(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Run, str]:
    """What a start has loaded when it looks for a checkpoint; and the hash of its data."""
    read = load_recipe(recipe)
    config = read.train.model_copy(update={"output_dir": tmp_path_factory.mktemp("unused")})
    split = load_data(config)
    quarantine = open_quarantine(config, is_resumed=False)
    whole = check_data(split, quarantine)
    store: Any = SimpleNamespace()
    built = build_run(read, whole, quarantine, store, SimpleNamespace(exit_code=0), world_size=1)
    return read, built, data_sha256(split.training, split.evaluation)


def interrupted(finished: Path, output: Path) -> Path:
    """A run that stopped after its third checkpoint; returns the newest."""
    for name in ("checkpoint-3", BEFORE, NEWEST):
        shutil.copytree(finished / name, output / name)
    return output / NEWEST


def load(run: tuple[Recipe, Run, str], output: Path) -> StageTrainer:
    """Choose and load a checkpoint as `caspi train` does."""
    recipe, built, data_hash = run
    config = recipe.train.model_copy(update={"output_dir": output})
    found = checkpoint_to_resume(config, weights_recipe(recipe, 1), data_hash)
    assert found is not None
    trainer = StageTrainer(built, built.spans[1])
    trainer.state.global_step = found.marker.step
    trainer._load_from_checkpoint(str(found.folder))
    trainer.create_optimizer()
    trainer._load_optimizer_and_scheduler(str(found.folder))
    trainer._load_rng_state(str(found.folder))
    return trainer


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_has_one_clear_message_and_the_one_before_is_loaded(
    damage: str, run: tuple[Recipe, Run, str], finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spoil, message = DAMAGES[damage]
    spoil(interrupted(finished, tmp_path))
    with caplog.at_level(logging.WARNING, "caspi"):
        trainer = load(run, tmp_path)
    (line,) = [record.message for record in caplog.records]
    assert line.startswith("WARNING: checkpoint-6 cannot be used (")
    assert message in line
    assert line.endswith("; moved to torn-6")
    assert (tmp_path / "torn-6").is_dir()
    assert trainer.state.global_step == STEPS_PER_EPOCH
    expected, moments = weights(finished / BEFORE), load_file(finished / BEFORE / OPTIMIZER_FILE)
    model = dict(trainer.run.model.named_parameters())
    assert all(torch.equal(model[name], expected[name]) for name in expected)
    for name, parameter in named_parameters(trainer.own_optimizer).items():
        if trainer.run.assigned[name] != "audio_top":
            assert torch.equal(trainer.own_optimizer.state[parameter]["exp_avg"], moments[f"{name}|exp_avg"])
    assert not Path("/tmp/caspi-unpickled-a-foreign-file").exists()


def test_a_foreign_pickle_beside_the_files_is_named_and_never_opened(
    run: tuple[Recipe, Run, str], finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    newest = interrupted(finished, tmp_path)
    for name in ("optimizer.pt", "rng_state.pth", "pytorch_model.bin", "training_args.bin", "scheduler.pt"):
        (newest / name).write_bytes(pickle.dumps(Opened()))
    with caplog.at_level(logging.WARNING, "caspi"):
        trainer = load(run, tmp_path)
    assert trainer.state.global_step == 6
    assert len(caplog.records) == 5
    assert "checkpoint-6 holds optimizer.pt, which the run did not write; it is not opened" in caplog.text
    assert not Path("/tmp/caspi-unpickled-a-foreign-file").exists()


def test_when_nothing_is_left_the_run_says_so_and_begins_anew(
    run: tuple[Recipe, Run, str], finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    newest = interrupted(finished, tmp_path)
    for name in ("checkpoint-3", BEFORE, NEWEST):
        truncate(newest.with_name(name))
    recipe, _, data_hash = run
    config = recipe.train.model_copy(update={"output_dir": tmp_path})
    with caplog.at_level(logging.WARNING, "caspi"):
        assert checkpoint_to_resume(config, weights_recipe(recipe, 1), data_hash) is None
    assert caplog.text.count("cannot be used") == 3
    assert "no usable checkpoint is left" in caplog.text


def test_nothing_of_a_checkpoint_is_a_pickle(finished: Path) -> None:
    names = {path.name for path in (finished / LAST).iterdir()}
    assert "random-0.safetensors" in names
    assert {Path(name).suffix for name in names} <= {".safetensors", ".json", ".jinja"}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_the_same_command_goes_on_from_the_one_before_and_ends_bit_equal(
    damage: str, recipe: Path, finished: Path, tmp_path: Path
) -> None:
    spoil, message = DAMAGES[damage]
    spoil(interrupted(finished, tmp_path))
    assert train_in_child(recipe, tmp_path) == 0
    assert message in (tmp_path / "training.log").read_text()
    assert weights_hash(tmp_path / LAST) == weights_hash(finished / LAST)
