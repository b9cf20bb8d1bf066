"""The loss before step 1 against what a model that knows the language can have, and against the stock class."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from caspi.model.training.batch import IGNORED, MicroBatch
from caspi.model.training.fusion import uncompiled
from caspi.records import RunFailed

MUCH_LOWER = 0.7
"""Ratio of losses at which one way of placing the labels is plainly the right one."""
NEAR_CHANCE = 0.1
"""Relative distance to the loss of guessing."""
MAX_DIFFERENCE_FLOAT32, MAX_DIFFERENCE_BFLOAT16 = 1e-4, 0.02
"""Relative difference of packed and stock loss that rounding can make."""


def check_first_loss(model: nn.Module, batch: MicroBatch, loss: float, bound: float, vocabulary_size: int) -> None:
    """
    Args:
        batch: one micro-batch of the step that gave `loss`, in nats per target token.

    Raises:
        RunFailed: the loss is above the bound or not a number.
    """
    if loss <= bound:
        return
    cause = likely_cause(model, batch, loss, math.log(vocabulary_size))
    raise RunFailed(
        f"the loss before step 1 is {loss:.2f} nats per token, expected at most {bound:g}: {cause}; nothing was "
        "trained. If this is meant, allow it with --max-first-loss"
    )


def likely_cause(model: nn.Module, batch: MicroBatch, loss: float, loss_of_guessing: float) -> str:
    by_shift = {shift: loss_with_labels_moved(model, batch, shift) for shift in (-1, 0, 1)}
    shift, lowest = min(by_shift.items(), key=lambda item: item[1])
    if lowest < MUCH_LOWER * loss:
        where = "in the usual place" if shift == 0 else f"moved by {shift:+d}"
        return f"the labels are not where the model predicts them (with labels {where} the loss is {lowest:.2f})"
    if abs(loss - loss_of_guessing) < NEAR_CHANCE * loss_of_guessing:
        return f"the model guesses (ln of its vocabulary is {loss_of_guessing:.2f}): is base_model trained at all?"
    return "the model is surer of other words than of the transcripts: tokenizer, prompt or audio are not this model's"


@torch.no_grad()
def loss_with_labels_moved(model: nn.Module, batch: MicroBatch, shift: int) -> float:
    """Mean loss per target token of the stock class, its labels moved along the text by `shift` positions."""
    device = next(model.parameters()).device
    labels = batch["labels"].roll(shift, dims=1)
    if shift:
        labels[:, 0 if shift > 0 else -1] = IGNORED
    names = ("input_ids", "attention_mask", "input_features", "input_features_mask")
    inputs: dict[str, Any] = {name: batch[name].to(device) for name in names}
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
        return float(model(**inputs, labels=labels.to(device), use_cache=False).loss)


@torch.no_grad()
def check_packed_loss(model: nn.Module, packed: Mapping[str, Any], padded: Mapping[str, Any]) -> None:
    """Proof that packing is right on this machine. Both are inputs of the same few clips, `padded` of the stock class.

    Raises:
        RunFailed: the losses differ by more than rounding.
    """
    device = next(model.parameters()).device
    on_gpu = device.type == "cuda"
    with uncompiled(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=on_gpu):
        ours, theirs = (float(model(**inputs).loss) for inputs in (packed, padded))
    bound = MAX_DIFFERENCE_BFLOAT16 if on_gpu else MAX_DIFFERENCE_FLOAT32
    if not abs(ours - theirs) <= bound * max(abs(theirs), 1.0):
        raise RunFailed(
            f"the packed step computes a loss of {ours:.4f} where the stock class has {theirs:.4f}: its attention is "
            "wrong on this machine; nothing was trained. Train with --step padded"
        )
