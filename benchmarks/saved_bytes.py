"""C4: bytes that autograd keeps for the backward pass of the full-size packed step, against what `caspi plan` predicts.

    OMP_NUM_THREADS=1 python -m benchmarks.saved_bytes

Counted on tensors without contents, with the attention kernel of GPUs, under autocast, weights that train in float32.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.counting import saved_bytes
from benchmarks.measure import markdown_table, write_result
from benchmarks.models import config_of
from benchmarks.packed_clips import random_clips
from benchmarks.step_counts import GROUPS, NUM_AUDIO_TOP, NUM_LLM_TOP, fake_inputs, fake_model, stage_of
from benchmarks.workload import clip_seconds
from caspi.model import memory_footprint
from caspi.model.footprint import QWEN3_ASR_1_7B
from caspi.model.memory_footprint import StepSize, Trained
from caspi.model.packed.batch import Packer

CASES = ((8, 5.7), (32, 5.7), (32, 10.0))
"""Clips and their mean seconds."""
RESULT = Path("docs/results/benchmarks/saved_bytes.json")


class Counted(NamedTuple):
    counted_bytes: int
    predicted_bytes: float

    @property
    def error_fraction(self) -> float:
        return self.predicted_bytes / self.counted_bytes - 1


def count(stage: str, num_clips: int, mean_seconds: float) -> Counted:
    shape = QWEN3_ASR_1_7B
    packer = Packer(config_of(shape), pad_id=0, multiple=128)
    seconds = clip_seconds(num_clips, mean_seconds, seed=8).tolist()
    clips = random_clips(seconds, packer, shape.mel_bins, shape.vocabulary, seed=8)
    with fake_model(shape, torch.bfloat16) as (model, mode):
        stage_of(model, stage)
        inputs = fake_inputs(mode, packer, clips)
        with saved_bytes(model) as kept, torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(**inputs, num_items_in_batch=1).loss
        num_bytes = kept()
        del loss
        sizes = [parameter.numel() for parameter in model.parameters()]
        num_trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        step = StepSize(*(float(inputs[name].numel()) for name in ("packed_ids", "audio_rows", "targets")))
    trained = Trained(num_trained, sum(sizes), NUM_AUDIO_TOP if stage == "A" else 0, NUM_LLM_TOP, num_gpus=1)
    copies = 2 * num_trained
    return Counted(num_bytes, copies + memory_footprint.saved_bytes(shape, trained, step))


def run() -> dict[str, Any]:
    found = {(stage, *case): count(stage, *case) for stage in GROUPS for case in CASES}
    rows = [
        (stage, f"{number} x {seconds} s", f"{one.counted_bytes / 1e9:.2f}", f"{one.predicted_bytes / 1e9:.2f}",
         f"{one.error_fraction:+.2%}")
        for (stage, number, seconds), one in found.items()
    ]  # fmt: skip
    print(markdown_table(("strategy", "clips", "counted GB", "predicted GB", "error"), rows))
    return {
        f"{stage}, {number} x {seconds} s": one._asdict() | {"error_fraction": one.error_fraction}
        for (stage, number, seconds), one in found.items()
    }


if __name__ == "__main__":
    write_result(RESULT, run())
