"""G0 to G7 and G9 on one GPU, with full-size random weights: one JSON and one Markdown table.

    python -m benchmarks.gpu                          # everything that this machine can do
    python -m benchmarks.gpu --only limits steps      # parts of it
    python -m benchmarks.gpu --tiny                   # a rehearsal on any machine, in seconds; its figures mean nothing

Needs torch, transformers 5.17 or newer, and this repository; the loader (G6) also what `caspi` itself needs.
The aligner (G8) is `python -m benchmarks.audit_throughput`.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import torch

from benchmarks import gpu_attention, gpu_evaluation, gpu_limits
from benchmarks.gpu_training import (
    CLIPS_PER_STEP,
    GROUPS,
    Bench,
    free,
    measure_steps,
    optimizer_figures,
    row_of,
    steps_of_clips,
    subjects_of,
    switch_figures,
    workloads,
)
from benchmarks.measure import environment, markdown_table, write_result
from benchmarks.models import TINY
from benchmarks.workload import TOKENS_PER_SECOND
from caspi.model import memory_footprint
from caspi.model.footprint import QWEN3_ASR_1_7B, Shape
from caspi.model.memory_footprint import StepSize, Trained
from caspi.model.packed.attention import choose_backend
from caspi.model.training.fusion import compile_blocks

RESULT = Path("docs/results/benchmarks/gpu.json")
MEMORY_FRACTION = 0.92
SECONDS_PER_SUBJECT = 20.0
"""A subject that is slow takes fewer steps of a round."""


class Size(NamedTuple):
    """How much is measured."""

    shape: Shape
    num_audio_top: int
    num_llm_top: int
    clips_per_step: int
    num_rounds: int
    evaluation_share: float
    num_attention_clips: int


FULL = Size(QWEN3_ASR_1_7B, 8, 12, CLIPS_PER_STEP, 3, 1.0, gpu_attention.NUM_CLIPS)
REHEARSAL = Size(TINY, 1, 1, 4, 1, 0.005, 2)


class Session:
    """One model for all parts that train, made when the first of them asks."""

    def __init__(self, size: Size, device: str) -> None:
        self.size, self.device = size, device
        self.dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self.limits: dict[str, Any] = {}
        self._bench: Bench | None = None

    @property
    def bench(self) -> Bench:
        if self._bench is None:
            self._bench = Bench(self.size.shape, self.device, self.size.num_audio_top, self.size.num_llm_top)
        return self._bench

    def peak_tflops(self) -> float:
        return float(self.measure_limits()["product_flops_per_second"]) / 1e12

    def measure_limits(self) -> dict[str, Any]:
        if not self.limits:
            self.limits = gpu_limits.measure_limits(self.device, self.dtype, self.size is REHEARSAL)
        return self.limits

    def trained(self, stage: str) -> Trained:
        sizes = [parameter.numel() for parameter in self.bench.model.parameters()]
        num_audio_top = self.size.num_audio_top if "audio_top" in GROUPS[stage] else 0
        return Trained(self.bench.num_trained, sum(sizes), num_audio_top, self.size.num_llm_top, num_gpus=1)

    def token_budget(self) -> int:
        if self.device != "cuda":
            return 1 << 40
        memory = MEMORY_FRACTION * torch.cuda.get_device_properties(0).total_memory
        longest = StepSize.of_clips(1, 15.0, TOKENS_PER_SECOND)
        return memory_footprint.token_budget(self.size.shape, self.trained("A"), longest, memory)


def attention(session: Session) -> dict[str, Any]:
    chosen = gpu_attention.cases(session.size.num_attention_clips)
    return gpu_attention.attention_figures(session.device, session.dtype, session.size.num_rounds, chosen)


def steps(session: Session, only_ours: bool = False) -> dict[str, Any]:
    """G2 and G3: every way to compute a step, both strategies, both workloads; peak memory against the prediction."""
    result: dict[str, Any] = {}
    bench, budget, peak = session.bench, session.token_budget(), session.peak_tflops()
    for stage in GROUPS:
        bench.begin(stage, moments={})
        for workload, seconds in workloads(session.size.clips_per_step).items():
            clips = steps_of_clips(bench, seconds)
            subjects = subjects_of(bench, budget)[: 1 if only_ours else None]
            found = measure_steps(bench, subjects, clips, session.size.num_rounds, SECONDS_PER_SUBJECT)
            rows = {name: row_of(bench, measured, seconds, peak) for name, measured in found.items()}
            rows["ours, packed"]["predicted_peak_gib"] = predicted_gib(session, stage, clips, budget)
            result[f"{stage}, {workload}"] = rows
            print(f"\nstrategy {stage}, {workload}, {session.size.clips_per_step} clips a step\n\n{step_table(rows)}")
            free()
    return result


def predicted_gib(session: Session, stage: str, clips: Sequence[Sequence[Any]], budget: int) -> float:
    """Of the largest part of a step, without what CUDA itself takes: the allocator does not count that."""
    largest, is_split = StepSize(0.0, 0.0, 0.0), False
    for step in clips:
        parts = session.bench.packer.split(session.bench.packer.pack(step), budget)
        is_split = is_split or len(parts) > 1
        for part in parts:
            size = StepSize(
                float(part.num_tokens), float(sum(one.num_audio for one in part.sizes)), float(part.num_targets)
            )
            largest = max(largest, size)
    memory = memory_footprint.training_memory(session.size.shape, session.trained(stage), largest, is_split)
    return (memory.total - memory_footprint.RESERVED_BYTES) / 2**30


def step_table(rows: dict[str, dict[str, Any]]) -> str:
    ours = rows["ours, packed"].get("samples_per_second", 0.0)
    lines = []
    for name, row in rows.items():
        if "samples_per_second" not in row:
            lines.append((name, "out of memory", "", "", "", "", ""))
            continue
        lines.append(
            (name, f"{row['samples_per_second']:.1f}", f"{ours / row['samples_per_second']:.2f}",
             f"{row['mfu_fraction']:.1%}", f"{1000 * row['step_seconds']:.0f}", f"{1000 * row['host_seconds']:.0f}",
             f"{row['peak_gib']:.1f}")
        )  # fmt: skip
    header = ("way to compute a step", "samples/s", "ours is faster by", "MFU", "ms", "ms on the host", "peak GiB")
    return markdown_table(header, lines)


def fusion(session: Session) -> dict[str, Any]:
    """G5: the same steps with compiled blocks; how many graphs were compiled, and how many of them only later."""
    from torch._dynamo.utils import counters

    compile_blocks(session.bench.model)
    start = time.perf_counter()
    compiled = steps(session, only_ours=True)
    seconds = time.perf_counter() - start
    before = counters["stats"]["unique_graphs"]
    again = steps(session, only_ours=True)
    return {
        "first": compiled,
        "first_seconds": seconds,
        "again": again,
        "graphs": before,
        "recompiles": counters["stats"]["unique_graphs"] - before,
    }


def optimizer(session: Session) -> dict[str, float]:
    session.bench.begin("A", moments={})
    rate = float(session.measure_limits()["copy_bytes_per_second"])
    return optimizer_figures(session.bench, rate, session.size.num_rounds)


def switch(session: Session) -> dict[str, float]:
    bench = session.bench
    bench.begin("B", moments={})
    clips = steps_of_clips(bench, workloads(session.size.clips_per_step)["lognormal 5.7 s"])[0]
    measure_steps(bench, subjects_of(bench, session.token_budget())[:1], [clips], 1, SECONDS_PER_SUBJECT)
    return switch_figures(bench, clips[: max(2, session.size.clips_per_step // 8)])


def evaluation(session: Session) -> dict[str, Any]:
    size = session.size
    return gpu_evaluation.evaluation_figures(
        session.bench, min(16_384, session.token_budget()), size.evaluation_share, size.num_rounds
    )


def loader(session: Session) -> dict[str, Any]:
    from benchmarks.loader import run

    return run(session.size.num_rounds)


RUN: dict[str, Callable[[Session], dict[str, Any]]] = {
    "limits": Session.measure_limits,
    "attention": attention,
    "steps": steps,
    "fusion": fusion,
    "optimizer": optimizer,
    "switch": switch,
    "evaluation": evaluation,
    "loader": loader,
}
"""In the order in which they run: blocks stay compiled, so what is eager comes before."""


def run(chosen: Sequence[str], size: Size, device: str, save: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Results by part; saved after each, so that an interrupted run keeps what it has."""
    session = Session(size, device)
    result: dict[str, Any] = {"device": device, "attention_kernel": choose_backend(device).name}
    for name in chosen:
        print(f"\n{name}", flush=True)
        try:
            result[name] = RUN[name](session)
        except ModuleNotFoundError as error:
            result[name] = {"not_measured": f"needs the package {error.name}"}
        print(summary_of(name, result[name]), flush=True)
        save(result)
    return result


