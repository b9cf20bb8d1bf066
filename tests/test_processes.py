"""Several training processes: one result, one exit code, and weights that never go apart unnoticed."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import build_inputs, train_in_child, train_in_children, weights, weights_hash

from caspi.model.training import dev_set
from caspi.model.training.trainer import StageTrainer

SAME_STEP = ("--batch-size", "1", "--gradient-accumulation-steps", "3")
"""6 utterances per step on two processes, as on one by default."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def finished(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of an undisturbed run of two processes."""
    output = tmp_path_factory.mktemp("finished")
    flags = (*SAME_STEP, "--save-total-limit", "9")
    assert train_in_children(recipe, output, *flags, prepare=lambda rank: note_weights(output, rank)) == [0, 0]
    return output


def note_weights(output: Path, rank: int) -> None:
    """Write down, before every step, a hash of all parameters as this process holds them, and which of them train."""
    original = StageTrainer.training_step

    def training_step(self: StageTrainer, *args: object, **kwargs: object) -> torch.Tensor:
        digest = hashlib.sha256()
        for _, parameter in self.run.model.named_parameters():
            digest.update(parameter.detach().numpy().tobytes() + bytes([parameter.requires_grad]))
        with (output / f"weights-{rank}.txt").open("a") as file:
            file.write(digest.hexdigest() + "\n")
        return original(self, *args, **kwargs)  # type: ignore[arg-type]

    StageTrainer.training_step = training_step  # type: ignore[method-assign]


def test_all_processes_hold_equal_weights_to_the_bit_before_every_step_of_both_stages(finished: Path) -> None:
    held = [(finished / f"weights-{rank}.txt").read_text().splitlines() for rank in range(2)]
    assert held[0] == held[1]
    assert len(set(held[0])) == 8


def log_of(output: Path) -> str:
    return (output / "training.log").read_text()


def gaps(ours: Path, theirs: Path) -> dict[str, float]:
    """Adam turns rounding of a zero gradient into full steps, so the attention's key biases are left out."""
    left, right = weights(ours), weights(theirs)
    return {name: float((left[name] - right[name]).abs().max()) for name in right if "k_proj.bias" not in name}


def test_two_processes_end_with_the_weights_of_one(recipe: Path, finished: Path, tmp_path: Path) -> None:
    assert train_in_child(recipe, tmp_path) == 0
    assert max(gaps(finished / "checkpoint-8", tmp_path / "checkpoint-8").values()) < 1e-4
    states = [json.loads((folder / "trainer_state.json").read_text())["log_history"] for folder in (finished, tmp_path)]
    for key in ("eval_loss", "loss"):
        ours, theirs = ([entry[key] for entry in state if key in entry] for state in states)
        assert ours == pytest.approx(theirs, abs=1e-4)


def kill_before_step(step: int, ranks: tuple[int, ...], rank: int) -> None:
    original = StageTrainer.training_step

    def training_step(self: StageTrainer, *args: object, **kwargs: object) -> torch.Tensor:
        if self.state.global_step == step and rank in ranks:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *args, **kwargs)  # type: ignore[arg-type]

    StageTrainer.training_step = training_step  # type: ignore[method-assign]


def test_both_processes_killed_in_stage_a_end_bit_equal(recipe: Path, finished: Path, tmp_path: Path) -> None:
    codes = train_in_children(recipe, tmp_path, *SAME_STEP, prepare=lambda rank: kill_before_step(5, (0, 1), rank))
    assert codes == [-signal.SIGKILL] * 2
    assert train_in_children(recipe, tmp_path, *SAME_STEP) == [0, 0]
    assert weights_hash(tmp_path / "checkpoint-8") == weights_hash(finished / "checkpoint-8")


def send_to_one(step: int, rank: int) -> None:
    """A signal that only the second process gets."""
    original = StageTrainer.training_step

    def training_step(self: StageTrainer, *args: object, **kwargs: object) -> torch.Tensor:
        if self.state.global_step == step and rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *args, **kwargs)  # type: ignore[arg-type]

    StageTrainer.training_step = training_step  # type: ignore[method-assign]


def test_a_signal_to_one_process_stops_all_at_the_same_step(recipe: Path, finished: Path, tmp_path: Path) -> None:
    assert train_in_children(recipe, tmp_path, *SAME_STEP, prepare=lambda rank: send_to_one(4, rank)) == [143, 143]
    assert (tmp_path / "checkpoint-5" / "COMPLETE.json").exists()
    assert train_in_children(recipe, tmp_path, *SAME_STEP) == [0, 0]
    assert weights_hash(tmp_path / "checkpoint-8") == weights_hash(finished / "checkpoint-8")


def send_to_one_while_it_evaluates(rank: int) -> None:
    original = dev_set.transcribe
    sent: list[int] = []

    def transcribe(*arguments: Any, **named: Any) -> Any:
        if rank == 1 and not sent:
            sent.append(rank)
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments, **named)

    dev_set.transcribe = transcribe


@pytest.mark.slow
def test_a_signal_to_one_process_that_evaluates_stops_all_at_the_same_batch(
    recipe: Path, finished: Path, tmp_path: Path
) -> None:
    flags = (*SAME_STEP, "--max-wer-utterances", "4", "--eval-batch-size", "1", "--overwrite-recipe")
    assert train_in_children(recipe, tmp_path, *flags, prepare=send_to_one_while_it_evaluates) == [143, 143]
    assert (tmp_path / "checkpoint-3" / "COMPLETE.json").exists()
    assert train_in_children(recipe, tmp_path, *flags) == [0, 0]
    assert weights_hash(tmp_path / "checkpoint-8") == weights_hash(finished / "checkpoint-8")


