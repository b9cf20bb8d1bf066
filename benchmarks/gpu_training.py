"""G2, G3, G4, G5 and G7: optimizer steps of the full-size model on one GPU, ours and the others, on the same weights.

All subjects share one model, one optimizer and the same clips, so that only the way to compute a step differs. The
weights are random; nothing depends on what they know.
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import Qwen3ASRForConditionalGeneration

from benchmarks.baselines import official_loss, stock_loss
from benchmarks.measure import wait_for_device
from benchmarks.models import random_model
from benchmarks.packed_clips import padded_batch, random_clips
from benchmarks.workload import TOKENS_PER_SECOND, clip_seconds
from caspi.model import footprint
from caspi.model.footprint import Shape
from caspi.model.packed.batch import Clip, PackedBatch, Packer
from caspi.model.packed.forward import take_packed_inputs
from caspi.model.training.layers import assign_groups, train_only
from caspi.model.training.optimizer import build_optimizer, named_parameters, set_learning_rates

CLIPS_PER_STEP = 64
NUM_DISTINCT_STEPS = 4
"""Steps of different clips, gone through again and again."""
POSITIONS_MULTIPLE = 128
GROUPS = {"B": ("projector", "llm_top", "lm_head"), "A": ("projector", "audio_top", "llm_top", "lm_head")}
LEARNING_RATE = 1e-5
WEIGHT_DECAY, BETA2 = 0.01, 0.999
GRADIENT_CLIP = 1.0
OPTIMIZER_BYTES_PER_PARAMETER = 28
"""fp32 weight, gradient and two moments read, weight and two moments written."""

Batch = dict[str, Any]
LossOf = Callable[[Qwen3ASRForConditionalGeneration, Batch, int], torch.Tensor]


@dataclass
class Bench:
    """One model on one device, training one stage."""

    shape: Shape
    device: str
    num_audio_top: int
    num_llm_top: int
    stage: str = "B"
    model: Qwen3ASRForConditionalGeneration = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        dtype = torch.bfloat16 if self.on_gpu else torch.float32
        self.model = random_model(self.shape, self.device, dtype)
        self.model.config.use_cache = False
        take_packed_inputs(self.model)
        self.assigned = assign_groups(self.model, self.num_llm_top, self.num_audio_top)
        self.packer = Packer(self.model.config, pad_id=0, multiple=POSITIONS_MULTIPLE)
        self.begin(self.stage, moments={})

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    def switch(self, stage: str) -> None:
        """Go on with another stage; continuing parameters keep their moments."""
        named = named_parameters(self.optimizer)
        self.begin(stage, {name: self.optimizer.state[parameter] for name, parameter in named.items()})

    def begin(self, stage: str, moments: Mapping[str, dict[str, Any]]) -> None:
        train_only(self.model, self.assigned, GROUPS[stage])
        self.optimizer = build_optimizer(self.model, self.assigned, weight_decay=WEIGHT_DECAY, beta2=BETA2)
        set_learning_rates(self.optimizer, dict.fromkeys(GROUPS[stage], LEARNING_RATE))
        for name, parameter in named_parameters(self.optimizer).items():
            if moments.get(name):
                self.optimizer.state[parameter] = moments[name]
        self.stage = stage

    @property
    def num_trained(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)

    def update(self, losses: Sequence[Callable[[], torch.Tensor]]) -> torch.Tensor:
        """One optimizer step; returns its loss, still on the device."""
        total = torch.zeros((), device=self.device)
        for loss_of in losses:
            with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.on_gpu):
                loss = loss_of()
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(
            [parameter for parameter in self.model.parameters() if parameter.grad is not None], GRADIENT_CLIP
        )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total

    def moved(self, batch: Mapping[str, Any]) -> Batch:
        return {
            name: value.to(self.device, non_blocking=True) if torch.is_tensor(value) else value
            for name, value in batch.items()
        }


@dataclass
class Subject:
    """One way to compute the steps."""

    name: str
    micro_batches: Callable[[list[Clip]], list[Mapping[str, Any]]]
    loss_of: LossOf
    has_checkpointing: bool = False


def packed_loss(model: Qwen3ASRForConditionalGeneration, batch: Batch, num_targets: int) -> torch.Tensor:
    loss: torch.Tensor = model(**batch, num_items_in_batch=num_targets).loss
    return loss


def packed_batches(packer: Packer, token_budget: int, clips: list[Clip]) -> list[Mapping[str, Any]]:
    parts: list[PackedBatch] = packer.split(packer.pack(clips), token_budget)
    return [part.inputs for part in parts]


def padded_batches(packer: Packer, size: int, is_sorted: bool, clips: list[Clip]) -> list[Mapping[str, Any]]:
    ordered = sorted(clips, key=lambda clip: clip.features.shape[1]) if is_sorted else clips
    groups = [ordered[first : first + size] for first in range(0, len(ordered), size)]
    return [padded_batch(group, packer.chunk_frames) for group in groups]


def subjects_of(bench: Bench, token_budget: int) -> list[Subject]:
    padded = partial(padded_batches, bench.packer)
    return [
        Subject("ours, packed", partial(packed_batches, bench.packer, token_budget), packed_loss),
        Subject("(a) stock class, 2 x 32", partial(padded, 2, False), stock_loss),
        Subject("(b) one utterance at a time in the encoder, 2 x 32", partial(padded, 2, False), official_loss),
        Subject("(c) by length, 8 x 8", partial(padded, 8, True), stock_loss),
        Subject("(d) 1 x 64, checkpointing", partial(padded, 1, False), stock_loss, has_checkpointing=True),
    ]


@contextmanager
def checkpointing(model: Qwen3ASRForConditionalGeneration, enabled: bool) -> Iterator[None]:
    if not enabled:
        yield
        return
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    try:
        yield
    finally:
        model.gradient_checkpointing_disable()


@dataclass
class Measured:
    """Of one subject: every step by itself."""

    host_seconds: list[float] = field(default_factory=list)
    """Until Python had launched the step."""
    seconds: list[float] = field(default_factory=list)
    """Until the device had finished."""
    peak_bytes: int = 0
    out_of_memory: bool = False


def measure_steps(
    bench: Bench, subjects: Sequence[Subject], steps: Sequence[list[Clip]], num_rounds: int, seconds_limit: float
) -> dict[str, Measured]:
    """All subjects in turn, `num_rounds` times over the steps; a subject that is slow takes fewer of them."""
    prepared = {s.name: [s.micro_batches(clips) for clips in steps] for s in subjects}
    found = {subject.name: Measured() for subject in subjects}
    for number in range(num_rounds + 1):
        for subject in subjects:
            measured = found[subject.name]
            if measured.out_of_memory:
                continue
            started = time.perf_counter()
            with checkpointing(bench.model, subject.has_checkpointing):
                for index, batches in enumerate(prepared[subject.name]):
                    is_warm_up = number == 0
                    if time.perf_counter() - started > seconds_limit and index:
                        break
                    take_step(bench, subject, batches, steps[index], None if is_warm_up else measured)
                    if measured.out_of_memory:
                        break
    return found


def take_step(
    bench: Bench, subject: Subject, batches: Sequence[Mapping[str, Any]], clips: list[Clip], into: Measured | None
) -> None:
    num_targets = sum(clip.num_targets for clip in clips)
    record = into or Measured()
    wait_for_device()
    if bench.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    try:
        bench.update([partial(loss_of_moved, bench, subject.loss_of, batch, num_targets) for batch in batches])
    except torch.cuda.OutOfMemoryError:
        record.out_of_memory = True
        bench.optimizer.zero_grad(set_to_none=True)
        free()
        return
    record.host_seconds.append(time.perf_counter() - start)
    wait_for_device()
    record.seconds.append(time.perf_counter() - start)
    if bench.on_gpu:
        record.peak_bytes = max(record.peak_bytes, torch.cuda.max_memory_allocated())


def loss_of_moved(bench: Bench, loss_of: LossOf, batch: Mapping[str, Any], num_targets: int) -> torch.Tensor:
    return loss_of(bench.model, bench.moved(batch), num_targets)


def steps_of_clips(bench: Bench, seconds: np.ndarray) -> list[list[Clip]]:
    shape = bench.shape
    clips = random_clips(seconds.tolist(), bench.packer, shape.mel_bins, shape.vocabulary, seed=0)
    size = len(clips) // NUM_DISTINCT_STEPS
    return [clips[first : first + size] for first in range(0, len(clips), size)]


def workloads(clips_per_step: int) -> dict[str, np.ndarray]:
    number = clips_per_step * NUM_DISTINCT_STEPS
    return {"lognormal 5.7 s": clip_seconds(number, 5.7, seed=5), "fixed 15 s": np.full(number, 15.0)}


def flops_per_clip(bench: Bench, seconds: np.ndarray) -> float:
    return statistics.mean(
        footprint.training_flops(
            bench.shape, float(one), TOKENS_PER_SECOND * float(one), set(GROUPS[bench.stage]), bench.num_audio_top,
            bench.num_llm_top,
        )
        for one in seconds
    )  # fmt: skip


def row_of(bench: Bench, measured: Measured, seconds: np.ndarray, peak_tflops: float) -> dict[str, Any]:
    if measured.out_of_memory or not measured.seconds:
        return {"out_of_memory": measured.out_of_memory}
    step = statistics.median(measured.seconds)
    clips = len(seconds) // NUM_DISTINCT_STEPS
    return {
        "samples_per_second": clips / step,
        "audio_seconds_per_second": clips * float(seconds.mean()) / step,
        "mfu_fraction": clips * flops_per_clip(bench, seconds) / step / (peak_tflops * 1e12),
        "step_seconds": step,
        "host_seconds": statistics.median(measured.host_seconds),
        "spread_fraction": (max(measured.seconds) - min(measured.seconds)) / step,
        "num_steps": len(measured.seconds),
        "peak_gib": measured.peak_bytes / 2**30,
    }


def optimizer_figures(bench: Bench, copy_bytes_per_second: float, num_rounds: int = 5) -> dict[str, float]:
    """G4: the update alone, against what copying as many bytes would take."""
    for parameter in named_parameters(bench.optimizer).values():
        parameter.grad = torch.zeros_like(parameter)
    taken = []
    for _ in range(num_rounds + 1):
        wait_for_device()
        start = time.perf_counter()
        bench.optimizer.step()
        wait_for_device()
        taken.append(time.perf_counter() - start)
    bench.optimizer.zero_grad(set_to_none=True)
    seconds = statistics.median(taken[1:])
    num_bytes = OPTIMIZER_BYTES_PER_PARAMETER * bench.num_trained
    return {
        "seconds": seconds,
        "num_parameters": bench.num_trained,
        "share_of_copy_bandwidth": num_bytes / seconds / copy_bytes_per_second,
    }


def switch_figures(bench: Bench, clips: list[Clip]) -> dict[str, float]:
    """G7: from strategy B to A: seconds, the loss of one batch before and after, moments that continued."""
    batch = bench.moved(bench.packer.pack(clips).inputs)
    num_targets = sum(clip.num_targets for clip in clips)

    def loss() -> float:
        with torch.no_grad(), torch.autocast(bench.device, dtype=torch.bfloat16, enabled=bench.on_gpu):
            return float(packed_loss(bench.model, batch, num_targets))

    before = loss()
    wait_for_device()
    start = time.perf_counter()
    bench.switch("A")
    wait_for_device()
    seconds = time.perf_counter() - start
    continuing = sum(bool(bench.optimizer.state[p]) for p in named_parameters(bench.optimizer).values())
    return {
        "seconds": seconds,
        "loss_before": before,
        "loss_after": loss(),
        "parameters_with_moments": continuing,
    }


def free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
