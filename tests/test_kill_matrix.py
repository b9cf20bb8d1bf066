"""The stress test: training is killed everywhere, on one and two processes, and always ends with the same bits.

`pytest -m slow -s tests/test_kill_matrix.py` prints where the kills fell; docs/results/kill_matrix.md has a run of it.
"""

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import NUM_STEPS, build_inputs, fork, fork_two, weights_hash

from caspi.model.training.optimizer import OPTIMIZER_FILE
from caspi.model.training.trainer import StageTrainer
from caspi.ops.training import training_record
from caspi.ops.training.training_record import CheckpointKeeper

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

LAST = f"checkpoint-{NUM_STEPS}"
EVERY_STEP = ("--eval-steps", "1")
"""A checkpoint after each step of 6 utterances."""
AUGMENTED = (
    *("--augmentation.speed-probability", "0.5", "--augmentation.noise-probability", "0.5"),
    *("--augmentation.telephone-probability", "0.5", "--augmentation.codec-probability", "0.5"),
    *("--augmentation.num-time-masks", "2", "--augmentation.num-mel-masks", "2"),
)
TWO = ("--batch-size", "1", "--gradient-accumulation-steps", "3")


class Setup(NamedTuple):
    """How a run is started."""

    world_size: int
    flags: tuple[str, ...]


SETUPS = {
    "one process": Setup(1, EVERY_STEP),
    "two processes": Setup(2, (*EVERY_STEP, *TWO)),
    "one process, augmented": Setup(1, (*EVERY_STEP, *AUGMENTED)),
    "two processes, augmented": Setup(2, (*EVERY_STEP, *TWO, *AUGMENTED)),
}
NUM_KILLS = 20
"""At random moments, per number of processes."""
STARTED = "Starting training..."
SECONDS_TO_FOLLOW = 5.0
"""After one process was killed, until the others are, as the launcher does."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def finished(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The output of an undisturbed run of a setup."""
    folders: dict[str, Path] = {}

    def output_of(name: str) -> Path:
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp("finished")
            assert set(finish_off(start(recipe, folders[name], SETUPS[name]), seconds=600.0)) == {0}
        return folders[name]

    return output_of


def start(recipe: Path, output: Path, setup: Setup, prepare: Callable[[], object] = lambda: None) -> list[int]:
    if setup.world_size == 1:
        return [fork(recipe, output, *setup.flags, prepare=prepare)]
    return fork_two(recipe, output, *setup.flags, prepare=lambda rank: prepare())


def check_equal(ours: Path, theirs: Path) -> None:
    assert weights_hash(ours / LAST) == weights_hash(theirs / LAST)
    assert weights_hash(ours) == weights_hash(theirs)
    moments = [load_file(folder / LAST / OPTIMIZER_FILE) for folder in (ours, theirs)]
    assert moments[0].keys() == moments[1].keys()
    assert all(torch.equal(moments[0][name], moments[1][name]) for name in moments[1])


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def before_step(step: int) -> None:
    original = StageTrainer.training_step

    def training_step(self: StageTrainer, *args: object, **kwargs: object) -> torch.Tensor:
        if self.state.global_step == step - 1:
            die()
        return original(self, *args, **kwargs)  # type: ignore[arg-type]

    StageTrainer.training_step = training_step  # type: ignore[method-assign]


def in_the_optimizers_file(step: int) -> None:
    original = StageTrainer._save_optimizer_and_scheduler

    def save(self: StageTrainer, output_dir: str) -> None:
        if self.state.global_step == step:
            if self.args.should_save:
                (Path(output_dir) / OPTIMIZER_FILE).write_bytes(b"half")
            die()
        original(self, output_dir)

    StageTrainer._save_optimizer_and_scheduler = save  # type: ignore[method-assign]


def between_files_and_marker(step: int) -> None:
    original = training_record.commit

    def commit(folder: Path, **facts: object) -> object:
        if facts["step"] == step:
            die()
        return original(folder, **facts)

    training_record.commit = commit  # type: ignore[assignment]


