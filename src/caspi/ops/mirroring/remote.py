"""Checkpoints in object storage, by fsspec's addresses: what is there, put one there, fetch one.

The layout is that of a run's folder: `checkpoint-STEP/` whose `COMPLETE.json` comes last. A checkpoint without one, or
with a damaged one, does not count, however much of it is there.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import fsspec
from fsspec.implementations.arrow import ArrowFSWrapper
from fsspec.spec import AbstractFileSystem
from fsspec.utils import get_protocol
from pydantic import ValidationError

from caspi.ops.release.secret_search import secrets_in
from caspi.ops.training.artifacts import CHECKPOINT_NAME, MARKER, Marker, read_marker

RUN_FILES = ("run.json", "metrics.jsonl", "quarantine.jsonl")
"""What a run on a fresh machine needs besides a checkpoint: its record, its curve, the clips that it left out."""
PROBE_FILE = ".writable"
WEIGHTS = ".safetensors"
BUCKETS = "hf://buckets/"
ARROW = ("s3", "gs", "gcs")
"""Protocols that pyarrow speaks itself, with the usual variables of these clouds; nothing has to be installed."""


def check_address(url: str) -> None:
    """
    Raises:
        ValueError: the address holds a password, or is of a kind that does not suit.
    """
    parts = urlsplit(url)
    if parts.password or (parts.username and parts.hostname):
        raise ValueError("--mirror: the address holds credentials; give them by environment variables instead")
    if url.startswith("hf://") and not url.startswith(BUCKETS):
        raise ValueError(f"--mirror {url}: expected {BUCKETS}OWNER/NAME; in a repository each file would be a commit")


def open_storage(url: str) -> tuple[AbstractFileSystem, str]:
    """What speaks to the storage, and the path in it; connects only when it is used.

    Raises:
        ValueError: nothing here speaks this protocol.
    """
    protocol = get_protocol(url)
    if protocol in ARROW:
        from pyarrow.fs import FileSystem

        try:
            storage, root = FileSystem.from_uri(url)
        except (OSError, ValueError) as error:
            raise ValueError(f"--mirror {url}: {error}") from None
        return ArrowFSWrapper(storage), root
    try:
        files, root = fsspec.url_to_fs(url, **({"auto_mkdir": True} if protocol == "file" else {}))
    except ImportError as error:
        raise ValueError(f"--mirror {url}: {error}") from None
    return files, str(root)


class Remote:
    """A run's folder in object storage."""

    def __init__(self, url: str) -> None:
        """
        Raises:
            ValueError: the address cannot be used.
        """
        check_address(url)
        self.url = url.rstrip("/")
        self.files, self.root = open_storage(self.url)

    def path(self, *names: str) -> str:
        return "/".join((self.root.rstrip("/"), *names))

    def prove_writable(self) -> None:
        """Fail, in whatever way storage fails, before anything depends on it."""
        self.files.pipe_file(self.path(PROBE_FILE), b"caspi may write here\n")

    def steps(self) -> list[int]:
        """Of what is there, complete or not, in order."""
        self.files.invalidate_cache()
        try:
            paths = self.files.ls(self.root, detail=False)
        except FileNotFoundError:
            return []
        matches = [CHECKPOINT_NAME.fullmatch(str(path).rstrip("/").rpartition("/")[2]) for path in paths]
        return sorted(int(match[1]) for match in matches if match)

    def marker(self, step: int) -> Marker | None:
        """None: the checkpoint is not complete."""
        content = self.marker_bytes(step)
        if content is None:
            return None
        try:
            marker = Marker.model_validate_json(content)
        except ValidationError:
            return None
        return marker if marker.step == step else None

    def marker_bytes(self, step: int) -> bytes | None:
        try:
            return bytes(self.files.cat_file(self.path(f"checkpoint-{step}", MARKER)))
        except FileNotFoundError:
            return None

    def complete(self) -> list[Marker]:
        """Of every complete checkpoint, in order."""
        return [marker for step in self.steps() if (marker := self.marker(step)) is not None]

    def push(self, folder: Path) -> bool:
        """Put a committed checkpoint there, its marker last; False: it is there already.

        Raises:
            ValueError: it is damaged here, or a file of it holds a secret.
            OSError: storage refuses, or what arrived has another size.
        """
        content = (folder / MARKER).read_bytes()
        marker = read_marker(folder)
        if self.marker_bytes(marker.step) == content:
            return False
        self.delete(marker.step)
        for name, entry in marker.files.items():
            refuse_secrets(folder / name)
            self.put(folder / name, self.path(folder.name, name), entry.num_bytes)
        self.files.pipe_file(self.path(folder.name, MARKER), content)
        return True

    def put(self, source: Path, target: str, num_bytes: int) -> None:
        self.files.put_file(str(source), target)
        self.files.invalidate_cache()
        arrived = self.files.info(target)["size"]
        if arrived != num_bytes:
            raise OSError(f"{target} has {arrived} bytes instead of {num_bytes}")

    def push_run_files(self, run_folder: Path) -> None:
        """Small files, each in one piece.

        Raises:
            ValueError: one holds a secret.
        """
        for name in RUN_FILES:
            if (run_folder / name).is_file():
                refuse_secrets(run_folder / name)
                self.files.pipe_file(self.path(name), (run_folder / name).read_bytes())

    def pull(self, step: int, run_folder: Path, tell: Callable[[str], None]) -> Path:
        """Fetch a complete checkpoint; it appears by rename when every hash is right.

        Raises:
            ValueError: it is not complete, names files outside of it, does not fit on the disk, or a hash differs.
        """
        marker = self.marker(step)
        if marker is None:
            raise ValueError(f"{self.url}/checkpoint-{step} is not complete")
        check_names(marker)
        check_room(marker, run_folder)
        target = run_folder / f"checkpoint-{step}"
        temporary = run_folder / f".pulling-{step}"
        shutil.rmtree(temporary, ignore_errors=True)
        for number, (name, entry) in enumerate(marker.files.items(), start=1):
            tell(f"{target.name}: file {number} of {len(marker.files)}, {name}, {entry.num_bytes / 2**20:,.1f} MiB")
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            self.files.get_file(self.path(target.name, name), str(temporary / name))
        (temporary / MARKER).write_bytes(self.marker_bytes(step) or b"")
        try:
            read_marker(temporary)
        except ValueError as error:
            shutil.rmtree(temporary)
            raise ValueError(f"{self.url}/{target.name}: {error}") from None
        os.replace(temporary, target)
        return target

    def pull_run_files(self, run_folder: Path) -> None:
        for name in RUN_FILES:
            try:
                content = self.files.cat_file(self.path(name))
            except FileNotFoundError:
                continue
            (run_folder / f".{name}.pulled").write_bytes(content)
            os.replace(run_folder / f".{name}.pulled", run_folder / name)

    def delete(self, step: int) -> None:
        """The marker first: what is half deleted does not count."""
        for path in (self.path(f"checkpoint-{step}", MARKER), self.path(f"checkpoint-{step}")):
            self.files.invalidate_cache()
            if self.files.exists(path):
                self.files.rm(path, recursive=True)


def refuse_secrets(path: Path) -> None:
    """Weights are numbers and too large to search.

    Raises:
        ValueError: the file holds a secret.
    """
    for secret in secrets_in(path, os.environ) if path.suffix != WEIGHTS else ():
        raise ValueError(f"{path.name} holds a {secret}: it is not mirrored; remove it, and revoke it if it got around")


def check_names(marker: Marker) -> None:
    """
    Raises:
        ValueError: a name of the marker, which is foreign, leads out of the checkpoint.
    """
    for name in outside(marker):
        raise ValueError(f"checkpoint-{marker.step}: its {MARKER} names {name!r}, which is not inside of it")


def outside(marker: Marker) -> Iterator[str]:
    for name in marker.files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.parts or "\\" in name:
            yield name


def check_room(marker: Marker, folder: Path) -> None:
    """
    Raises:
        ValueError: the disk is too small.
    """
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = sum(entry.num_bytes for entry in marker.files.values()), shutil.disk_usage(folder).free
    if free < needed:
        raise ValueError(
            f"{folder} has {free / 2**30:.1f} GiB free, checkpoint-{marker.step} of the mirror needs "
            f"{needed / 2**30:.1f} GiB: make room, or choose another --output-dir"
        )
