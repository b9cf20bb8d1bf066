"""Environments beside ours, for real programs whose dependencies do not fit into it; kept in the cache between runs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def find_uv() -> str:
    """Skips where it is missing."""
    uv = shutil.which("uv") or str(Path(sys.executable).parents[2] / ".uv" / "bin" / "uv")
    if not Path(uv).exists():
        pytest.skip("uv is not there to make an environment")
    return uv


def environment_folder(name: str) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return Path(os.environ.get(f"CASPI_{name.upper()}_ENV", cache / "caspi-tests" / name))


def create(environment: Path, uv: str) -> Path:
    """Its Python."""
    python = environment / "bin" / "python"
    if not python.exists():
        subprocess.run([uv, "venv", "-q", "--python", sys.executable, str(environment)], check=True)
    return python


def install(uv: str, python: Path, *packages: str) -> None:
    """Skips where the packages cannot be had."""
    command = [uv, "pip", "install", "-q", "--python", str(python), *packages]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        pytest.skip(f"{packages[-1]} cannot be installed: {reason}")


def environment_with(name: str, *packages: str) -> Path:
    """The folder of programs of an environment that holds these packages."""
    uv, environment = find_uv(), environment_folder(name)
    finished = environment / f"caspi-{'-'.join(package.replace('/', '_') for package in packages)}"
    if not finished.exists():
        install(uv, create(environment, uv), *packages)
        finished.touch()
    return environment / "bin"
