"""C2 and C3: operations, host waits and FLOPs of one optimizer step, at full depth and next to no width.

    OMP_NUM_THREADS=1 python -m benchmarks.step_counts

The packed step runs with the attention of GPUs, which on other devices only knows shapes, on tensors without contents;
the stock class needs contents for its bookkeeping and runs for real. Counts do not depend on the width; the FLOPs are
those of the full-size model.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import Qwen3ASRForConditionalGeneration

from benchmarks.baselines import official_loss, stock_loss
from benchmarks.counting import counted, product_flops_of
from benchmarks.measure import markdown_table, write_result
from benchmarks.models import NARROW, config_of, random_model
from benchmarks.packed_clips import padded_batch, random_clips
from benchmarks.workload import TOKENS_PER_SECOND, clip_seconds
from caspi.model.footprint import QWEN3_ASR_1_7B, Shape, training_flops
from caspi.model.packed import attention
from caspi.model.packed.batch import Clip, Packer, split_length
from caspi.model.packed.forward import take_packed_inputs
from caspi.model.training.layers import assign_groups, train_only

GROUPS = {"B": ("projector", "llm_top", "lm_head"), "A": ("projector", "audio_top", "llm_top", "lm_head")}
NUM_LLM_TOP, NUM_AUDIO_TOP = 12, 8
CLIPS_PER_RANK = 64
MICRO_BATCH = 2
NUM_FLOP_CLIPS = 4
RESULT = Path("docs/results/benchmarks/step_counts.json")

Losses = Sequence[Callable[[], torch.Tensor]]


@contextmanager
def attention_of_gpus() -> Iterator[None]:
    """Let the packed step call torch's kernel for GPUs; without one, tensors must be fake."""
    backend = attention.torch_varlen()
    with patch.object(attention, "choose_backend", lambda device_type: backend):
        yield


@contextmanager
def fake_model(shape: Shape, dtype: torch.dtype) -> Iterator[tuple[Qwen3ASRForConditionalGeneration, FakeTensorMode]]:
    """A packed model of any size that takes no memory and computes nothing."""
    with attention_of_gpus(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        model = random_model(shape, "cpu", dtype)
        take_packed_inputs(model)
        yield model, mode


def fake_inputs(mode: FakeTensorMode, packer: Packer, clips: Sequence[Clip]) -> dict[str, Any]:
    inputs = packer.pack(clips).inputs
    return {name: mode.from_tensor(value) if torch.is_tensor(value) else value for name, value in inputs.items()}


def forward_backward(losses: Losses) -> None:
    for loss in losses:
        loss().backward()


def packed_losses(model: Qwen3ASRForConditionalGeneration, inputs: dict[str, Any]) -> Losses:
    return [lambda: model(**inputs, num_items_in_batch=1).loss]


def padded_losses(model: Qwen3ASRForConditionalGeneration, loss: Callable[..., torch.Tensor], clips: Sequence[Clip],
                  packer: Packer) -> Losses:  # fmt: skip
    groups = [clips[first : first + MICRO_BATCH] for first in range(0, len(clips), MICRO_BATCH)]
    return [partial(loss, model, padded_batch(group, packer.chunk_frames), 1) for group in groups]


def stage_of(model: Qwen3ASRForConditionalGeneration, stage: str) -> None:
    train_only(model, assign_groups(model, NUM_LLM_TOP, NUM_AUDIO_TOP), GROUPS[stage])


def count_operations(stage: str, num_clips: int) -> dict[str, dict[str, int]]:
    """Operations and host waits of one step by way to compute it."""
    packer = Packer(config_of(NARROW), pad_id=0, multiple=128)
    seconds = clip_seconds(num_clips, 5.7, seed=6).tolist()
    clips = random_clips(seconds, packer, NARROW.mel_bins, NARROW.vocabulary, seed=6)
    found = {}
    with fake_model(NARROW, torch.float32) as (model, mode):
        stage_of(model, stage)
        inputs = fake_inputs(mode, packer, clips)
        with counted() as counter:
            forward_backward(packed_losses(model, inputs))
        found["ours, packed"] = {"operations": counter.num_operations, "syncs": counter.num_syncs}
    model = random_model(NARROW, "cpu", torch.float32)
    stage_of(model, stage)
    for name, loss in (("stock class, 2 x 32", stock_loss), ("official script, 2 x 32", official_loss)):
        # The loop is the same for every micro-batch but for its windows: two of them stand for all.
        losses = padded_losses(model, loss, clips[: 2 * MICRO_BATCH], packer)
        with counted() as counter:
            forward_backward(losses)
        times = num_clips / MICRO_BATCH / len(losses)
        found[name] = {"operations": round(counter.num_operations * times), "syncs": round(counter.num_syncs * times)}
    return found


def count_flops(stage: str) -> dict[str, float]:
    """Of the full-size packed step: products counted, attention from the lengths of its segments, against the closed
    form that `caspi plan` uses."""
    shape = QWEN3_ASR_1_7B
    packer = Packer(config_of(shape), pad_id=0)
    seconds = clip_seconds(NUM_FLOP_CLIPS, 8.0, seed=7)
    clips = random_clips(seconds.tolist(), packer, shape.mel_bins, shape.vocabulary, seed=7)
    with fake_model(shape, torch.float32) as (model, mode):
        stage_of(model, stage)
        losses = packed_losses(model, fake_inputs(mode, packer, clips))
        counted_flops = product_flops_of(partial(forward_backward, losses))
    counted_flops += round(sum(attention_flops(shape, clip, packer.window_tokens, stage) for clip in clips))
    closed = sum(
        training_flops(
            shape, float(one), TOKENS_PER_SECOND * float(one), set(GROUPS[stage]), NUM_AUDIO_TOP, NUM_LLM_TOP
        )
        for one in seconds
    )
    return {"counted": counted_flops, "closed_form": closed, "ratio": counted_flops / closed}


def attention_flops(shape: Shape, clip: Clip, window_tokens: int, stage: str) -> float:
    """Forward and, where gradients flow, backward at 2.5 times the forward: the kernel computes the scores again."""
    windows = split_length(clip.num_audio, window_tokens)
    audio = 4 * shape.audio_width * sum(length**2 for length in windows)
    text = 2 * shape.query_heads * shape.head_dim * len(clip.input_ids) ** 2
    backward_layers = NUM_AUDIO_TOP if stage == "A" else 0
    return audio * (shape.audio_layers + 2.5 * backward_layers) + text * 3.5 * shape.llm_layers


def run() -> dict[str, Any]:
    result: dict[str, Any] = {"operations": {}, "flops": {}}
    for stage in GROUPS:
        counts = count_operations(stage, CLIPS_PER_RANK)
        ours = counts["ours, packed"]["operations"]
        rows = [
            (name, f"{found['operations']:,}", f"{found['syncs']:,}", f"{found['operations'] / ours:.1f}")
            for name, found in counts.items()
        ]
        print(f"\nstrategy {stage}, {CLIPS_PER_RANK} clips\n")
        print(markdown_table(("step", "operations", "host waits", "times ours"), rows))
        flops = count_flops(stage)
        print(f"\nFLOPs of the full-size packed step: counted / closed form = {flops['ratio']:.4f}")
        result["operations"][stage], result["flops"][stage] = counts, flops
    return result


if __name__ == "__main__":
    write_result(RESULT, run())
