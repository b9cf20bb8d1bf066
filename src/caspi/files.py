"""Files that nobody has checked, read within bounds: regular files of limited size, UTF-8, JSON.

A FIFO, a device, a gigabyte or ten thousand nested brackets end in a ValueError of one line that names the file.
"""

import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

MAX_FILE_MIB = 256.0
"""Of a file that is read as a whole. The report of an audit of 74,000 utterances has 110."""
MAX_LINE_BYTES = 1 << 24
"""Of a line of a JSONL file that a step of ours wrote; lines of corpora have a limit of their own."""


def file_kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket", stat.S_IFREG: "file"}
    return kinds.get(stat.S_IFMT(mode), "device")


def open_file(path: Path) -> BinaryIO:
    """Open a regular file; what it is is looked at before, because opening a FIFO waits for ever.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: it is not a file, or cannot be opened; the message names it.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise ValueError(f"{path} is a {file_kind(mode)}, expected a file")
        return path.open("rb")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None


def read_text(path: Path, max_mib: float = MAX_FILE_MIB) -> str:
    """A whole UTF-8 file, with or without byte order mark.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: it is not a file, too large, or not UTF-8; the message names it.
    """
    limit = int(max_mib * 2**20)
    with open_file(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{path} has more than {max_mib:g} MiB, which no file of its kind has")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: byte 0x{data[error.start]:02x} at {error.start}") from None


def read_object(path: Path, max_mib: float = MAX_FILE_MIB) -> dict[str, Any]:
    """A file that holds one JSON object.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: it is not a file, too large, not UTF-8, or no JSON object; the message names it.
    """
    text = read_text(path, max_mib)
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"{path} is damaged: its brackets are nested too deeply") from None
    except ValueError as error:  # also for numbers of thousands of digits
        raise ValueError(f"{path} is damaged and cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged: expected a JSON object, found {type(value).__name__}")
    return value


def numbered_lines(path: Path, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, with their 1-based numbers; a byte order mark is left out.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: it is not a file, or a line is too long.
    """
    with open_file(path) as file:
        number = 0
        while line := file.readline(max_line_bytes + 1):
            number += 1
            if len(line) > max_line_bytes and not line.endswith(b"\n"):
                raise ValueError(f"{path} line {number} has more than {max_line_bytes} bytes: it is not one of ours")
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield number, line
