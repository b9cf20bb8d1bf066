"""The GPUs of this machine at this moment, as nvidia-smi sees them."""

import csv
import subprocess

from caspi.records import Record

FIELDS = ("index", "name", "utilization.gpu", "memory.used", "memory.total", "temperature.gpu", "power.draw")
MIB_PER_GIB = 1024


class NoGpus(Exception):
    """nvidia-smi gives no answer; the message says why."""


class GpuNow(Record):
    index: int
    name: str
    load_pct: float | None
    """None, here and below: the card does not say."""
    memory_used_gib: float | None
    memory_total_gib: float | None
    temperature_celsius: float | None
    power_watts: float | None


def read_gpus(timeout_seconds: float) -> list[GpuNow]:
    """
    Raises:
        NoGpus: nvidia-smi is not installed, fails, hangs, or writes something else.
    """
    query = f"--query-gpu={','.join(FIELDS)}"
    return parse_gpus(nvidia_smi([query, "--format=csv,noheader,nounits"], timeout_seconds))


def nvidia_smi(arguments: list[str], timeout_seconds: float) -> str:
    """
    Raises:
        NoGpus: it is not installed, fails or hangs.
    """
    try:
        done = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, timeout=timeout_seconds)
    except FileNotFoundError:
        raise NoGpus("nvidia-smi is not installed here") from None
    except subprocess.TimeoutExpired:
        raise NoGpus(f"nvidia-smi did not answer within {timeout_seconds:g} s") from None
    except OSError as error:
        raise NoGpus(f"nvidia-smi cannot be started: {error.strerror}") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise NoGpus(f"nvidia-smi failed: {said[0] if said else f'exit code {done.returncode}'}")
    return done.stdout


def parse_gpus(text: str) -> list[GpuNow]:
    rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines()) if row]
    try:
        return [gpu_of(row) for row in rows]
    except ValueError:
        raise NoGpus(f"nvidia-smi wrote something else than {', '.join(FIELDS)}") from None


def gpu_of(row: list[str]) -> GpuNow:
    index, name, load, used, total, temperature, power = row
    return GpuNow(
        index=int(index),
        name=name,
        load_pct=number(load),
        memory_used_gib=gib(used),
        memory_total_gib=gib(total),
        temperature_celsius=number(temperature),
        power_watts=number(power),
    )


def number(cell: str) -> float | None:
    """None for `[N/A]` and `[Not Supported]`."""
    return None if cell.startswith("[") or cell == "N/A" else float(cell)


def gib(cell: str) -> float | None:
    mib = number(cell)
    return None if mib is None else mib / MIB_PER_GIB
