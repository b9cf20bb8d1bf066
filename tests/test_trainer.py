"""One step of the trainer is one step of plain PyTorch; the switch of stages changes nothing but what trains."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tiny_steps import build_trainer, gradients, step_batch
from tiny_training import NUM_STEPS, STEPS_PER_EPOCH, build_inputs
from torch.nn.functional import cross_entropy

from caspi.config import Recipe, Stage, Train, load_recipe
from caspi.model.packed.batch import PackedBatch
from caspi.model.training.batch import Example, Part
from caspi.model.training.gradients import Gradients
from caspi.model.training.optimizer import build_optimizer, load_optimizer, named_parameters, save_optimizer
from caspi.model.training.stages import LearningRates, span_at, stage_spans
from caspi.model.training.trainer import StageTrainer

GROUPS_B = ("projector", "llm_top", "lm_head")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return load_recipe(build_inputs(tmp_path_factory.mktemp("inputs")))


def plain_gradients(trainer: StageTrainer, indices: Sequence[int]) -> tuple[float, dict[str, torch.Tensor]]:
    """The stock class, one clip at a time, the loss written by hand: sum of -log p over targets, over their number."""
    run, model = trainer.run, trainer.run.model
    dataset = run.dataset()
    examples = [dataset[(0, index)] for index in indices]
    num_targets = sum(len(example.target_ids) for example in examples if isinstance(example, Example))
    model.zero_grad()
    total = torch.zeros(())
    for example in examples:
        assert isinstance(example, Example)
        batch = run.encoder.batch([example])
        keys = ("input_ids", "attention_mask", "input_features", "input_features_mask")
        logits = model(**{key: batch[key] for key in keys}).logits[0]
        targets = torch.tensor(example.target_ids)
        total = total + cross_entropy(logits[-len(targets) - 1 : -1], targets, reduction="sum")
    (total / num_targets).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return float(total.detach()) / num_targets, found


@pytest.mark.parametrize("span_index", [0, 1])
@pytest.mark.parametrize(
    ("batch_size", "changes", "num_parts"),
    [
        *((size, {"step": "padded"}, 6 // size) for size in (1, 2, 3, 6)),
        (6, {}, 1),
        (6, {"token_budget": 100}, 3),
        (6, {"token_budget": 1}, 6),
    ],
)
def test_loss_and_gradients_are_those_of_a_plain_step_whatever_the_parts(
    recipe: Recipe, tmp_path: Path, span_index: int, batch_size: int, changes: dict[str, object], num_parts: int
) -> None:
    trainer = build_trainer(recipe, tmp_path, span_index, batch_size, **changes)
    step = step_batch(trainer, span_index, 1)
    assert len(step.parts) == num_parts
    loss, ours = gradients(trainer, step)
    plain_loss, plain = plain_gradients(trainer, trainer.run.plan.step(span_index, 1))
    assert loss == pytest.approx(plain_loss, abs=1e-5)
    assert ours.keys() == plain.keys()
    assigned = trainer.run.assigned
    assert {assigned[name] for name in ours} == set(trainer.span.stage.learning_rates)
    for name in plain:
        assert torch.allclose(ours[name], plain[name], atol=1e-5), name


def test_the_optimizer_step_is_that_of_plain_adamw(recipe: Recipe, tmp_path: Path) -> None:
    trainer = build_trainer(recipe, tmp_path, 0)
    before = {name: p.detach().clone() for name, p in trainer.run.model.named_parameters()}
    _, found = gradients(trainer, step_batch(trainer, 0, 0))
    trainer.own_optimizer.step()
    rates = trainer.used_rates
    for name, parameter in trainer.run.model.named_parameters():
        if name not in found:
            assert torch.equal(parameter, before[name]), name
            continue
        group = trainer.run.assigned[name]
        decays = group != "lm_head" and parameter.dim() == 2
        # The first step of Adam: mean and root of the second moment are the gradient and its size.
        update = found[name] / (found[name].abs() + 1e-8) + (0.01 * before[name] if decays else 0)
        assert torch.allclose(parameter, before[name] - rates[group] * update, atol=1e-6), name


def test_no_norm_bias_or_tied_matrix_decays(recipe: Recipe, tmp_path: Path) -> None:
    trainer = build_trainer(recipe, tmp_path, 1)
    decaying = {
        name for group in trainer.own_optimizer.param_groups if group["weight_decay"] for name in group["param_names"]
    }
    assert decaying
    assert all(name.endswith("weight") and "norm" not in name and "embed" not in name for name in decaying)
    still = set(named_parameters(trainer.own_optimizer)) - decaying
    assert all(name.endswith("bias") or "norm" in name or "embed" in name for name in still)


def test_the_switch_keeps_the_moments_of_continuing_parameters_and_starts_new_ones_fresh(
    recipe: Recipe, tmp_path: Path
) -> None:
    trainer = build_trainer(recipe, tmp_path, 0)
    gradients(trainer, step_batch(trainer, 0, 0))
    trainer.own_optimizer.step()
    save_optimizer(trainer.own_optimizer, tmp_path)
    old = {name: trainer.own_optimizer.state[p] for name, p in named_parameters(trainer.own_optimizer).items()}

    after = build_trainer(recipe, tmp_path, 1)
    after.state.global_step = STEPS_PER_EPOCH
    after._load_optimizer_and_scheduler(str(tmp_path))
    for name, parameter in named_parameters(after.own_optimizer).items():
        state = after.own_optimizer.state.get(parameter, {})
        if after.run.assigned[name] == "audio_top":
            assert not state
        else:
            assert all(torch.equal(state[key], old[name][key]) for key in ("step", "exp_avg", "exp_avg_sq")), name


def test_the_loss_of_a_batch_is_the_same_before_and_after_the_switch(recipe: Recipe, tmp_path: Path) -> None:
    trainer = build_trainer(recipe, tmp_path, 0)
    step = step_batch(trainer, 0, 2)
    before, _ = gradients(trainer, step)
    after = StageTrainer(trainer.run, trainer.run.spans[1])
    after.create_optimizer()
    after.state.global_step = STEPS_PER_EPOCH
    assert gradients(after, step)[0] == before


def test_state_that_belongs_to_other_parameters_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    trainer = build_trainer(recipe, tmp_path, 0)
    gradients(trainer, step_batch(trainer, 0, 0))
    trainer.own_optimizer.step()
    save_optimizer(trainer.own_optimizer, tmp_path)
    later = build_trainer(recipe, tmp_path, 1)
    with pytest.raises(ValueError, match=r"lacks step, exp_avg, exp_avg_sq of model\.audio_tower"):
        load_optimizer(later.own_optimizer, tmp_path, lambda name: False)
    (tmp_path / "optimizer.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="cannot be read"):
        load_optimizer(trainer.own_optimizer, tmp_path, lambda name: False)


def test_both_stages_build_optimizers_whose_parameters_are_the_trainable_ones(recipe: Recipe, tmp_path: Path) -> None:
    for index in (0, 1):
        trainer = build_trainer(recipe, tmp_path, index)
        optimizer = build_optimizer(trainer.run.model, trainer.run.assigned, weight_decay=0.1, beta2=0.99)
        trainable = {name for name, p in trainer.run.model.named_parameters() if p.requires_grad}
        assert named_parameters(optimizer).keys() == trainable


@pytest.mark.parametrize(("step", "clips_tried"), [("padded", [6, 3, 1]), ("packed", [6, 2, 1])])
def test_the_probe_halves_parts_until_the_longest_clips_fit_and_leaves_no_trace(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, clips_tried: list[int]
) -> None:
    trainer = build_trainer(recipe, tmp_path, 0, batch_size=6, step=step)
    before = {name: p.detach().clone() for name, p in trainer.run.model.named_parameters()}
    original, seen = Gradients.loss_of, []

    def loss_of(self: Gradients, model: torch.nn.Module, part: Part, num_items: object) -> torch.Tensor:
        _, num_clips = self.run.parts.sizes(part)
        frames = part.sizes[0].num_frames if isinstance(part, PackedBatch) else part["input_features"].shape[-1]
        seen.append((num_clips, frames))
        if num_clips > 1:
            raise torch.cuda.OutOfMemoryError("planted")
        return original(self, model, part, num_items)

    monkeypatch.setattr(Gradients, "loss_of", loss_of)
    random_state = torch.get_rng_state()
    trainer.gradients.fit_memory()
    assert [clips for clips, _ in seen] == clips_tried
    longest_frames = max(int(item.duration * 100) for item in trainer.run.utterances)
    assert all(frames >= longest_frames for _, frames in seen)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(p.grad is None and torch.equal(p, before[name]) for name, p in trainer.run.model.named_parameters())
    assert not trainer.own_optimizer.state


ROUND_2 = Train()
SPANS = stage_spans(ROUND_2.stages, steps_per_epoch=1150)


def test_the_stages_of_round_2_lie_where_the_guide_says() -> None:
    assert [(span.stage.name, span.first_step, span.last_step) for span in SPANS] == [("B", 0, 2300), ("A", 2300, 5750)]
    assert [(span.first_epoch_number, span.last_epoch_number) for span in SPANS] == [(1, 2), (3, 5)]
    found = [span_at(SPANS, step) for step in (0, 2299, 2300, 5749)]
    assert [span.stage.name for span in found if span] == ["B", "B", "A", "A"]
    assert span_at(SPANS, 5750) is None


@pytest.mark.parametrize(
    ("step", "span", "expected"),
    [
        (0, 0, {"projector": 2e-4 / 500, "llm_top": 5e-5 / 500, "lm_head": 1e-4 / 500}),
        (249, 0, {"projector": 1e-4, "llm_top": 2.5e-5, "lm_head": 5e-5}),
        (499, 0, {"projector": 2e-4, "llm_top": 5e-5, "lm_head": 1e-4}),
        (2299, 0, {"projector": 2e-4, "llm_top": 5e-5, "lm_head": 1e-4}),
        (2300, 1, {"projector": 1e-4, "audio_top": 3e-7, "llm_top": 3e-5, "lm_head": 1e-4}),
        (2349, 1, {"projector": 1e-4, "audio_top": 1.5e-5, "llm_top": 3e-5, "lm_head": 1e-4}),
        (2399, 1, {"projector": 1e-4, "audio_top": 3e-5, "llm_top": 3e-5, "lm_head": 1e-4}),
        (5749, 1, {"projector": 1e-4, "audio_top": 3e-5, "llm_top": 3e-5, "lm_head": 1e-4}),
    ],
)
def test_learning_rates_of_round_2_by_group_and_step(step: int, span: int, expected: dict[str, float]) -> None:
    assert LearningRates(ROUND_2, SPANS).of_stage(SPANS[span], step) == pytest.approx(expected)


def test_the_cosine_falls_to_zero_over_the_whole_run() -> None:
    rates = LearningRates(ROUND_2.model_copy(update={"lr_schedule": "cosine"}), SPANS)
    half = 500 + (5750 - 500) // 2
    assert rates.of_stage(SPANS[1], half)["lm_head"] == pytest.approx(1e-4 * 0.5)
    assert rates.of_stage(SPANS[0], 499)["lm_head"] == pytest.approx(1e-4)
    assert rates.of_stage(SPANS[1], 5749)["lm_head"] == pytest.approx(1e-4 * (math.pi / 5250 / 2) ** 2, rel=1e-3)


def test_audio_is_decoded_by_the_cores_beside_a_gpu_and_by_the_process_itself_on_a_cpu() -> None:
    assert [ROUND_2.loader_workers(num_cores=cores, num_gpus=gpus) for cores, gpus in ((64, 0), (2, 0))] == [0, 0]
    assert [ROUND_2.loader_workers(num_cores=cores, num_gpus=2) for cores in (2, 12, 64)] == [1, 5, 8]
    assert Train(num_loader_workers=3).loader_workers(num_cores=64, num_gpus=2) == 3


def test_no_warm_up_is_possible() -> None:
    train = Train(
        warmup_steps=0, rewarmup_steps=0, stages=(Stage(name="X", num_epochs=1, learning_rates={"projector": 1e-3}),)
    )
    spans = stage_spans(train.stages, steps_per_epoch=NUM_STEPS)
    assert LearningRates(train, spans).of_stage(spans[0], 0) == {"projector": 1e-3}