def summary_of(name: str, part: dict[str, Any]) -> str:
    """What the tables do not show, one figure a line."""
    lines = [f"  {key}: {value:.4g}" for key, value in part.items() if isinstance(value, float | int)]
    lines += [f"  {key}: {value}" for key, value in part.items() if isinstance(value, str)]
    for key, group in part.items() if name not in ("steps", "fusion") else ():
        figures = group.items() if isinstance(group, dict) else ()
        shown = ", ".join(f"{inner} {value:.4g}" for inner, value in figures if isinstance(value, float | int))
        lines += [f"  {key}: {shown}"] if shown else []
    return "\n".join(lines)


def markdown(result: dict[str, Any]) -> str:
    """The tables and figures of a run as a page."""
    lines = ["# One GPU", "", " ".join(f"{key}: {value};" for key, value in environment().items()), ""]
    for name, part in result.items():
        if name in ("steps", "fusion") and isinstance(part, dict):
            tables = part["first"] | {"": {}} if name == "fusion" else part
            for workload, rows in tables.items():
                lines += [f"## {name}: {workload}", "", step_table(rows), ""] if rows else []
        elif isinstance(part, dict):
            lines += [f"## {name}", "", "```", summary_of(name, part), "```", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=tuple(RUN), default=tuple(RUN))
    parser.add_argument("--tiny", action="store_true", help="a rehearsal on any machine")
    parser.add_argument("--output", type=Path, default=RESULT, help="JSON file; the table goes beside it")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not options.tiny:
        parser.error("there is no GPU that torch can use; --tiny rehearses without one")
    size = REHEARSAL if options.tiny else FULL

    def save(result: dict[str, Any]) -> None:
        write_result(options.output, result)
        options.output.with_suffix(".md").write_text(markdown(result), encoding="utf-8")

    run(options.only, size, device, save)
    print(f"\nwritten: {options.output} and {options.output.with_suffix('.md').name}")


if __name__ == "__main__":
    main()
