"""FSDP2 by a flag: the same training in parts, the same checkpoints, and a run that goes on with or without it."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import (
    NUM_STEPS,
    STEPS_PER_EPOCH,
    build_inputs,
    train,
    train_in_child,
    train_in_children,
    weights,
    weights_hash,
)

from caspi.model.training.optimizer import OPTIMIZER_FILE
from caspi.model.training.sharding import is_sharded
from caspi.model.training.trainer import StageTrainer

FSDP2 = ("--data-parallel", "fsdp2", "--batch-size", "1", "--gradient-accumulation-steps", "3")
DDP = FSDP2[2:]
LAST = f"checkpoint-{NUM_STEPS}"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def finished(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sharded run of two processes that nobody disturbed."""
    output = tmp_path_factory.mktemp("finished")
    flags = (*FSDP2, "--save-total-limit", "9")
    assert train_in_children(recipe, output, *flags, prepare=lambda rank: look_at_parts(output)) == [0, 0]
    return output


def look_at_parts(output: Path) -> None:
    """Count, while training, the weights and moments that a process holds."""
    original = StageTrainer.training_step

    def training_step(self: StageTrainer, *args: object, **kwargs: object) -> torch.Tensor:
        found = original(self, *args, **kwargs)  # type: ignore[arg-type]
        if self.state.global_step == STEPS_PER_EPOCH + 1:
            assert is_sharded(self.run.model)
            local = sum(p.to_local().numel() for p in self.run.model.parameters())  # type: ignore[attr-defined]
            states = [state["exp_avg"].to_local().numel() for state in self.own_optimizer.state.values()]
            rank = os.environ["RANK"]
            (output / f"parts-{rank}.json").write_text(json.dumps([local, sum(states)]))
        return found

    StageTrainer.training_step = training_step  # type: ignore[method-assign]


def gaps(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Adam turns rounding of a zero gradient into full steps, so the attention's key biases are left out."""
    assert ours.keys() == theirs.keys()
    names = [name for name in theirs if "k_proj.bias" not in name]
    return max(float((ours[name] - theirs[name]).abs().max()) for name in names)


def test_each_process_holds_its_part_of_weights_and_moments(finished: Path) -> None:
    held = [json.loads((finished / f"parts-{rank}.json").read_text()) for rank in range(2)]
    total = sum(tensor.numel() for tensor in weights(finished / LAST).values())
    moments = load_file(finished / LAST / OPTIMIZER_FILE)
    num_trained = sum(tensor.numel() for name, tensor in moments.items() if name.endswith("|exp_avg"))
    assert [sum(parts) for parts in zip(*held, strict=True)] == [total, num_trained]
    assert max(held[0][0], held[1][0]) < 0.6 * total


def test_sharded_training_equals_one_process_and_writes_the_same_files(
    recipe: Path, finished: Path, tmp_path: Path
) -> None:
    assert train_in_child(recipe, tmp_path, "--save-total-limit", "9") == 0
    for name in (f"checkpoint-{STEPS_PER_EPOCH}", LAST):
        assert gaps(weights(finished / name), weights(tmp_path / name)) < 1e-4
        ours, theirs = load_file(finished / name / OPTIMIZER_FILE), load_file(tmp_path / name / OPTIMIZER_FILE)
        assert {key: tensor.shape for key, tensor in ours.items()} == {key: t.shape for key, t in theirs.items()}
        assert files_of(finished / name) == files_of(tmp_path / name)
    history = [json.loads((folder / LAST / "trainer_state.json").read_text()) for folder in (finished, tmp_path)]
    losses = [[entry["loss"] for entry in one["log_history"] if "loss" in entry] for one in history]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def files_of(folder: Path) -> set[str]:
    """But the state of the random generators, of which each process has a file."""
    return {path.name for path in folder.iterdir() if not path.name.startswith("random-")}


def kill_before_step(step: int) -> None:
    original = StageTrainer.training_step

    def training_step(self: StageTrainer, *args: object, **kwargs: object) -> torch.Tensor:
        if self.state.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *args, **kwargs)  # type: ignore[arg-type]

    StageTrainer.training_step = training_step  # type: ignore[method-assign]


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, STEPS_PER_EPOCH, 7])
def test_a_killed_sharded_run_ends_bit_equal(step: int, recipe: Path, finished: Path, tmp_path: Path) -> None:
    assert train_in_children(recipe, tmp_path, *FSDP2, prepare=lambda rank: kill_before_step(step)) == [-9, -9]
    assert train_in_children(recipe, tmp_path, *FSDP2) == [0, 0]
    assert weights_hash(tmp_path / LAST) == weights_hash(finished / LAST)
    assert (tmp_path / LAST / OPTIMIZER_FILE).read_bytes() == (finished / LAST / OPTIMIZER_FILE).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(FSDP2, DDP), (DDP, FSDP2)], ids=["to ddp", "to fsdp2"])
def test_a_run_goes_on_with_or_without_sharding(
    before: tuple[str, ...], after: tuple[str, ...], recipe: Path, finished: Path, tmp_path: Path
) -> None:
    assert train_in_children(recipe, tmp_path, *before, prepare=lambda rank: kill_before_step(5)) == [-9, -9]
    assert train_in_children(recipe, tmp_path, *after) == [0, 0]
    assert gaps(weights(tmp_path / LAST), weights(finished / LAST)) < 1e-4


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--data-parallel", "fsdp2"), "there is one: leave it out"),
        (("--data-parallel", "fsdp2", "--lora-rank", "4"), "does not shard adapters"),
    ],
)
def test_what_sharding_cannot_do_is_refused(
    flags: tuple[str, ...], message: str, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(recipe, tmp_path, *flags) == 2
    assert message in capsys.readouterr().err
