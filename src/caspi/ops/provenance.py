"""What a result depends on besides its inputs: versions and commit."""

import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("caspi", "torch", "transformers", "accelerate", "safetensors", "soundfile", "soxr", "numpy")


def versions() -> dict[str, str]:
    """Versions of the packages that decide numbers; `absent` for one that is not installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


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
