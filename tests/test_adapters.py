"""LoRA on the frozen attention: nothing at first, exact when merged, and one more thing that survives a kill."""

import os
import signal
from pathlib import Path

import pytest
import torch
from tiny_training import NUM_STEPS, build_inputs, train, train_in_child, weights, weights_hash

from caspi.cli import main
from caspi.model.checkpoints.checkpoint import load_asr, save_asr
from caspi.model.tiny import build_tiny_asr
from caspi.model.training.adapters import ADAPTER_FILE, Adapters
from caspi.model.training.layers import LORA, assign_groups, frozen_attention
from caspi.model.training.trainer import StageTrainer

LORA_FLAGS = ("--lora-rank", "4", "--lora-learning-rate", "1e-2")
ADAPTED = {f"model.language_model.layers.0.self_attn.{part}_proj.weight" for part in "qkvo"}
"""The tiny model has three LLM layers, of which the recipe trains two."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def finished(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("finished")
    assert train_in_child(recipe, output, *LORA_FLAGS, "--save-total-limit", "9") == 0
    return output


def logits(model: torch.nn.Module) -> torch.Tensor:
    ids = torch.arange(12)[None] + 30
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids).logits
    return found


def test_the_adapted_matrices_are_the_attention_of_the_frozen_layers() -> None:
    model, _ = build_tiny_asr()
    assert set(frozen_attention(model, 2)) == ADAPTED
    assert len(frozen_attention(model, 1)) == 8
    with pytest.raises(ValueError, match="no LLM layer is left for LoRA"):
        frozen_attention(model, 3)


def test_new_adapters_change_nothing_and_are_a_group_of_their_own() -> None:
    model, _ = build_tiny_asr()
    before = logits(model)
    plain = {name for name, _ in model.named_parameters()}
    adapters = Adapters(model, 2, rank=4, alpha=32.0, seed=1)
    assert torch.equal(logits(model), before)
    assigned = assign_groups(model, 2, 1)
    assert {name for name, group in assigned.items() if group == LORA} == set(adapters.tensors())
    assert len(adapters.tensors()) == 8
    assert sum(tensor.numel() for tensor in adapters.tensors().values()) == 4 * (4 * 96 + 2 * 96 + 2 * 32)
    adapters.remove()
    assert {name for name, _ in model.named_parameters()} == plain


def test_adapters_of_one_seed_are_the_same_and_of_another_are_not() -> None:
    made = [Adapters(build_tiny_asr()[0], 2, rank=4, alpha=32.0, seed=seed).tensors() for seed in (1, 1, 2)]
    first = next(name for name in made[0] if "lora_A" in name)
    assert torch.equal(made[0][first], made[1][first])
    assert not torch.equal(made[0][first], made[2][first])


def test_the_merged_model_computes_the_same_and_comes_apart_again(tmp_path: Path) -> None:
    model, processor = build_tiny_asr()
    untouched = {name: p.detach().clone() for name, p in model.named_parameters()}
    adapters = Adapters(model, 2, rank=4, alpha=32.0, seed=1)
    for name, tensor in adapters.tensors().items():
        if "lora_B" in name:
            tensor += torch.randn(tensor.shape, generator=torch.Generator().manual_seed(3)) * 0.1
    beside = logits(model)
    with adapters.merged():
        save_asr(model, processor, tmp_path)
        assert torch.allclose(logits(model), beside, atol=1e-4)
    assert torch.equal(logits(model), beside)
    again, _ = load_asr(tmp_path)
    assert torch.allclose(logits(again), beside, atol=1e-4)
    changed = {name for name, p in again.named_parameters() if not torch.equal(p, untouched[name])}
    assert changed == ADAPTED
    adapters.remove()
    assert all(torch.equal(p, untouched[name]) for name, p in model.named_parameters())


def test_a_run_with_adapters_changes_the_frozen_attention_and_nothing_else_that_is_frozen(
    recipe: Path, finished: Path
) -> None:
    base, last = weights(recipe.parent / "base"), weights(finished / f"checkpoint-{NUM_STEPS}")
    assert base.keys() == last.keys()
    frozen = [n for n in base if n.startswith(("model.language_model.layers.0.", "model.audio_tower.layers.0."))]
    assert {name for name in frozen if not torch.equal(base[name], last[name])} == ADAPTED
    log = (finished / "training.log").read_text()
    assert "LoRA: rank 4, alpha 32 on 4 attention matrices of frozen LLM layers adds 2,560 parameters" in log
    assert "lora           : LR=1e-02, tensors=8" in log


def test_a_killed_run_with_adapters_ends_bit_equal(recipe: Path, finished: Path, tmp_path: Path) -> None:
    def kill() -> None:
        original = StageTrainer.training_step

        def training_step(self: StageTrainer, *args: object, **kwargs: object) -> torch.Tensor:
            if self.state.global_step == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(self, *args, **kwargs)  # type: ignore[arg-type]

        StageTrainer.training_step = training_step  # type: ignore[method-assign]

    assert train_in_child(recipe, tmp_path, *LORA_FLAGS, prepare=kill) == -signal.SIGKILL
    assert train_in_child(recipe, tmp_path, *LORA_FLAGS) == 0
    last = f"checkpoint-{NUM_STEPS}"
    assert weights_hash(tmp_path / last) == weights_hash(finished / last)
    assert (tmp_path / last / ADAPTER_FILE).read_bytes() == (finished / last / ADAPTER_FILE).read_bytes()


def test_a_resume_with_another_rank_is_refused(
    recipe: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(recipe, finished, "--lora-rank", "8", "--lora-learning-rate", "1e-2") == 2
    assert "lora_rank: 4 -> 8" in capsys.readouterr().err


def test_a_run_with_adapters_is_exported_merged(recipe: Path, finished: Path, tmp_path: Path) -> None:
    flags = ["--run-dir", str(finished), "--output", str(tmp_path / "export"), "--dtype", "float32"]
    assert main(["export", *flags]) == 0
    model, _ = load_asr(tmp_path / "export" / "hf")
    base, _ = load_asr(recipe.parent / "base")
    theirs = dict(base.named_parameters())
    assert {name for name, p in model.named_parameters() if not torch.equal(p, theirs[name])} >= ADAPTED