def after_the_marker(step: int) -> None:
    original = CheckpointKeeper.commit

    def commit(self: CheckpointKeeper, folder: Path, stage: str, at: int, *rest: object) -> None:
        original(self, folder, stage, at, *rest)  # type: ignore[arg-type]
        if at == step:
            die()

    CheckpointKeeper.commit = commit  # type: ignore[method-assign, assignment]


@pytest.mark.parametrize("step", range(1, NUM_STEPS + 1))
@pytest.mark.parametrize("planted", [before_step, in_the_optimizers_file, between_files_and_marker, after_the_marker])
@pytest.mark.parametrize("name", SETUPS)
def test_a_kill_at_any_step_and_in_any_part_of_a_save_ends_bit_equal(
    name: str,
    planted: Callable[[int], None],
    step: int,
    recipe: Path,
    finished: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    """The main process dies first of all; one that waits for it ends with an error or is killed, as by the launcher."""
    expected = finished(name)
    codes = finish_off(start(recipe, tmp_path, SETUPS[name], lambda: planted(step)))
    assert codes[0] == -signal.SIGKILL
    assert 0 not in codes
    again = finish_off(start(recipe, tmp_path, SETUPS[name]), seconds=600.0)
    assert set(again) == {0}
    check_equal(tmp_path, expected)


@pytest.mark.parametrize("name", ["one process", "two processes"])
def test_kills_at_random_moments_end_bit_equal(
    name: str, recipe: Path, finished: Callable[[str], Path], tmp_path: Path
) -> None:
    """Run after run is killed again and again until it is done all the same, 20 times in all."""
    setup, expected = SETUPS[name], finished(name)
    world_size = setup.world_size
    rng = random.Random(world_size)
    seconds_per_step = json.loads((expected / "run.json").read_text())["train_seconds"] / NUM_STEPS
    num_kills, run = 0, 0
    while num_kills < NUM_KILLS:
        run += 1
        output = tmp_path / f"run{run}"
        for start_number in range(1, NUM_KILLS - num_kills + 1):
            children = start(recipe, output, setup)
            wait_for_training(output, start_number, rng.choice((0, 1, 1, 2)))
            time.sleep(rng.uniform(0.0, 2.0) * seconds_per_step)
            victims = [rng.choice(children)] if rng.random() < 0.5 else children
            for child in victims:
                os.kill(child, signal.SIGKILL)
            if finish_off(children) == [0] * world_size:
                break
            num_kills += 1
            print(f"\nKILL {num_kills}: {world_size} processes, run {run}: {len(victims)} killed, {where(output)}")
        assert finish_off(start(recipe, output, setup), seconds=600.0) == [0] * world_size
        check_equal(output, expected)
        print(f"\nEQUAL: {world_size} processes, run {run}")


def wait_for_training(output: Path, starts: int, steps: int) -> None:
    """Until the run has started so many times, and has taken so many steps since."""
    log = output / "training.log"
    text = ""
    while text.count(STARTED) < starts or text.split(STARTED)[-1].count("[Step ") < steps:
        if "Training completed!" in text:
            return
        time.sleep(0.01)
        text = log.read_text() if log.exists() else ""


def finish_off(children: list[int], seconds: float = SECONDS_TO_FOLLOW) -> list[int]:
    """Wait for processes, and for those that go on `seconds` after another was killed, kill them. Exit codes."""
    deadline: float | None = None
    codes: dict[int, int] = {}
    while len(codes) < len(children):
        for child in children:
            if child in codes:
                continue
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                codes[child] = os.waitstatus_to_exitcode(status)
                deadline = deadline or time.monotonic() + seconds
            elif deadline and time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
        time.sleep(0.02)
    return [codes[child] for child in children]


def where(output: Path) -> str:
    folders = sorted(output.glob("checkpoint-*"), key=lambda folder: int(folder.name.split("-")[1]))
    if not folders:
        return "before the first checkpoint"
    newest = folders[-1].name
    if not (folders[-1] / "COMPLETE.json").exists():
        return f"while {newest} was being written"
    return f"after {newest}" + (", all done" if (output / "model.safetensors").exists() else "")
