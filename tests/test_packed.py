"""The packed step computes what the padded stock class computes: loss and gradients, in every stage, however split."""

import inspect
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from accelerate.state import AcceleratorState  # type: ignore[import-untyped]
from tiny_steps import build_trainer, gradients
from tiny_training import build_inputs, train_in_child, train_in_children, weights
from torch.nn.functional import scaled_dot_product_attention

from caspi.config import Augmentation, Recipe, load_recipe
from caspi.model.packed.attention import IMPLEMENTATION, Backend, adapt_varlen, choose_backend, try_out
from caspi.model.packed.batch import Clip, Packer, balance, balanced_parts, told_length
from caspi.model.packed.forward import take_packed_inputs
from caspi.model.packed.segments import group_segments, segment_attention
from caspi.model.tiny import build_tiny_asr
from caspi.model.training.batch import Encoder, StepBatch
from caspi.model.training.trainer import StageTrainer
from caspi.records import read_manifest, write_jsonl
from caspi.speech.corpora.audio import write_audio

RELATIVE = 1e-5
LAYOUTS: dict[str, dict[str, Any]] = {
    "whole": {},
    "split": {"token_budget": 300},
    "one by one": {"token_budget": 1},
}
NUM_PARTS = {"whole": 1, "split": 2, "one by one": 6}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "lora": {"lora_rank": 4, "lora_learning_rate": 1e-2},
    "augmented": {
        "augmentation": Augmentation(
            speed_probability=1.0, noise_probability=1.0, num_time_masks=2, num_mel_masks=2, context_probability=1.0
        )
    },
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """The first two clips have 12 and 9 seconds, and so several windows; all have a previous transcript."""
    folder = tmp_path_factory.mktemp("inputs")
    path = build_inputs(folder)
    rows = read_manifest(folder / "manifest.jsonl")
    rng = np.random.default_rng(1)
    for index, seconds in enumerate((12.0, 9.0)):
        write_audio(folder / f"clip{index}.wav", (rng.standard_normal(int(seconds * 16_000)) * 0.1).astype(np.float32))
        rows[index] = rows[index].model_copy(update={"duration": seconds})
    update = {"prev_text": "מה שלומך היום"}
    write_jsonl(
        folder / "manifest.jsonl",
        [row.model_copy(update=update | {"audio_filepath": Path(row.audio_filepath).name}) for row in rows],
    )
    return load_recipe(path)


