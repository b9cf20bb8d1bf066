"""Micro-batches that fit the card: a probe before the first step, and halves of them when memory runs out all the same.

The utterances of a step never change, only how many are computed at once; the loss is normalised by the target tokens
of the whole step, so the result is the same to rounding. All processes decide together.
"""

import logging

import torch

from caspi.model.training.batch import MicroBatch
from caspi.model.training.processes import is_main_process
from caspi.records import RunFailed

OutOfMemory = torch.cuda.OutOfMemoryError
BYTES_OF_MOMENTS = 8
"""Of Adam, per trained parameter: two float32."""

log = logging.getLogger(__name__)


def split_batch(batch: MicroBatch, size: int, chunk_frames: int) -> list[MicroBatch]:
    """Parts of at most `size` utterances, in order, each padded only as far as its own longest clip.

    `chunk_frames`: features are padded to a multiple of these.
    """
    num_rows = len(batch["input_ids"])
    if num_rows <= size:
        return [batch]
    targets = torch.split(batch["shift_labels"], batch["logits_to_keep"].sum(dim=1).tolist())
    return [
        part_of(batch, slice(first, first + size), torch.cat(targets[first : first + size]), chunk_frames)
        for first in range(0, num_rows, size)
    ]


def part_of(batch: MicroBatch, rows: slice, targets: torch.Tensor, chunk_frames: int) -> MicroBatch:
    width = int(batch["attention_mask"][rows].sum(dim=1).max())
    longest = int(batch["input_features_mask"][rows].sum(dim=1).max())
    frames = -(-longest // chunk_frames) * chunk_frames
    text = {name: batch[name][rows, :width] for name in ("input_ids", "attention_mask", "labels", "logits_to_keep")}
    return text | {
        "input_features": batch["input_features"][rows, :, :frames],
        "input_features_mask": batch["input_features_mask"][rows, :frames],
        "shift_labels": targets,
    }


def halve(size: int, reason: str) -> int:
    """
    Raises:
        RunFailed: a single utterance is too much.
    """
    if size == 1:
        raise RunFailed(
            f"{reason} with one utterance at a time: leave out the longest clips (--max-audio-length-seconds 12), "
            "train fewer layers (--num-llm-top-layers 8) or use a larger GPU"
        )
    if is_main_process():
        message = "WARNING: %s: micro-batches of %d instead of %d utterances; the step stays the same"
        log.warning(message, reason, size // 2, size)
    return size // 2


def leaves_room(device: torch.device, num_new_moments: int) -> bool:
    """Whether Adam's moments that the first step will allocate fit beside the peak so far; always, without a GPU."""
    if device.type != "cuda":
        return True
    peak = torch.cuda.max_memory_reserved(device) + BYTES_OF_MOMENTS * num_new_moments
    return peak <= torch.cuda.get_device_properties(device).total_memory


def free_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
