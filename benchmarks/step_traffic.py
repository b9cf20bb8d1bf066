"""Bytes moved between matrix products, and operations launched, by layer: the constants of `caspi.model.step_time`.

    OMP_NUM_THREADS=1 python -m benchmarks.step_traffic

Counted on tensors without contents at full width: one layer more of a kind shows what that kind costs.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.counting import VIEWS
from benchmarks.measure import markdown_table, write_result
from benchmarks.models import config_of
from benchmarks.packed_clips import random_clips
from benchmarks.step_counts import GROUPS, fake_inputs, fake_model
from caspi.model import step_time
from caspi.model.footprint import QWEN3_ASR_1_7B
from caspi.model.packed.batch import Packer
from caspi.model.training.layers import assign_groups, train_only

PRODUCTS = frozenset({"mm", "addmm", "bmm", "convolution", "convolution_backward"})
WITHOUT_TRAFFIC = VIEWS | {"empty", "empty_like", "empty_strided", "new_empty"}
FEW_CLIPS, MANY_CLIPS = 8, 32
SECONDS = 8.0
RESULT = Path("docs/results/benchmarks/step_traffic.json")


class Layers(NamedTuple):
    audio: int
    llm: int
    audio_top: int
    llm_top: int


LEAST = Layers(2, 2, 1, 1)
KINDS: Mapping[str, tuple[Layers, str, float, int]] = {
    "LLM layer, trained": (
        Layers(2, 3, 1, 2), "packed_ids", step_time.MOVED_BYTES_TRAINED_LLM_LAYER,
        step_time.LAUNCHES_TRAINED_LLM_LAYER,
    ),
    "LLM layer, frozen": (
        Layers(2, 3, 1, 1), "packed_ids", step_time.MOVED_BYTES_FROZEN_LLM_LAYER, step_time.LAUNCHES_FROZEN_LLM_LAYER
    ),
    "audio layer, trained": (
        Layers(3, 2, 2, 1), "audio_rows", step_time.MOVED_BYTES_TRAINED_AUDIO_LAYER,
        step_time.LAUNCHES_TRAINED_AUDIO_LAYER,
    ),
    "audio layer, frozen": (
        Layers(3, 2, 1, 1), "audio_rows", step_time.MOVED_BYTES_FROZEN_AUDIO_LAYER,
        step_time.LAUNCHES_FROZEN_AUDIO_LAYER,
    ),
}  # fmt: skip
"""Layers with one more of the kind, the rows it works on, and the constants in force."""


class TrafficCounter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.num_bytes = 0
        self.num_launches = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        name = func.__name__.split(".")[0]
        if name not in WITHOUT_TRAFFIC:
            self.num_launches += 1
        if name not in WITHOUT_TRAFFIC | PRODUCTS:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, found)) if isinstance(leaf, torch.Tensor)]
            self.num_bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return found


class Traffic(NamedTuple):
    num_bytes: int
    num_launches: int
    rows: dict[str, int]


def traffic_of(layers: Layers, num_clips: int) -> Traffic:
    shape = QWEN3_ASR_1_7B._replace(audio_layers=layers.audio, llm_layers=layers.llm)
    packer = Packer(config_of(shape), pad_id=0, multiple=128)
    clips = random_clips([SECONDS] * num_clips, packer, shape.mel_bins, shape.vocabulary, seed=7)
    with fake_model(shape, torch.bfloat16) as (model, mode):
        train_only(model, assign_groups(model, layers.llm_top, layers.audio_top), GROUPS["A"])
        inputs = fake_inputs(mode, packer, clips)
        rows = {name: int(inputs[name].numel()) for name in ("packed_ids", "audio_rows", "targets")}
        with TrafficCounter() as counter:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = model(**inputs, num_items_in_batch=1).loss
            loss.backward()
    return Traffic(counter.num_bytes, counter.num_launches, rows)


def run() -> dict[str, Any]:
    few, many = traffic_of(LEAST, FEW_CLIPS), traffic_of(LEAST, MANY_CLIPS)
    found, rows = {}, []
    for kind, (layers, per, moved_bytes, launches) in KINDS.items():
        more_few, more_many = traffic_of(layers, FEW_CLIPS), traffic_of(layers, MANY_CLIPS)
        grown = (more_many.num_bytes - more_few.num_bytes) - (many.num_bytes - few.num_bytes)
        per_row = grown / (many.rows[per] - few.rows[per])
        num_launches = more_few.num_launches - few.num_launches
        found[kind] = {"bytes_per_row": per_row, "launches": num_launches}
        rows.append((kind, f"{per_row / 1024:.1f}", f"{moved_bytes / 1024:.1f}", num_launches, launches))
    print(markdown_table(("kind", "KiB per position", "in step_time", "launches", "in step_time"), rows))
    return found


if __name__ == "__main__":
    write_result(RESULT, run())