def relative_gaps(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> dict[str, float]:
    """Of gradients, but of the encoder's key biases: theirs is exactly zero, and rounding."""
    assert ours.keys() == theirs.keys()
    return {
        name: float((ours[name] - theirs[name]).norm() / theirs[name].norm())
        for name in theirs
        if not name.endswith("k_proj.bias") and theirs[name].any()
    }


CASES = [(variant, "whole") for variant in VARIANTS] + [("plain", "split"), ("lora", "one by one")]


@pytest.mark.parametrize(("variant", "layout"), CASES)
@pytest.mark.parametrize("span_index", [0, 1], ids=["B", "A"])
def test_loss_and_gradients_are_those_of_the_padded_step(
    recipe: Recipe, tmp_path: Path, span_index: int, variant: str, layout: str
) -> None:
    changes, limits = VARIANTS[variant], LAYOUTS[layout]
    packed = build_trainer(recipe, tmp_path, span_index, 6, **changes, **limits)
    padded = build_trainer(recipe, tmp_path, span_index, 3, **changes, step="padded")
    loss, ours = gradients(packed, first_clips(packed))
    expected, theirs = gradients(padded, first_clips(padded))
    assert len(packed.run.parts.of_step(first_clips(packed))) == NUM_PARTS[layout]
    assert loss == pytest.approx(expected, rel=RELATIVE)
    gaps = relative_gaps(ours, theirs)
    assert max(gaps.values()) < RELATIVE, max(gaps, key=lambda name: gaps[name])
    assert {packed.run.assigned[name] for name in gaps} == set(packed.span.stage.learning_rates)


def first_clips(trainer: StageTrainer) -> StepBatch:
    dataset = trainer.run.dataset()
    return trainer.run.parts.collator()([dataset[(3, index)] for index in range(6)])


@pytest.mark.parametrize("span_index", [0, 1], ids=["B", "A"])
def test_the_shares_of_two_ranks_add_up_to_the_padded_step_of_one(
    recipe: Recipe, tmp_path: Path, span_index: int
) -> None:
    packed = build_trainer(recipe, tmp_path, span_index)
    padded = build_trainer(recipe, tmp_path, span_index, step="padded")
    whole = first_clips(padded)
    expected, theirs = gradients(padded, whole)
    model, clips = packed.run.model, [packed.run.dataset()[(0, index)] for index in range(6)]
    loss, ours = 0.0, {name: torch.zeros_like(gradient) for name, gradient in theirs.items()}
    for share in balance([packed.run.utterances[index].duration for index in range(6)], 2):
        model.zero_grad()
        step = packed.run.parts.collator()([clips[index] for index in share])
        loss += float(packed.training_step(model, step, torch.tensor(whole.num_target_tokens)))
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                ours[name] += parameter.grad
    assert loss == pytest.approx(expected, rel=RELATIVE)
    gaps = relative_gaps(ours, theirs)
    assert max(gaps.values()) < RELATIVE, max(gaps, key=lambda name: gaps[name])


def test_a_share_without_utterances_carries_no_loss_and_no_gradient(recipe: Recipe, tmp_path: Path) -> None:
    trainer = build_trainer(recipe, tmp_path, 1, 6)
    empty = trainer.run.parts.collator()([])
    loss, found = gradients(trainer, empty)
    assert (loss, empty.num_target_tokens, empty.num_utterances) == (0.0, 0, 0)
    assert {trainer.run.assigned[name] for name in found} == set(trainer.span.stage.learning_rates)
    assert not any(gradient.any() for gradient in found.values())


def test_the_loss_is_the_same_before_and_after_the_switch_to_stage_a(recipe: Recipe, tmp_path: Path) -> None:
    trainer = build_trainer(recipe, tmp_path, 0, 6)
    before, _ = gradients(trainer, first_clips(trainer))
    after = StageTrainer(trainer.run, trainer.run.spans[1])
    after.create_optimizer()
    after.state.global_step = after.span.first_step
    found, gradients_after = gradients(after, first_clips(after))
    assert found == before
    assert any("audio_tower" in name for name in gradients_after)


def test_a_step_of_another_kind_of_input_uses_the_stock_attention_again(recipe: Recipe, tmp_path: Path) -> None:
    trainer = build_trainer(recipe, tmp_path, 1, 6)
    run = trainer.run
    configs = (run.model.model.audio_tower.config, run.model.model.language_model.config)
    padded = run.encoder.padded(run.parts.worst([run.encoder.silence()]))
    before = run.model(**padded).logits
    gradients(trainer, first_clips(trainer))
    assert {config._attn_implementation for config in configs} == {IMPLEMENTATION}
    assert torch.equal(run.model(**padded).logits, before)
    assert {config._attn_implementation for config in configs} == {"sdpa"}


MODEL, PROCESSOR = build_tiny_asr()
PACKER = Packer(MODEL.config, PROCESSOR.tokenizer.pad_token_id)
ENCODER = Encoder(PROCESSOR, "Hebrew")


def clips(*seconds: float) -> list[Clip]:
    rng = np.random.default_rng(3)
    made = [(rng.standard_normal(int(one * 16_000)) * 0.1).astype(np.float32) for one in seconds]
    return [ENCODER.clip(ENCODER.encode(samples, "שלום " * (1 + index % 3))) for index, samples in enumerate(made)]


def test_a_packed_batch_gives_its_clips_back() -> None:
    given = clips(0.6, 3.3, 1.0, 8.7)
    for multiple in (1, 128):
        packer = Packer(MODEL.config, ENCODER.pad_id, multiple)
        for ours, theirs in zip(packer.pack(given).clips(), given, strict=True):
            assert torch.equal(ours.features, theirs.features)
            assert ours[1:] == theirs[1:]


def test_lengths_filled_up_for_the_gpu_change_nothing() -> None:
    take_packed_inputs(MODEL)
    plain = PACKER.pack(clips(0.6, 3.3, 8.7))
    filled = Packer(MODEL.config, ENCODER.pad_id, 128).pack(clips(0.6, 3.3, 8.7))
    inputs = [{name: torch.as_tensor(value) for name, value in batch.inputs.items()} for batch in (plain, filled)]
    assert len(inputs[1]["packed_ids"]) == len(inputs[1]["audio_rows"]) == 256 > len(inputs[0]["packed_ids"])
    assert inputs[1]["cu_seqlens"][-1] == inputs[1]["audio_cu_seqlens"][-1] == 256
    with torch.no_grad():
        losses = [float(MODEL(**batch.inputs, num_items_in_batch=1).loss) for batch in (plain, filled)]
    assert losses[1] == pytest.approx(losses[0], rel=RELATIVE)


@pytest.mark.parametrize("budget", [80, 150, 400, 10_000])
def test_a_split_keeps_every_clip_once_and_the_budget(budget: int) -> None:
    whole = PACKER.pack(clips(0.6, 3.3, 1.0, 8.7, 2.0, 5.0))
    parts = PACKER.split(whole, budget)
    assert sorted(size for part in parts for size in part.sizes) == sorted(whole.sizes)
    assert all(part.num_tokens <= budget or len(part.sizes) == 1 for part in parts)
    if budget >= whole.num_tokens:
        assert parts == [whole]


def test_balance_gives_the_longest_to_whoever_has_least() -> None:
    assert balance([5, 9, 2, 2, 7], 2) == [[1, 2, 3], [4, 0]]
    assert balance([1.0], 3) == [[0], [], []]
    assert balanced_parts([6, 5, 4, 3], 9) == [[0, 3], [1, 2]]
    assert balanced_parts([6, 5, 4], 3) == [[0], [1], [2]]


def test_kernels_are_told_a_longest_clip_that_hardly_ever_changes() -> None:
    assert [told_length(length) for length in (1, 512, 513, 3000)] == [512, 512, 1024, 4096]


def per_segment(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: list[int], causal: bool
) -> torch.Tensor:
    """The definition: each segment by itself."""
    found = []
    for start, end in itertools.pairwise(bounds):
        q, k, v = (tensor[start:end].transpose(0, 1)[None] for tensor in (query, key, value))
        attended = scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
        found.append(attended[0].transpose(0, 1))
    return torch.cat(found)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    "lengths", [[7], [104, 104, 13], [300, 2, 0, 299, 150, 1, 31, 16, 9]], ids=["one", "windows", "mixed"]
)
def test_segments_in_groups_attend_as_each_would_alone(lengths: list[int], causal: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    bounds = [0, *np.cumsum(lengths).tolist()]
    q, k, v = (torch.randn(bounds[-1], heads, 8, generator=generator).requires_grad_() for heads in (4, 2, 2))
    weight = torch.randn(bounds[-1], 4, 8, generator=generator)
    ours = segment_attention(q, k, v, torch.tensor(bounds, dtype=torch.int32), 512, causal, 8**-0.5)
    found = torch.autograd.grad((ours * weight).sum(), (q, k, v))
    theirs = per_segment(q, k, v, bounds, causal)
    expected = torch.autograd.grad((theirs * weight).sum(), (q, k, v))
    assert torch.allclose(ours, theirs, atol=1e-6)
    for left, right in zip(found, expected, strict=True):
        assert torch.allclose(left, right, atol=1e-5)


def test_segments_of_like_length_share_a_call() -> None:
    bounds = tuple(np.cumsum([0, *([104] * 30), 90, 85, 20, 14, 3, 1]).tolist())
    groups, places = group_segments(bounds, torch.device("cpu"))
    assert [group.num_segments for group in groups] == [32, 1, 3]
    assert len(places) == bounds[-1]


def release_2_10(
    q: Any, k: Any, v: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int, is_causal: bool = False
) -> Any:
    return segment_attention(q, k, v, cu_seq_q, max_q, is_causal, q.shape[-1] ** -0.5)


def release_2_11(
    q: Any, k: Any, v: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int, *,
    scale: Any = None, window_size: tuple[int, int] = (-1, -1),
) -> Any:  # fmt: skip
    return segment_attention(q, k, v, cu_seq_q, max_q, window_size == (-1, 0), scale)


def release_2_13(
    q: Any, k: Any, v: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int, *,
    scale: Any = None, window_size: tuple[int, int] = (-1, -1), enable_gqa: bool = False,
) -> Any:  # fmt: skip
    if enable_gqa != (q.shape[1] != k.shape[1]):
        raise ValueError("Expect query and key/value to have the same number of heads")
    return segment_attention(q, k, v, cu_seq_q, max_q, window_size == (-1, 0), scale)


@pytest.mark.parametrize("varlen_attn", [release_2_10, release_2_11, release_2_13])
def test_the_varlen_attention_of_each_release_of_torch_is_called_as_it_wants(varlen_attn: Any) -> None:
    try_out(Backend("stand-in", adapt_varlen(varlen_attn)), torch.device("cpu"))


def test_the_signature_that_this_torch_has_is_one_of_those() -> None:
    from torch.nn.attention.varlen import varlen_attn

    known = [set(inspect.signature(one).parameters) for one in (release_2_10, release_2_11, release_2_13)]
    options = {"is_causal", "window_size", "scale", "enable_gqa"} & set(inspect.signature(varlen_attn).parameters)
    assert any(options == names & {"is_causal", "window_size", "scale", "enable_gqa"} for names in known)


def test_a_kernel_that_computes_something_else_is_refused() -> None:
    def forgets_to_be_causal(*arguments: Any) -> torch.Tensor:
        return segment_attention(*arguments[:5], False, arguments[6])

    with pytest.raises(ValueError, match=r"stand-in is wrong by [\d.]+ on a small example"):
        try_out(Backend("stand-in", forgets_to_be_causal), torch.device("cpu"))


def test_a_machine_without_gpu_packs_in_plain_torch() -> None:
    assert choose_backend("cpu").kernel is segment_attention


def look_ahead() -> None:
    """An attention kernel that is not causal, as a release with other arguments might be."""
    from caspi.model.packed import attention

    def kernel(*arguments: Any) -> torch.Tensor:
        return segment_attention(*arguments[:5], False, arguments[6])

    attention.choose_backend = lambda device_type: Backend("wrong", kernel)  # type: ignore[assignment]


def test_a_packed_step_that_is_not_the_stock_one_stops_before_training(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    recipe = build_inputs(tmp_path_factory.mktemp("run"))
    assert train_in_child(recipe, tmp_path, prepare=look_ahead) == 3
    log = (tmp_path / "training.log").read_text()
    assert "the packed step computes a loss of" in log
    assert "--step padded" in log
    assert not list(tmp_path.glob("checkpoint-*"))


SAME_STEP = ("--batch-size", "1", "--gradient-accumulation-steps", "3")


def test_packed_and_padded_runs_end_with_the_same_weights_on_one_process_and_two(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    recipe = build_inputs(tmp_path_factory.mktemp("run"))
    assert train_in_child(recipe, tmp_path / "padded", "--step", "padded") == 0
    assert train_in_child(recipe, tmp_path / "packed", "--token-budget", "150") == 0
    assert train_in_children(recipe, tmp_path / "two", *SAME_STEP) == [0, 0]
    theirs = weights(tmp_path / "padded" / "checkpoint-8")
    for name in ("packed", "two"):
        ours = weights(tmp_path / name / "checkpoint-8")
        # Adam turns rounding of a zero gradient into full steps, so the attention's key biases are left out.
        gaps = [float((ours[key] - theirs[key]).abs().max()) for key in theirs if "k_proj.bias" not in key]
        assert max(gaps) < 1e-4


def test_under_autocast_logits_stay_in_16_bits_and_the_loss_does_not() -> None:
    """What a stage does on a GPU, on a CPU's autocast."""
    model, _ = build_tiny_asr()
    take_packed_inputs(model)
    inputs = PACKER.pack(clips(0.6, 3.3)).inputs
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    wrapped = accelerator.prepare_model(model)
    accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
    with accelerator.autocast():
        output = wrapped(**inputs)
    assert (output.logits.dtype, output.loss.dtype) == (torch.bfloat16, torch.float32)
    exact = model(**inputs)
    assert float(output.loss) == pytest.approx(float(exact.loss), rel=0.02)
    AcceleratorState._reset_state(reset_partial_state=True)  # later tests train in 32 bits
