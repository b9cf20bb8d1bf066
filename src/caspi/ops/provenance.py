"""What a result depends on besides its inputs: versions, commit, hardware."""

import hashlib
import os
import platform
import socket
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    *("caspi", "torch", "transformers", "accelerate", "peft", "tokenizers", "safetensors"),
    *("soundfile", "soxr", "numpy"),
)
CPU_INFO = Path("/proc/cpuinfo")


def versions() -> dict[str, str]:
    """Versions of the packages that decide numbers; `absent` for one that is not installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def host_id() -> str:
    """Tells machines apart without naming them: the machine's name may be private."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:12]


def hardware() -> dict[str, Any]:
    """The machine of this process: its GPUs, processor and memory."""
    import psutil  # type: ignore[import-untyped]  # comes with accelerate
    import torch  # not above: steps that only read records start without it

    cards = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return {
        "gpus": [{"name": card.name, "memory_gib": round(card.total_memory / 2**30, 1)} for card in cards],
        "cuda": torch.version.cuda,
        "cpu": cpu_name(),
        "num_cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}, Python {platform.python_version()}",
    }


def cpu_name() -> str:
    lines = CPU_INFO.read_text(encoding="utf-8").splitlines() if CPU_INFO.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit() -> str | None:
    """Git commit of the working copy that this package runs from, with `+` when it has changes; None outside of one."""
    folder = Path(__file__).parent
    try:
        head = git(folder, "rev-parse", "HEAD")
        return head + ("+" if git(folder, "status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()
