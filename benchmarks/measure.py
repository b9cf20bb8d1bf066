"""How the benchmarks measure: baseline and ours in the same run, alternated, with the spread beside the median.

A machine that others use slows down and speeds up; a ratio of two things measured in turn survives that, seconds do
not.
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch


class Timing(NamedTuple):
    """Seconds of one subject, one figure for each round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread_fraction(self) -> float:
        """(slowest - fastest) / median."""
        return (max(self.seconds) - min(self.seconds)) / self.median


def alternate(subjects: Mapping[str, Callable[[], object]], num_rounds: int, num_warmups: int = 1) -> dict[str, Timing]:
    """Seconds of every subject, taken in turn: A B C A B C ...

    On a GPU each figure ends when the device has finished.
    """
    for _ in range(num_warmups):
        for subject in subjects.values():
            seconds_of(subject)
    taken: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(num_rounds):
        for name, subject in subjects.items():
            taken[name].append(seconds_of(subject))
    return {name: Timing(tuple(seconds)) for name, seconds in taken.items()}


def seconds_of(subject: Callable[[], object]) -> float:
    wait_for_device()
    start = time.perf_counter()
    subject()
    wait_for_device()
    return time.perf_counter() - start


def wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ratios(timings: Mapping[str, Timing], ours: str) -> dict[str, float]:
    """How many times faster `ours` is than each other subject: the median of the ratios of one round each."""
    own = timings[ours].seconds
    return {
        name: statistics.median(other / mine for other, mine in zip(timing.seconds, own, strict=True))
        for name, timing in timings.items()
        if name != ours
    }


def environment() -> dict[str, Any]:
    """Where a result comes from."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "versions": {name: version_of(name) for name in ("torch", "transformers", "numpy", "liger-kernel")},
        "cpu": cpu_name(),
        "num_cores": os.cpu_count(),
        "num_threads": torch.get_num_threads(),
        "gpu": gpu,
    }


def version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """One JSON file of a benchmark, with where it was measured."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"environment": environment(), **result}
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
