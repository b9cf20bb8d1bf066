"""This machine: Python, libraries, GPUs, memory, decoders, variables."""

import importlib.metadata
import io
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from typing import Literal

from packaging.requirements import Requirement

from caspi.config import Check
from caspi.ops.readiness.finding import Finding

GIB = 2**30
NVIDIA_SMI = [
    "nvidia-smi",
    "--query-gpu=name,memory.total,memory.free,temperature.gpu",
    "--format=csv,noheader,nounits",
]


def python_version() -> Finding:
    version = platform.python_version()
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        return Finding("Python", "ok", version)
    return Finding("Python", "fail", version, "use Python 3.11, 3.12 or 3.13")


def library_versions() -> Iterator[Finding]:
    """Installed versions against the ranges in pyproject.toml, which are the tested ones."""
    for line in importlib.metadata.requires("caspi") or []:
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(requirement.name, "fail", "not installed", "make setup")
            continue
        fits = requirement.specifier.contains(version, prereleases=True)
        fix = "" if fits else f"tested with {requirement.specifier}: make setup"
        yield Finding(requirement.name, "ok" if fits else "warn", version, fix)


def gpus(check: Check) -> Iterator[Finding]:
    try:
        output = subprocess.run(NVIDIA_SMI, capture_output=True, text=True, check=True, timeout=check.timeout_seconds)
    except (OSError, subprocess.SubprocessError):
        fix = "audit, prepare and compare run on a CPU; train needs GPUs with a working driver (nvidia-smi)"
        yield Finding("GPUs", "fail", "none visible", fix)
        return
    rows = [line.split(", ") for line in output.stdout.strip().splitlines()]
    enough = len(rows) >= check.num_gpus
    fix = "" if enough else f"the recipe was made for {check.num_gpus}; fewer take longer (caspi train --help)"
    yield Finding("GPUs", "ok" if enough else "warn", str(len(rows)), fix)
    for index, (name, total_mib, free_mib, celsius) in enumerate(rows):
        total_gib, free_gib = float(total_mib) / 1024, float(free_mib) / 1024
        found = f"{name}, {total_gib:.1f} GiB, {free_gib:.1f} GiB free, {celsius} C"
        if total_gib < check.min_gpu_memory_gib:
            fix = "use --batch-size 1 --gradient-accumulation-steps 32"
            yield Finding(f"GPU {index}", "warn", found, fix)
        elif free_gib < 0.9 * total_gib:
            yield Finding(f"GPU {index}", "warn", found, "another process holds memory: see nvidia-smi")
        else:
            yield Finding(f"GPU {index}", "ok", found)


def memory(check: Check) -> Finding:
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    if gib >= check.min_ram_gib:
        return Finding("RAM", "ok", f"{gib:.0f} GiB")
    return Finding(
        "RAM", "warn", f"{gib:.0f} GiB", "the guide asks for 128 GB; loader workers and the page cache live there"
    )


def decoders() -> Iterator[Finding]:
    """A tenth of a second of silence through each container that corpora come in."""
    import numpy as np
    import soundfile

    for container, encoding in (("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("MP3", "MPEG_LAYER_III"), ("OGG", "OPUS")):
        buffer = io.BytesIO()
        try:
            soundfile.write(buffer, np.zeros(1600, np.float32), 16_000, format=container, subtype=encoding)
            buffer.seek(0)
            samples, _ = soundfile.read(buffer)
        except (soundfile.LibsndfileError, ValueError) as error:
            yield Finding(f"Decoder {container}", "fail", str(error), "make setup (soundfile carries libsndfile)")
        else:
            status: Literal["ok", "fail"] = "ok" if len(samples) >= 1600 else "fail"
            yield Finding(f"Decoder {container}", status, encoding)


def allocator() -> Finding:
    value = os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "")
    if "expandable_segments:True" in value:
        return Finding("PYTORCH_CUDA_ALLOC_CONF", "ok", value)
    fix = "source scripts/setup_wandb.sh, or export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"
    return Finding("PYTORCH_CUDA_ALLOC_CONF", "warn", value or "not set", fix)
