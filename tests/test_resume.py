"""A run that is killed, signalled or damaged goes on with the same command and ends with the same bits."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import NUM_STEPS, STEPS_PER_EPOCH, build_inputs, train_in_child, weights_hash

from caspi.model.training import dev_set
from caspi.model.training.optimizer import OPTIMIZER_FILE
from caspi.model.training.trainer import StageTrainer
from caspi.ops.training import training_record
from caspi.ops.training.training_record import CheckpointKeeper


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def finished(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run that nobody disturbed, with every checkpoint kept."""
    output = tmp_path_factory.mktemp("finished")
    assert train_in_child(recipe, output, "--save-total-limit", "9") == 0
    return output


def state_of(folder: Path) -> dict[str, list[dict[str, float]]]:
    state: dict[str, list[dict[str, float]]] = json.loads((folder / "trainer_state.json").read_text())
    return state


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_before_step(step: int) -> None:
    original = StageTrainer.training_step

    def training_step(self: StageTrainer, *args: object, **kwargs: object) -> torch.Tensor:
        if self.state.global_step == step:
            die()
        return original(self, *args, **kwargs)  # type: ignore[arg-type]

    StageTrainer.training_step = training_step  # type: ignore[method-assign]


def kill_in_save(step: int) -> None:
    """After the weights, in the middle of the optimizer's file."""

    def save(self: StageTrainer, output_dir: str) -> None:
        if self.state.global_step == step:
            (Path(output_dir) / OPTIMIZER_FILE).write_bytes(b"half")
            die()

    original = StageTrainer._save_optimizer_and_scheduler

    def both(self: StageTrainer, output_dir: str) -> None:
        save(self, output_dir)
        original(self, output_dir)

    StageTrainer._save_optimizer_and_scheduler = both  # type: ignore[method-assign]


def kill_before_marker(step: int) -> None:
    original = training_record.commit

    def commit(folder: Path, **facts: object) -> object:
        if facts["step"] == step:
            die()
        return original(folder, **facts)

    training_record.commit = commit  # type: ignore[assignment]


def kill_after_commit(step: int) -> None:
    original = CheckpointKeeper.commit

    def commit(self: CheckpointKeeper, folder: Path, stage: str, at: int, *rest: object) -> None:
        original(self, folder, stage, at, *rest)  # type: ignore[arg-type]
        if at == step:
            die()

    CheckpointKeeper.commit = commit  # type: ignore[method-assign, assignment]


KILLS: dict[str, Callable[[], None]] = {
    "in the middle of stage B": lambda: kill_before_step(2),
    "in a save, at the stage boundary": lambda: kill_in_save(STEPS_PER_EPOCH),
    "between files and marker": lambda: kill_before_marker(6),
    "right after the boundary checkpoint": lambda: kill_after_commit(STEPS_PER_EPOCH),
    "in stage A": lambda: kill_before_step(7),
}
DEFAULT_KILLS = {"in a save, at the stage boundary", "in stage A"}


SEVERAL = [pytest.param(kill, marks=() if kill in DEFAULT_KILLS else pytest.mark.slow) for kill in KILLS]


@pytest.mark.parametrize("kill", SEVERAL)
def test_a_killed_run_continues_and_ends_bit_equal(kill: str, recipe: Path, finished: Path, tmp_path: Path) -> None:
    assert train_in_child(recipe, tmp_path, "--save-total-limit", "9", prepare=KILLS[kill]) == -signal.SIGKILL
    assert train_in_child(recipe, tmp_path, "--save-total-limit", "9") == 0
    for folder in ("", f"checkpoint-{STEPS_PER_EPOCH}", f"checkpoint-{NUM_STEPS}"):
        assert weights_hash(tmp_path / folder) == weights_hash(finished / folder)
    last = f"checkpoint-{NUM_STEPS}/{OPTIMIZER_FILE}"
    ours, theirs = load_file(tmp_path / last), load_file(finished / last)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert ours.keys() == theirs.keys()
    steps = [
        json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines() if '"loss"' in line
    ]
    assert steps == list(range(1, NUM_STEPS + 1))


