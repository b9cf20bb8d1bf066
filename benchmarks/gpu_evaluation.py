"""G9: evaluation inside training: teacher-forced loss packed and padded, greedy decoding in large and small batches."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.gpu_training import Bench, packed_loss
from benchmarks.measure import alternate, ratios
from benchmarks.packed_clips import padded_batch, random_clips
from benchmarks.workload import clip_seconds
from caspi.model.packed.batch import Clip

NUM_LOSS_CLIPS = 3_700
NUM_DECODED_CLIPS = 512
NUM_BASELINE_CLIPS = 64
"""The slow baselines see this many; their time is scaled up."""
SMALL_BATCH, LARGE_BATCH = 2, 64
NEW_TOKENS = 24


@torch.no_grad()
def packed_loss_of(bench: Bench, clips: Sequence[Clip], token_budget: int) -> float:
    total = torch.zeros((), device=bench.device)
    for part in bench.packer.split(bench.packer.pack(clips), token_budget):
        with torch.autocast(bench.device, dtype=torch.bfloat16, enabled=bench.on_gpu):
            total += packed_loss(bench.model, bench.moved(part.inputs), 1)
    return float(total) / sum(clip.num_targets for clip in clips)


@torch.no_grad()
def padded_loss_of(bench: Bench, clips: Sequence[Clip], size: int) -> float:
    total = torch.zeros((), device=bench.device)
    for first in range(0, len(clips), size):
        batch = bench.moved(padded_batch(clips[first : first + size], bench.packer.chunk_frames))
        with torch.autocast(bench.device, dtype=torch.bfloat16, enabled=bench.on_gpu):
            total += bench.model(**batch, use_cache=False, num_items_in_batch=1).loss
    return float(total) / sum(clip.num_targets for clip in clips)


@torch.no_grad()
def decode(bench: Bench, clips: Sequence[Clip], size: int) -> None:
    """The prompts only, padded on the left as decoding needs, longest clips first; exactly `NEW_TOKENS` each."""
    model: Any = bench.model
    ordered = sorted(clips, key=lambda clip: -clip.features.shape[1])
    for first in range(0, len(ordered), size):
        chosen = ordered[first : first + size]
        batch = padded_batch(chosen, bench.packer.chunk_frames)
        prompts = [torch.tensor(clip.input_ids[: -clip.num_targets]) for clip in chosen]
        batch["input_ids"] = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True, padding_side="left")
        ones = [torch.ones_like(prompt) for prompt in prompts]
        batch["attention_mask"] = torch.nn.utils.rnn.pad_sequence(ones, batch_first=True, padding_side="left")
        del batch["labels"]
        with torch.autocast(bench.device, dtype=torch.bfloat16, enabled=bench.on_gpu):
            model.generate(**bench.moved(batch), do_sample=False, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS)


def evaluation_figures(bench: Bench, token_budget: int, scale: float, num_rounds: int) -> dict[str, Any]:
    """`scale`: share of the clips, below 1 for a rehearsal."""
    bench.model.eval()
    numbers = [max(2, round(scale * number)) for number in (NUM_LOSS_CLIPS, NUM_DECODED_CLIPS, NUM_BASELINE_CLIPS)]
    num_loss, num_decoded, num_baseline = numbers
    seconds = clip_seconds(max(num_loss, num_decoded), 5.7, seed=9).tolist()
    clips = random_clips(seconds, bench.packer, bench.shape.mel_bins, bench.shape.vocabulary, seed=9)
    few = clips[:num_baseline]
    losses = {
        "packed, all clips": partial(packed_loss_of, bench, clips[:num_loss], token_budget),
        "packed": partial(packed_loss_of, bench, few, token_budget),
        "padded, 2 at a time": partial(padded_loss_of, bench, few, SMALL_BATCH),
    }
    decoding = {
        "64 at a time, all clips": partial(decode, bench, clips[:num_decoded], LARGE_BATCH),
        "64 at a time": partial(decode, bench, few, LARGE_BATCH),
        "2 at a time": partial(decode, bench, few, SMALL_BATCH),
    }
    loss_values = {"packed": packed_loss_of(bench, few, token_budget), "padded": padded_loss_of(bench, few, 2)}
    loss_times, decode_times = alternate(losses, num_rounds), alternate(decoding, num_rounds)
    bench.model.train()
    return {
        "loss_values": loss_values,
        "loss_seconds": {name: timing.median for name, timing in loss_times.items()},
        "packed_loss_is_faster_by": ratios(loss_times, "packed")["padded, 2 at a time"],
        "decode_seconds": {name: timing.median for name, timing in decode_times.items()},
        "large_batches_are_faster_by": ratios(decode_times, "64 at a time")["2 at a time"],
        "num_clips": {"loss": num_loss, "decoded": num_decoded, "baseline": num_baseline},
    }
