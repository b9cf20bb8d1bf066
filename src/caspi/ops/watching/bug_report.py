"""What the deployment guide asks for in a bug report, as one archive without secrets."""

import io
import os
import platform
import shutil
import sys
import tarfile
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from caspi.config import Watch
from caspi.ops import provenance
from caspi.ops.watching.gpus_now import NoGpus, nvidia_smi
from caspi.ops.watching.redaction import redact, redact_json
from caspi.ops.watching.run_metrics import METRICS_FILE, RunFiles, RunRecord
from caspi.ops.watching.run_state import log_tail
from caspi.ops.watching.run_terminal import plain_lines
from caspi.ops.watching.run_view import RunView
from caspi.records import dump_json, write_atomically

SHORT_HASH = 12
"""Digits of a git commit that are given: all 40 look like a W&B key."""


def write_bundle(target: Path, run: RunFiles, view: RunView, settings: Watch) -> list[str]:
    """Write a .tar.gz; returns the names of the files in it.

    Raises:
        ValueError: the target is not named .tar.gz.
    """
    if not target.name.endswith((".tar.gz", ".tgz")):
        raise ValueError(f"--bundle {target}: expected a name that ends with .tar.gz")
    contents = {name: clean(content) for name, content in gather(run, view, settings).items()}
    folder = target.name.removesuffix(".tgz").removesuffix(".tar.gz")
    write_atomically(target, pack(folder, contents, datetime.fromisoformat(view.time).timestamp()))
    return list(contents)


def clean(content: Any) -> str:
    """The text of a file without secrets; what is no text becomes JSON."""
    if isinstance(content, str):
        return redact(content, os.environ)
    return dump_json(redact_json(content, os.environ), indent=2) + "\n"


def gather(run: RunFiles, view: RunView, settings: Watch) -> dict[str, Any]:
    """Text or JSON value by file name, secrets still in it."""
    log = log_tail(run.folder)
    return {
        "report.txt": summary(run, view),
        "error.txt": view.error or "training.log does not end with an error\n",
        "training_log_tail.txt": last_lines(log, settings.num_log_lines),
        "metrics_tail.jsonl": metrics_tail(run.folder, settings.num_metrics_lines),
        "status.json": view.model_dump(mode="json"),
        "nvidia_smi.txt": gpu_state(settings),
        "versions.json": versions(run.record),
        "recipe.json": run.raw_recipe,
        "phase0.json": run.record.gate.model_dump(),
        "disk.txt": disk_state(run.folder),
    }


def summary(run: RunFiles, view: RunView) -> str:
    gate = run.record.gate
    facts = [
        f"Bug report of a caspi training run, {view.time}",
        "",
        *plain_lines(view),
        "",
        f"Epoch: {'unknown' if view.epoch is None else f'{view.epoch:.2f}'}",
        f"W&B run: {view.wandb_url or 'not online'} (id {run.record.wandb_run_id or 'unknown'})",
        f"Phase 0: {gate.decision or 'no report'}, low quality {gate.low_quality_percentage} %"
        + (f"; RISK ACCEPTED: {gate.accepted_risk}" if gate.accepted_risk else ""),
        f"Starts: {', '.join(one.isoformat() for one in run.record.starts) or 'unknown'}",
        "Secrets were taken out by pattern; look through these files before you send them.",
    ]
    return "\n".join(facts) + "\n"


def versions(record: RunRecord) -> dict[str, Any]:
    """Of the run as it recorded them, and of this machine now."""
    return {
        "run": record.versions,
        "run_commit": short(record.commit),
        "here": provenance.versions() | {"python": sys.version.split()[0], "platform": platform.platform()},
        "here_commit": short(provenance.commit()),
    }


def short(commit: str | None) -> str | None:
    return None if commit is None else commit[:SHORT_HASH] + ("+" if commit.endswith("+") else "")


def gpu_state(settings: Watch) -> str:
    try:
        return nvidia_smi([], settings.nvidia_smi_timeout_seconds)
    except NoGpus as error:
        return f"{error}\n"


def disk_state(folder: Path) -> str:
    total, used, free = (size / 2**30 for size in shutil.disk_usage(folder))
    return f"{folder.resolve()}: {total:.1f} GiB, {used:.1f} GiB used, {free:.1f} GiB free\n"


def metrics_tail(folder: Path, num_lines: int) -> str:
    path = folder / METRICS_FILE
    return last_lines(path.read_text(encoding="utf-8", errors="replace"), num_lines) if path.is_file() else ""


def last_lines(text: str, number: int) -> str:
    return "".join(f"{line}\n" for line in text.splitlines()[-number:])


def pack(folder: str, contents: Mapping[str, str], time: float) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, text in contents.items():
            data = text.encode("utf-8")
            header = tarfile.TarInfo(f"{folder}/{name}")
            header.size, header.mtime, header.mode = len(data), int(time), 0o600
            archive.addfile(header, io.BytesIO(data))
    return buffer.getvalue()