def command(recipe: Path, output: Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", "caspi", "train", "--recipe", str(recipe), "--output-dir", str(output), *flags]


def start_and_wait_for_step(recipe: Path, output: Path, step: int) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        command(recipe, output), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    assert process.stdout
    for line in process.stdout:
        if f"[Step {step}/" in line:
            return process
    raise AssertionError(f"the run ended with {process.wait()} before step {step}")


def test_the_real_command_killed_from_outside_ends_bit_equal(recipe: Path, finished: Path, tmp_path: Path) -> None:
    process = start_and_wait_for_step(recipe, tmp_path, 5)
    time.sleep(0.05)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert train_in_child(recipe, tmp_path) == 0
    assert weights_hash(tmp_path / "checkpoint-8") == weights_hash(finished / "checkpoint-8")


def send_before_step(step: int, *numbers: signal.Signals) -> None:
    original = StageTrainer.training_step

    def training_step(self: StageTrainer, *args: object, **kwargs: object) -> torch.Tensor:
        if self.state.global_step == step:
            for number in numbers:
                os.kill(os.getpid(), number)
        return original(self, *args, **kwargs)  # type: ignore[arg-type]

    StageTrainer.training_step = training_step  # type: ignore[method-assign]


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_at_the_next_step_and_the_run_goes_on_bit_equal(
    number: signal.Signals, exit_code: int, recipe: Path, finished: Path, tmp_path: Path
) -> None:
    assert train_in_child(recipe, tmp_path, prepare=lambda: send_before_step(4, number)) == exit_code
    assert (tmp_path / "checkpoint-5" / "COMPLETE.json").exists()
    assert "Saving checkpoint..." in (tmp_path / "training.log").read_text()
    assert json.loads((tmp_path / "run.json").read_text())["state"] == "interrupted"
    assert train_in_child(recipe, tmp_path) == 0
    assert weights_hash(tmp_path / "checkpoint-8") == weights_hash(finished / "checkpoint-8")


def signal_the_group_before_step(step: int) -> None:
    """As a terminal and torchrun do: the loader's workers get it too."""
    os.setpgrp()
    original = StageTrainer.training_step

    def training_step(self: StageTrainer, *args: object, **kwargs: object) -> torch.Tensor:
        if self.state.global_step == step:
            os.killpg(0, signal.SIGTERM)
        return original(self, *args, **kwargs)  # type: ignore[arg-type]

    StageTrainer.training_step = training_step  # type: ignore[method-assign]


def test_loader_workers_survive_a_signal_until_the_checkpoint_is_saved(recipe: Path, tmp_path: Path) -> None:
    flags = ["--num-loader-workers", "2"]
    assert train_in_child(recipe, tmp_path, *flags, prepare=lambda: signal_the_group_before_step(1)) == 143
    assert (tmp_path / "checkpoint-2" / "COMPLETE.json").exists()


def test_a_second_ctrl_c_leaves_at_once_without_saving(recipe: Path, tmp_path: Path) -> None:
    code = train_in_child(recipe, tmp_path, prepare=lambda: send_before_step(1, signal.SIGINT, signal.SIGINT))
    assert code == 130
    assert not list(tmp_path.glob("checkpoint-*"))


def test_an_evaluation_that_a_signal_skipped_is_made_up_for(recipe: Path, finished: Path, tmp_path: Path) -> None:
    assert train_in_child(recipe, tmp_path, prepare=lambda: send_before_step(2, signal.SIGTERM)) == 143
    assert [e for e in state_of(tmp_path / "checkpoint-3")["log_history"] if "eval_wer" in e] == []
    assert train_in_child(recipe, tmp_path) == 0
    evaluated = [e for e in state_of(tmp_path)["log_history"] if "eval_wer" in e]
    expected = [e for e in state_of(finished)["log_history"] if "eval_wer" in e]
    assert [(e["step"], e["eval_loss"], e["eval_wer"]) for e in evaluated] == [
        (e["step"], e["eval_loss"], e["eval_wer"]) for e in expected
    ]
    assert weights_hash(tmp_path) == weights_hash(finished)


def send_while_evaluating(number: signal.Signals) -> None:
    """While the first batch of the first evaluation is transcribed."""
    original = dev_set.transcribe
    sent: list[int] = []

    def transcribe(*arguments: Any, **named: Any) -> Any:
        if not sent:
            sent.append(number)
            os.kill(os.getpid(), number)
        return original(*arguments, **named)

    dev_set.transcribe = transcribe


def test_a_signal_while_evaluating_saves_at_once_and_the_evaluation_is_made_up_for(
    recipe: Path, finished: Path, tmp_path: Path
) -> None:
    flags = ("--max-wer-utterances", "4", "--eval-batch-size", "1")
    assert train_in_child(recipe, tmp_path / "whole", *flags) == 0
    output = tmp_path / "stopped"
    assert train_in_child(recipe, output, *flags, prepare=lambda: send_while_evaluating(signal.SIGTERM)) == 143
    assert json.loads((output / "checkpoint-3" / "COMPLETE.json").read_text())["step"] == 3
    assert [e for e in state_of(output / "checkpoint-3")["log_history"] if "eval_wer" in e] == []
    assert train_in_child(recipe, output, *flags) == 0
    found, expected = (
        [(e["step"], e["eval_loss"], e["eval_wer"]) for e in state_of(folder)["log_history"] if "eval_wer" in e]
        for folder in (output, tmp_path / "whole")
    )
    assert found == expected
    assert weights_hash(output) == weights_hash(tmp_path / "whole")


def test_a_damaged_checkpoint_falls_back_to_the_one_before(recipe: Path, finished: Path, tmp_path: Path) -> None:
    train_in_child(recipe, tmp_path, prepare=lambda: kill_before_step(4))
    path = tmp_path / "checkpoint-4" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-100] ^= 4
    path.write_bytes(data)
    (tmp_path / "checkpoint-3" / "scratch").mkdir()
    assert train_in_child(recipe, tmp_path) == 0
    assert (tmp_path / "torn-4").is_dir()
    assert (
        "checkpoint-4 cannot be used (model.safetensors is not as it was written"
        in (tmp_path / "training.log").read_text()
    )
    assert weights_hash(tmp_path / "checkpoint-8") == weights_hash(finished / "checkpoint-8")
