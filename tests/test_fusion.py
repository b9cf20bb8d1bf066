"""Compiled and checkpointed blocks compute what plain ones do, and compile no more once a run has warmed up."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_steps import build_trainer, gradients, step_batch
from tiny_training import build_inputs, train
from torch._dynamo.utils import counters

from caspi.config import Plan, Recipe, Train, load_recipe
from caspi.model.training.batch import Example
from caspi.model.training.fusion import uncompiled
from caspi.model.training.memory import plan_memory
from caspi.model.training.trainer import StageTrainer

RELATIVE = 1e-5
NUM_WARM_UP_STEPS, NUM_STEPS = 3, 12


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return load_recipe(build_inputs(tmp_path_factory.mktemp("inputs")))


def relative_gap(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    return max(
        float((ours[name] - theirs[name]).norm() / theirs[name].norm()) for name in theirs if "k_proj.bias" not in name
    )


def test_checkpointed_layers_have_the_same_gradients_and_save_less(recipe: Recipe, tmp_path: Path) -> None:
    plain = build_trainer(recipe, tmp_path, 1)
    saving = build_trainer(recipe, tmp_path, 1, num_checkpointed_llm_layers=1)
    step = step_batch(plain, 1, 0)
    loss, theirs = gradients(plain, step)
    found, ours = gradients(saving, step)
    assert found == loss
    assert relative_gap(ours, theirs) < RELATIVE
    assert saved_bytes(saving) < saved_bytes(plain)


def saved_bytes(trainer: StageTrainer) -> int:
    sizes = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        gradients(trainer, step_batch(trainer, 1, 0))
    return sum(sizes)


@pytest.mark.parametrize(
    ("gigabytes", "expected"),
    [(42.5, 0), (80.0, 0), (24.0, 16)],
    ids=["A100-40GB", "H100", "a 24 GB card"],
)
def test_frozen_layers_are_checkpointed_only_where_a_card_would_hold_too_little(
    gigabytes: float, expected: int
) -> None:
    memory = plan_memory(Train(), Plan(), gigabytes * 1e9, num_gpus=2)
    assert memory.num_checkpointed_llm_layers == expected
    assert memory.token_budget >= (4 * 270 if expected == 0 else 270)
    own = Train(token_budget=700, num_checkpointed_llm_layers=3)
    assert plan_memory(own, Plan(), gigabytes * 1e9, num_gpus=2) == (700, 3)


def test_two_ways_to_fuse_the_same_kernels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"train\.compile and train\.liger replace the same kernels"):
        Train(compile=True, liger=True)


@pytest.mark.parametrize(
    ("flags", "message"),
    [(["--liger"], "needs the package liger-kernel and a GPU"), (["--num-checkpointed-llm-layers", "9"], "has 3 LLM")],
)
def test_what_cannot_be_fused_here_is_one_line(
    flags: list[str],
    message: str,
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "--liger" in flags and importlib.util.find_spec("liger_kernel") and torch.cuda.is_available():
        pytest.skip("liger-kernel works here")
    assert train(build_inputs(tmp_path_factory.mktemp("inputs")), tmp_path, *flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"lora_rank": 4, "lora_learning_rate": 1e-3}], ids=["plain", "lora"])
def test_compiled_blocks_compute_the_same_and_compile_no_more_after_the_warm_up(
    changes: dict[str, object], recipe: Recipe, tmp_path: Path
) -> None:
    """Steps of random clips on one CPU core; the sequence, the clips and their bounds differ in every step."""
    torch.compiler.reset()
    plain, compiled = (build_trainer(recipe, tmp_path, 1, 6, **changes, compile=one) for one in (False, True))
    rng = np.random.default_rng(0)
    examples = [plain.run.dataset()[(0, index)] for index in range(len(plain.run.utterances))]
    num_graphs = 0
    for number in range(NUM_STEPS):
        chosen = rng.choice(len(examples), int(rng.integers(1, 7)), replace=False)
        share = [examples[index] for index in chosen]
        assert all(isinstance(example, Example) for example in share)
        loss, theirs = gradients(plain, plain.run.parts.collator()(share))
        found, ours = gradients(compiled, compiled.run.parts.collator()(share))
        assert found == pytest.approx(loss, rel=RELATIVE)
        assert relative_gap(ours, theirs) < RELATIVE
        if number < NUM_WARM_UP_STEPS:
            num_graphs = counters["stats"]["unique_graphs"]
    assert num_graphs > 0
    assert counters["stats"]["unique_graphs"] == num_graphs
    with uncompiled():
        compiled.run.dev_set.evaluate(compiled.run.model)
    assert counters["stats"]["unique_graphs"] == num_graphs