def unfreeze_after_wrapping(rank: int) -> None:
    """The classic mistake: a layer begins to train inside a DDP wrapper that does not know it."""
    from caspi.model.training.flow import StageFlow

    original = StageFlow.on_train_begin

    def on_train_begin(self: StageFlow, *args: object, **kwargs: object) -> None:
        original(self, *args, **kwargs)
        if self.trainer.state.global_step == 0:
            late = [p for name, p in self.trainer.run.model.named_parameters() if "audio_tower.layers.2" in name]
            for parameter in late:
                parameter.requires_grad_(True)
            group = {"params": late, "param_names": [f"late{i}" for i in range(len(late))], "lr": 0.0}
            self.trainer.own_optimizer.add_param_group({**group, "layer_group": "projector"})

    StageFlow.on_train_begin = on_train_begin  # type: ignore[method-assign]


def test_weights_that_go_apart_are_never_saved(recipe: Path, tmp_path: Path) -> None:
    codes = train_in_children(recipe, tmp_path, *SAME_STEP, prepare=unfreeze_after_wrapping)
    assert codes == [3, 3]
    assert "the processes hold different weights" in log_of(tmp_path)
    assert not list(tmp_path.glob("checkpoint-*"))


def thaw_in_place(rank: int) -> None:
    """A frozen weight that something changes."""
    original = StageTrainer.training_step

    def training_step(self: StageTrainer, *args: object, **kwargs: object) -> torch.Tensor:
        if self.state.global_step == 1:
            with torch.no_grad():
                next(self.run.model.model.audio_tower.parameters())[0] += 1e-3
        return original(self, *args, **kwargs)  # type: ignore[arg-type]

    StageTrainer.training_step = training_step  # type: ignore[method-assign]


def test_frozen_weights_that_move_are_never_saved(recipe: Path, tmp_path: Path) -> None:
    assert train_in_child(recipe, tmp_path, prepare=lambda: thaw_in_place(0)) == 3
    assert "is frozen, but has changed" in log_of(tmp_path)
    assert not list(tmp_path.glob("checkpoint-*"))


def start(recipe: Path, output: Path, *flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "caspi", "train", "--recipe", str(recipe), "--output-dir", str(output), *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )


def wait_for_step(process: subprocess.Popen[str], step: int) -> None:
    assert process.stdout
    for line in process.stdout:
        if f"[Step {step}/" in line:
            return
    raise AssertionError(f"the run ended with {process.wait()} before step {step}")


def test_ctrl_c_reaches_all_processes_of_one_command(recipe: Path, tmp_path: Path) -> None:
    process = start(recipe, tmp_path, *SAME_STEP, "--num-processes", "2")
    wait_for_step(process, 2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert errors == ""
    record = json.loads((tmp_path / "run.json").read_text())
    assert (record["state"], record["num_processes"]) == ("interrupted", 2)
    assert list(tmp_path.glob("checkpoint-*/COMPLETE.json"))


@pytest.mark.slow
def test_sigterm_reaches_all_processes_of_one_command(recipe: Path, finished: Path, tmp_path: Path) -> None:
    process = start(recipe, tmp_path, *SAME_STEP, "--num-processes", "2")
    wait_for_step(process, 2)
    process.terminate()
    process.communicate()
    assert process.returncode == 143
    assert train_in_children(recipe, tmp_path, *SAME_STEP) == [0, 0]
    assert weights_hash(tmp_path / "checkpoint-8") == weights_hash(finished / "checkpoint-8")


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def has_ended(pid: int) -> bool:
    """A zombie has ended, too; its parent just has not noticed."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    except FileNotFoundError:
        return True


def wait_until_ended(pids: list[int], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not all(map(has_ended, pids)):
        assert time.monotonic() < deadline, f"{pids} go on"
        time.sleep(0.1)


@pytest.mark.slow
def test_a_process_that_dies_ends_the_run_with_one_line_and_the_command_goes_on(
    recipe: Path, finished: Path, tmp_path: Path
) -> None:
    process = start(recipe, tmp_path, *SAME_STEP, "--num-processes", "2")
    wait_for_step(process, 4)
    os.kill(workers_of(process)[-1], signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == 3
    assert "was killed by SIGKILL" in errors.splitlines()[-1]
    assert "the same command goes on" in errors.splitlines()[-1]
    assert train_in_children(recipe, tmp_path, *SAME_STEP) == [0, 0]
    assert weights_hash(tmp_path / "checkpoint-8") == weights_hash(finished / "checkpoint-8")


@pytest.mark.slow
def test_no_process_outlives_a_launcher_that_is_killed(recipe: Path, tmp_path: Path) -> None:
    process = start(recipe, tmp_path, *SAME_STEP, "--num-processes", "2")
    wait_for_step(process, 1)
    workers = workers_of(process)
    assert len(workers) == 2
    process.kill()
    wait_until_ended(workers)


@pytest.mark.slow
def test_a_second_ctrl_c_ends_all_processes_at_once(recipe: Path, tmp_path: Path) -> None:
    stages = ("--stages.0.num-epochs", "500", "--eval-steps", "100000")
    process = start(recipe, tmp_path, *SAME_STEP, *stages, "--num-processes", "2")
    wait_for_step(process, 1)
    workers = workers_of(process)
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)  # so that they cannot save
    process.send_signal(signal.SIGINT)
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 130
    wait_until_ended(workers)
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.slow
def test_an_error_of_the_processes_is_the_commands_error(recipe: Path, tmp_path: Path) -> None:
    process = start(recipe, tmp_path, *SAME_STEP, "--num-processes", "2", "--max-first-loss", "1")
    _, errors = process.communicate()
    assert process.returncode == 3
    assert "the loss before step 1 is" in errors
