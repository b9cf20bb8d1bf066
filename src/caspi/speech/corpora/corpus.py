"""Corpora, wherever they come from, as items: a transcript and where its audio is.

A source is a JSONL, CSV or TSV manifest, a Parquet file with embedded audio, a folder of sound files with a text beside
each, a dataset folder, or a dataset on the Hugging Face Hub. Every row becomes a `RawItem` or a `Rejected` with a
reason; audio is taken as stored, never decoded.
"""

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from caspi.config import Prepare
from caspi.records import Rejected, sha256_of_file
from caspi.speech.corpora import hub, pairs, tables
from caspi.speech.corpora.tables import BadRow, Row

COLUMNS = {
    "text": ("text", "transcript", "sentence", "transcription"),
    "audio": ("audio_filepath", "audio", "file_name"),
    "id": ("id", "uuid"),
    "offset": ("offset",),
    "duration": ("duration",),
    "domain": ("domain",),
    "group_id": ("group_id", "speaker_id", "client_id", "source_entry_id"),
    "prev_text": ("prev_text", "prev_transcript"),
    "source": ("source",),
    "split": ("split",),
    "quality_score": ("quality_score",),
}
"""Our field and the columns that hold it in the corpora of the field; the first that is there counts."""
RECOMPUTED = frozenset({"metadata", "source_sha256", "needs_resegmentation", "domain_source"})
"""Columns of our own manifests that are measured anew, and the struct whose members are read as columns."""
MAX_NAME_CHARACTERS = 512
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")


