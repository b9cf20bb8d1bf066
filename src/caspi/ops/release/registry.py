"""What was served from when on, and why: JSON lines that are only ever added to."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from caspi.records import Record, dump_json, read_jsonl


class Event(Record):
    """One line of the registry; the last `serve` is what is served now."""

    time: str
    """UTC, ISO 8601."""
    event: Literal["serve", "retrain"]
    """retrain: a training was recommended; what is served did not change."""
    model: str | None
    """Absolute folder, or Hub id."""
    model_sha256: str | None
    """Over names and hashes of the files that decide its texts."""
    why: str
    """The option, and what it was chosen by."""
    reason: str | None
    """In the user's words."""
    who: str
    backup: str | None
    """Archive that was written before."""
    backup_sha256: str | None
    command: list[str] | None
    """The server's or the training's; None: only the pointer moved."""
    pid: int | None
    """Of the server that was started."""
    url: str | None


def read_events(path: Path) -> list[Event]:
    """
    Raises:
        ValueError: a line is damaged; the message names it.
    """
    return list(read_jsonl(path, Event)) if path.exists() else []


def served_now(events: list[Event]) -> Event | None:
    return next((event for event in reversed(events) if event.event == "serve"), None)


def append_event(path: Path, event: Event) -> None:
    """Add one line and flush it; a torn line that a crash left at the end is an error, not overwritten.

    Raises:
        ValueError: the registry is damaged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path):
        read_events(path)
        line = (dump_json(event.model_dump(mode="json")) + "\n").encode()
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
