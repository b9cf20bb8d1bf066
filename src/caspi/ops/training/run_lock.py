"""One training run per folder at a time."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK_FILE = ".lock"
WAIT_SECONDS = 10.0
"""A killed run's processes may take a moment to end."""


@contextmanager
def only_run_in(folder: Path, wait_seconds: float = WAIT_SECONDS) -> Iterator[None]:
    """Hold the folder while the block runs; the lock goes when the process does, however that happens.

    Raises:
        ValueError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("a+") as file:
        deadline = time.monotonic() + wait_seconds
        while not try_to_lock(file.fileno()):
            if time.monotonic() > deadline:
                file.seek(0)
                raise ValueError(
                    f"another training run (process {file.read().strip() or 'unknown'}) is writing to {folder}: "
                    "wait for it, stop it with Ctrl+C, or choose another --output-dir"
                )
            time.sleep(0.2)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def try_to_lock(descriptor: int) -> bool:
    """A record lock: unlike flock, it is not inherited by loader workers, which may outlive a killed run."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
