"""What was aligned already: a file that a killed pass leaves behind and the next one goes on from.

JSON lines `{"key": ..., "value": ...}`, appended in the order of the work. A key is the hash of the audio, of what was
asked about it, and of the model that answered, so an entry is never taken for another question.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from caspi.ops.training.run_lock import try_to_lock
from caspi.records import dump_json

FORMAT_VERSION = 1
"""Part of every key: entries of another format are never found."""

log = logging.getLogger(__name__)


def alignment_key(audio_sha256: str, request: Any, model_sha256: str) -> str:
    """Key of one piece of work.

    Args:
        audio_sha256: hash of the bytes of the audio file.
        request: stretch and texts, as JSON.
        model_sha256: hash of all that decides an answer: weights, precision, settings.
    """
    return hashlib.sha256(dump_json([FORMAT_VERSION, audio_sha256, request, model_sha256]).encode()).hexdigest()


class AlignmentCache:
    """Values by key, in memory only as places in the file; use `open_cache`."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self._file = file
        self._places: dict[str, tuple[int, int]] = {}
        """Offset and length of a line."""
        self._end = 0
        self._read_places()

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, key: str) -> Any:
        offset, length = self._places[key]
        return json.loads(os.pread(self._file.fileno(), length, offset))["value"]

    def add(self, key: str, value: Any) -> None:
        """Append; from now on a kill loses it no more, only a power failure may."""
        self.add_all({key: value})

    def add_all(self, values: Mapping[str, Any]) -> None:
        """Append values that were made together in one piece."""
        lines = {key: f"{dump_json({'key': key, 'value': value})}\n".encode() for key, value in values.items()}
        self._file.write(b"".join(lines.values()))
        self._file.flush()
        for key, line in lines.items():
            self._places[key] = (self._end, len(line))
            self._end += len(line)

    def _read_places(self) -> None:
        """Find all entries; a last line that was not finished is cut off, and that is said.

        Raises:
            ValueError: any other line is damaged.
        """
        self._file.seek(0)
        for number, line in enumerate(self._file, start=1):
            key = _key_of(line)
            if key is not None:
                self._places[key] = (self._end, len(line))
                self._end += len(line)
            elif self._file.read(1):
                raise ValueError(
                    f"{self.path} line {number} is damaged: it is not an entry of an alignment cache; "
                    "delete the file to align everything again"
                )
            else:
                log.warning(
                    "%s: the last entry was not finished when the writer was stopped; it is made again", self.path
                )
                self._file.truncate(self._end)
        self._file.seek(self._end)


def _key_of(line: bytes) -> str | None:
    """The key of a whole entry, else None."""
    if not line.endswith(b"\n"):
        return None
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    if not isinstance(entry, dict) or set(entry) != {"key", "value"} or not isinstance(entry["key"], str):
        return None
    return str(entry["key"])


@contextmanager
def open_cache(path: Path) -> Iterator[AlignmentCache]:
    """Open or begin a cache and keep other writers out while the block runs.

    Raises:
        ValueError: another process writes to it, it cannot be opened, or it is damaged before its last line.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("r+b" if path.exists() else "x+b")
    except OSError as error:
        raise ValueError(f"alignment cache {path} cannot be opened: {error.strerror}") from None
    with file:
        if not try_to_lock(file.fileno()):
            raise ValueError(f"another process is writing to {path}: wait for it, or stop it with Ctrl+C")
        yield AlignmentCache(path, file)
        file.flush()
        os.fsync(file.fileno())
