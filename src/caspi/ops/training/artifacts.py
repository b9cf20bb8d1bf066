"""Checkpoints that are complete or do not count.

A checkpoint is `checkpoint-STEP/` with a marker `COMPLETE.json` that names every file with its size and SHA-256. The
marker is written last, after everything else is on the disk, by rename. Whatever is interrupted or damaged therefore
shows as a folder without a valid marker; it is moved aside as `torn-STEP` and the newest valid checkpoint is used.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, ValidationError

from caspi.config import one_line
from caspi.files import read_text
from caspi.records import Record, sha256_of_file, write_atomically

MARKER = "COMPLETE.json"
CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)")

log = logging.getLogger(__name__)


class FileEntry(Record):
    num_bytes: int
    sha256: str


class Marker(Record):
    """COMPLETE.json: what a checkpoint holds and what it may be resumed with."""

    step: int = Field(ge=1)
    """Optimizer steps done."""
    stage: str
    """Stage that took the last step."""
    trainable: list[str]
    """Names of the parameters that trained, in the order of the model."""
    world_size: int
    recipe: dict[str, Any]
    """Everything of the recipe that decides the weights."""
    data_sha256: str
    """Hash of what is trained and evaluated on."""
    versions: dict[str, str]
    micro_batch_size: int | None = None
    """Utterances computed at once by the padded step when it was saved; less than the recipe's after memory ran out."""
    token_budget: int | None = None
    """Text positions computed at once by the packed step, likewise."""
    files: dict[str, FileEntry] = Field(min_length=1)
    """By path relative to the checkpoint."""

    def limits(self) -> dict[str, int | None]:
        """What was computed at once, by the name of its unit."""
        return {"micro_batch_size": self.micro_batch_size, "token_budget": self.token_budget}


class Checkpoint(NamedTuple):
    folder: Path
    marker: Marker


class Torn(NamedTuple):
    """A checkpoint that cannot be used."""

    folder: Path
    """Where it is now."""
    problem: str


def commit(folder: Path, **facts: Any) -> Checkpoint:
    """Make a written checkpoint count: flush and hash every file, then write the marker.

    `facts` are the fields of `Marker` but `files`.
    """
    files = {}
    for path in sorted(files_of(folder)):
        flush_to_disk(path)
        name = str(path.relative_to(folder))
        files[name] = FileEntry(num_bytes=path.stat().st_size, sha256=sha256_of_file(path))
    flush_to_disk(folder)
    marker = Marker(files=files, **facts)
    write_atomically(folder / MARKER, marker.model_dump_json(indent=1) + "\n")
    flush_to_disk(folder)
    flush_to_disk(folder.parent)
    return Checkpoint(folder, marker)


def withdraw(folder: Path) -> None:
    """Make a checkpoint not count any more, before it is written again or deleted."""
    (folder / MARKER).unlink(missing_ok=True)
    if folder.is_dir():
        flush_to_disk(folder)


def read_marker(folder: Path) -> Marker:
    """The marker of a checkpoint all of whose files are as they were written.

    Raises:
        ValueError: what is wrong with it, for example `model.safetensors has 1024 bytes instead of 2048`.
    """
    try:
        marker = Marker.model_validate_json(read_text(folder / MARKER))
    except FileNotFoundError:
        raise ValueError(f"it has no {MARKER}: saving was interrupted") from None
    except ValidationError as error:
        raise ValueError(f"{MARKER} is damaged: {one_line(error)}") from None
    except ValueError as error:
        raise ValueError(f"{MARKER} is damaged: {error}") from None
    for name, entry in marker.files.items():
        path = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{MARKER} is damaged: {name} is not in the checkpoint")
        if not path.is_file():
            raise ValueError(f"{name} is missing")
        if path.stat().st_size != entry.num_bytes:
            raise ValueError(f"{name} has {path.stat().st_size} bytes instead of {entry.num_bytes}")
        if sha256_of_file(path) != entry.sha256:
            raise ValueError(f"{name} is not as it was written: its SHA-256 differs")
    weights = {str(path.relative_to(folder)) for path in folder.rglob("*.safetensors")}
    if unlisted := sorted(weights - marker.files.keys()):
        raise ValueError(f"{unlisted[0]} is not among the files that {MARKER} names")
    return marker


def newest_checkpoint(
    run_folder: Path, also: Callable[[Checkpoint], None] = lambda checkpoint: None
) -> tuple[Checkpoint | None, list[Torn]]:
    """The newest valid checkpoint, and the newer ones that are not valid, which stay where they are.

    `also` raises ValueError for what it finds wrong with a checkpoint whose files are as they were written.
    """
    torn: list[Torn] = []
    for folder in reversed(checkpoint_folders(run_folder)):
        try:
            found = Checkpoint(folder, read_marker(folder))
            also(found)
            return found, torn
        except ValueError as error:
            torn.append(Torn(folder, str(error)))
    return None, torn


def set_aside(torn: list[Torn]) -> list[Torn]:
    """Rename unusable checkpoints to `torn-STEP`, so that nothing takes them for checkpoints, and say so."""
    moved = []
    for folder, problem in torn:
        target = free_name(folder.with_name(folder.name.replace("checkpoint", "torn")))
        os.replace(folder, target)
        log.warning("WARNING: %s cannot be used (%s); moved to %s", folder.name, problem, target.name)
        moved.append(Torn(target, problem))
    return moved


def rotate(
    run_folder: Path, limit: int, keep_steps: frozenset[int], in_use: frozenset[int] = frozenset()
) -> list[Path]:
    """Delete the oldest checkpoints beyond `limit`, but never the newest nor those of `keep_steps`; returns them.

    Those `in_use` stay for now, beyond the limit.
    """
    folders = checkpoint_folders(run_folder)
    kept = {step_of(folder) for folder in folders[-1:]} | keep_steps
    deletable = [folder for folder in folders if step_of(folder) not in kept]
    oldest = deletable[: max(0, len(folders) - limit)]
    deleted = [folder for folder in oldest if step_of(folder) not in in_use]
    for folder in deleted:
        withdraw(folder)
        shutil.rmtree(folder)
    return deleted


def checkpoint_folders(run_folder: Path) -> list[Path]:
    """`checkpoint-STEP` folders in the order of their steps, valid or not."""
    if not run_folder.is_dir():
        return []
    return sorted((path for path in run_folder.iterdir() if CHECKPOINT_NAME.fullmatch(path.name)), key=step_of)


def step_of(folder: Path) -> int:
    match = CHECKPOINT_NAME.fullmatch(folder.name)
    assert match, f"{folder} is not a checkpoint"
    return int(match[1])


def free_name(path: Path) -> Path:
    """The path itself, or with the first number appended that makes it new."""
    candidate, number = path, 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def files_of(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and path.name != MARKER)


def flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def differing_keys(before: Any, now: Any, prefix: str = "") -> list[str]:
    """What differs between two recipes, as `key: before -> now`."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted(before.keys() | now.keys())
        return [line for key in keys for line in differing_keys(before.get(key), now.get(key), f"{prefix}.{key}")]
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = enumerate(zip(before, now, strict=True))
        return [line for index, pair in pairs for line in differing_keys(*pair, f"{prefix}.{index}")]
    if before == now:
        return []
    return [f"{prefix.lstrip('.')}: {json.dumps(before)} -> {json.dumps(now)}"]