class RowError(ValueError):
    """A row that cannot become an item."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


class RawItem(NamedTuple):
    id: str
    source: str
    text: str
    """As the corpus has it, not normalised; may be empty."""
    audio_path: Path | None
    """Inside the root, symlinks followed; None if the audio is embedded."""
    audio_bytes: bytes | None
    offset: float
    """Seconds."""
    duration: float | None
    """Seconds; None: to the end of the file."""
    domain: str | None
    group_id: str | None
    prev_text: str | None
    split: str | None
    quality_score: float | None
    """On the scale of the corpus."""


@dataclass
class Source:
    label: str
    """Unique among the sources of a run; the source of its items unless a column says otherwise."""
    location: str
    """File, folder or Hub id."""
    table: Path | None
    """Manifest or Parquet file; None: a dataset that the datasets library reads."""
    split: str
    root: Path
    """Audio must lie below it."""
    is_folder_of_pairs: bool = False
    """The location is a folder of sound files, each with a text of its name beside it."""
    unused_files: set[str] = field(default_factory=set)
    """Files of such a folder that are neither."""
    ignored_columns: set[str] = field(default_factory=set)
    """Filled while items are read."""
    fingerprint: str = ""
    """SHA-256 of the table, or the fingerprint of the datasets library; known after reading."""

    def items(self) -> Iterator[RawItem | Rejected]:
        """All rows in order.

        Raises:
            ValueError: the source as a whole cannot be read.
        """
        base = self.table.parent if self.table else Path(self.location) if self.is_folder_of_pairs else self.root
        for number, row in self.rows():
            try:
                yield self.item(row, number, base)
            except RowError as error:
                yield self.rejected(row, number, error)

    def rows(self) -> Iterator[tuple[int, Row]]:
        if self.table is not None:
            yield from tables.read_rows(self.table)
            self.fingerprint = sha256_of_file(self.table)
        elif self.is_folder_of_pairs:
            yield from pairs.read_pairs(Path(self.location))
            self.unused_files = pairs.unused_files(Path(self.location))
            self.fingerprint = pairs.fingerprint(Path(self.location))
        else:
            dataset = hub.load(self.location, self.split)
            self.fingerprint = dataset.fingerprint
            yield from enumerate(dataset.rows, start=1)

    def item(self, row: Row, number: int, base: Path) -> RawItem:
        if isinstance(row, BadRow):
            raise RowError(row.reason, f"{self.location} row {number}: {row.detail}")
        row = with_metadata(row)
        self.ignored_columns |= row.keys() - RECOMPUTED.union(*COLUMNS.values())
        audio_path, audio_bytes = locate_audio(value_of(row, "audio"), base, self.root)
        return RawItem(
            id=name_of(row, "id") or self.generated_id(number),
            source=name_of(row, "source") or self.label,
            text=text_of(row, "text") or "",
            audio_path=audio_path,
            audio_bytes=audio_bytes,
            offset=seconds_of(row, "offset") or 0.0,
            duration=seconds_of(row, "duration"),
            domain=name_of(row, "domain"),
            group_id=name_of(row, "group_id"),
            prev_text=text_of(row, "prev_text"),
            split=name_of(row, "split"),
            quality_score=score_of(row),
        )

    def generated_id(self, number: int) -> str:
        return f"{self.label.rsplit('/', 1)[-1]}-{number:07d}"

    def rejected(self, row: Row, number: int, error: RowError) -> Rejected:
        try:
            found = None if isinstance(row, BadRow) else name_of(with_metadata(row), "id")
        except RowError:
            found = None
        return Rejected(
            id=found or self.generated_id(number),
            source=self.label,
            reason=error.reason,
            detail=printable(error.detail),
        )


def open_sources(section: Prepare) -> list[Source]:
    """The sources that a recipe names, in order; `manifest` wins over `datasets`.

    Raises:
        ValueError: a file is missing or of an unknown format, or nothing is named.
    """
    sources = (
        [manifest_source(path, section) for path in section.manifest]
        if section.manifest
        else [dataset_source(name, section) for name in section.datasets]
    )
    if not sources:
        raise ValueError("nothing to prepare: give --manifest FILE or --datasets ID")
    labels: dict[str, int] = {}
    for source in sources:
        labels[source.label] = labels.get(source.label, 0) + 1
        if labels[source.label] > 1:
            source.label += f"-{labels[source.label]}"
    return sources


def manifest_source(path: Path, section: Prepare) -> Source:
    if path.is_dir():
        raise ValueError(f"manifest {path} is not a file but a folder; for a folder: caspi prepare --datasets {path}")
    if not path.is_file():
        raise ValueError(f"manifest {path} does not exist" if not path.exists() else f"manifest {path} is not a file")
    if path.suffix.lower() not in tables.SUFFIXES:
        expected = ", ".join(tables.SUFFIXES)
        raise ValueError(f"manifest {path} has an unknown format {path.suffix!r}, expected one of {expected}")
    root = (section.root or path.parent).resolve()
    return Source(path.stem, str(path), path.resolve(), section.split, root)


def dataset_source(name: str, section: Prepare) -> Source:
    path = Path(name)
    if path.is_file():
        return manifest_source(path, section)
    if path.is_dir():
        metadata = metadata_file(path, section.split)
        label = path.resolve().name
        root = (section.root or path).resolve()
        has_pairs = metadata is None and not hub.is_dataset_folder(path) and pairs.holds_pairs(path)
        return Source(label, str(path), metadata, section.split, root, is_folder_of_pairs=has_pairs)
    if not hub.is_hub_id(name):
        raise ValueError(f"dataset {name} does not exist, and is not an id of the Hugging Face Hub (OWNER/NAME)")
    return Source(name, name, None, section.split, hub.cache_folder())


def metadata_file(folder: Path, split: str) -> Path | None:
    """Table of an `audiofolder`, in the folder or in that of the split; None if there is none."""
    candidates = [folder / part / f"metadata{suffix}" for part in (split, ".") for suffix in tables.SUFFIXES]
    return next((path.resolve() for path in candidates if path.is_file()), None)


def with_metadata(row: dict[str, Any]) -> dict[str, Any]:
    """The row, with the members of its `metadata` struct as further columns."""
    metadata = row.get("metadata")
    return {**metadata, **row} if isinstance(metadata, dict) else row


def value_of(row: dict[str, Any], name: str) -> Any:
    return next((row[column] for column in COLUMNS[name] if row.get(column) is not None), None)


def text_of(row: dict[str, Any], name: str) -> str | None:
    value = value_of(row, name)
    if value is not None and not isinstance(value, str):
        raise RowError("INVALID_ROW", f"{name} is {type(value).__name__} {shortened(value)}, expected text")
    return value


def name_of(row: dict[str, Any], name: str) -> str | None:
    """A short text that identifies something. Whole numbers are accepted, also as pandas writes them beside missing
    ones (12.0 and NaN); damaged text is not."""
    value = value_of(row, name)
    if isinstance(value, float) and not math.isinf(value):
        value = None if math.isnan(value) else int(value) if value.is_integer() else value
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**64:
        value = str(value)
    if value is not None and not isinstance(value, str):
        raise RowError("INVALID_ROW", f"{name} is {type(value).__name__} {shortened(value)}, expected a name")
    if value is None or not value.strip():
        return None
    if len(value) > MAX_NAME_CHARACTERS or not value.isprintable():
        raise RowError(
            "INVALID_ROW", f"{name} is {shortened(value)}, expected at most {MAX_NAME_CHARACTERS} characters"
        )
    return value.strip()


def seconds_of(row: dict[str, Any], name: str) -> float | None:
    value = value_of(row, name)
    if value is None:
        return None
    try:
        seconds = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else None
    except (ValueError, OverflowError):  # OverflowError: an integer beyond 1e308
        seconds = None if isinstance(value, str) else math.inf
    if seconds is None:
        raise RowError("INVALID_NUMBER", f"{name} is {shortened(value)}, expected seconds")
    if not math.isfinite(seconds):
        raise RowError("NON_FINITE_NUMBER", f"{name} is {shortened(value)}, expected seconds")
    if seconds < 0:
        raise RowError("INVALID_NUMBER", f"{name} is {seconds:g} s, expected no negative number")
    return seconds


def score_of(row: dict[str, Any]) -> float | None:
    """The corpus' own score; NaN stands for none, as pandas writes it."""
    value = value_of(row, "quality_score")
    try:
        score = float(value) if value is not None else math.nan
    except (ValueError, TypeError, OverflowError):
        raise RowError("INVALID_NUMBER", f"quality_score is {shortened(value)}, expected a number") from None
    if math.isinf(score):
        raise RowError("NON_FINITE_NUMBER", f"quality_score is {shortened(value)}, expected a number")
    return None if math.isnan(score) else score


def locate_audio(value: Any, base: Path, root: Path) -> tuple[Path | None, bytes | None]:
    """Audio as a path inside `root`, or as bytes."""
    if isinstance(value, dict):
        value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
    if isinstance(value, bytes):
        return None, value
    if not isinstance(value, str) or not value.strip():
        expected = " or ".join(COLUMNS["audio"])
        raise RowError("NO_AUDIO", f"found {shortened(value)}, expected a file or bytes in column {expected}")
    if URL.match(value):
        raise RowError("AUDIO_URL", f"{shortened(value)} is a URL; download it, then give the file")
    try:
        path = Path(os.path.realpath(base / value))
        str(path).encode("utf-8")
    except ValueError:  # a NUL character, or bytes that are not UTF-8
        raise RowError("AUDIO_MISSING", f"{shortened(value)} is not a path") from None
    if not path.is_relative_to(root):
        raise RowError("AUDIO_OUTSIDE_ROOT", f"{shortened(value)} leads to {path}, outside {root}; allow it by --root")
    return path, None


def shortened(value: Any) -> str:
    """A value for a message: one line, never long."""
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, int) and abs(value) >= 2**64:
        return "a huge number"
    found = repr(value)
    return found if len(found) <= 120 else found[:117] + "..."


def printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
