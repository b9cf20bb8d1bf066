"""A folder of sound files, each with its transcript beside it: `name.wav` and `name.txt`, also in subfolders."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from caspi.speech.corpora.tables import BadRow, Row

SOUND_SUFFIXES = frozenset(
    {".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".m4a", ".mp4", ".aac", ".webm", ".wma", ".amr"}
)
"""Also those that we do not read: such a file is counted with the way to convert it, not passed over."""
TEXT_SUFFIX = ".txt"
MAX_TEXT_BYTES = 1 << 20


def holds_pairs(folder: Path) -> bool:
    """Whether any sound file of a folder has a text of its name beside it."""
    return any(
        path.suffix.lower() in SOUND_SUFFIXES and path.with_suffix(TEXT_SUFFIX).exists() for path in folder.rglob("*")
    )


def read_pairs(folder: Path) -> Iterator[tuple[int, Row]]:
    """One row per sound file, in the order of their names: its path, its text, and its path without suffix as id.

    A sound without a text, a text without a sound and a text that is no UTF-8 are bad rows.
    """
    sounds: dict[Path, list[Path]] = defaultdict(list)
    texts: set[Path] = set()
    for path in files_of(folder):
        if path.suffix.lower() in SOUND_SUFFIXES:
            sounds[path.with_suffix("")].append(path)
        elif path.suffix == TEXT_SUFFIX:
            texts.add(path.with_suffix(""))
    number = 0
    for stem in sorted(sounds.keys() | texts):
        for sound in sounds.get(stem, ()):
            number += 1
            yield number, row_of(folder, sound)
        if stem not in sounds:
            number += 1
            yield number, BadRow("NO_AUDIO", f"{stem.name + TEXT_SUFFIX!r} has no sound file of its name beside it")


def unused_files(folder: Path) -> set[str]:
    """Names of files that are neither sound nor text."""
    return {
        str(path.relative_to(folder))
        for path in files_of(folder)
        if path.suffix.lower() not in SOUND_SUFFIXES and path.suffix != TEXT_SUFFIX
    }


def fingerprint(folder: Path) -> str:
    """SHA-256 over names and sizes of the sound files and over the texts."""
    digest = hashlib.sha256()
    for path in files_of(folder):
        content = path.read_bytes() if path.suffix == TEXT_SUFFIX and path.is_file() else b""
        digest.update(f"{path.relative_to(folder)}\0{path.lstat().st_size}\0".encode("utf-8", "replace") + content)
    return digest.hexdigest()


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if not path.is_dir())


def row_of(folder: Path, sound: Path) -> Row:
    path = sound.with_suffix(TEXT_SUFFIX)
    if not path.is_file():
        return BadRow("NO_TRANSCRIPT", f"{named(sound)} has no file {path.name!r} beside it")
    if not path.resolve().is_relative_to(folder.resolve()):
        return BadRow("TEXT_OUTSIDE_ROOT", f"{named(path)} leads to {str(path.resolve())!r}, outside {folder}")
    if path.stat().st_size > MAX_TEXT_BYTES:
        return BadRow(
            "LINE_TOO_LONG", f"{named(path)} has {path.stat().st_size} bytes, expected at most {MAX_TEXT_BYTES}"
        )
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = f"byte 0x{error.object[error.start]:02x} at {error.start} is not UTF-8"
        return BadRow("INVALID_TEXT", f"{named(path)}: {found}; convert it: iconv -f windows-1255 -t utf-8")
    relative = sound.relative_to(folder)
    return {"id": str(relative.with_suffix("")), "audio_filepath": str(relative), "text": text}


def named(path: Path) -> str:
    """The name on one line, whatever characters it holds."""
    return repr(path.name)
