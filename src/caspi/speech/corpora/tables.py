"""Rows of corpora as they lie on disk or on the Hub; what the columns mean is the business of `corpus`.

A damaged row becomes a `BadRow` in its place, so that it can be counted; a file that as a whole is not what it should
be is a ValueError. Nothing is read into memory that is larger than `MAX_LINE_BYTES` or a Parquet batch.
"""

import codecs
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeAlias

MAX_LINE_BYTES = 1 << 20
PARQUET_BATCH_ROWS = 1
"""Rows that are decoded at once. Rows may share one stored value: a file of 6 kB may unpack to gigabytes."""
TEXT_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
SUFFIXES = (*TEXT_SUFFIXES, ".parquet")


class BadRow(NamedTuple):
    reason: str
    detail: str


Row: TypeAlias = dict[str, Any] | BadRow


def read_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Rows of a manifest or Parquet file with their 1-based line (or row) numbers; the format goes by suffix.

    Raises:
        ValueError: missing, not UTF-8, without header, not Parquet; one line.
    """
    readers = {".csv": read_csv, ".tsv": read_tsv, ".parquet": read_parquet}
    try:
        yield from readers.get(path.suffix.lower(), read_json_lines)(path)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None


def read_json_lines(path: Path) -> Iterator[tuple[int, Row]]:
    for number, line in bounded_lines(path):
        if isinstance(line, BadRow):
            yield number, line
        elif line.strip():
            yield number, parse_json_object(line)


def parse_json_object(line: str) -> Row:
    try:
        value = json.loads(line, object_pairs_hook=unique_members)
    except (ValueError, RecursionError) as error:  # RecursionError: thousands of nested brackets
        return BadRow("INVALID_ROW", f"not JSON: {error}")
    if not isinstance(value, dict):
        return BadRow("INVALID_ROW", f"expected a JSON object, found {type(value).__name__}")
    return value


def unique_members(members: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON allows a name twice, and Python takes the last: a transcript would vanish in silence."""
    value = dict(members)
    if len(value) < len(members):
        names = [name for name, _ in members]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice!r} occurs twice")
    return value


def read_csv(path: Path) -> Iterator[tuple[int, Row]]:
    """Comma-separated, RFC 4180. An open quotation mark costs the rows up to the next error, as one `BadRow`."""
    problems: list[tuple[int, Row]] = []
    reader = csv.reader(good_lines(path, problems), strict=True)
    header: list[str] | None = None
    while True:
        first_line = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            problems.append((first_line, BadRow("INVALID_ROW", f"not CSV up to line {reader.line_num}: {error}")))
            continue
        if fields is None:
            break
        if header is None:
            header = checked_header(fields, path)
        elif fields:
            yield first_line, row_of_fields(header, fields)
        yield from problems
        problems.clear()
    yield from problems


def read_tsv(path: Path) -> Iterator[tuple[int, Row]]:
    """Tab-separated without quoting, since Hebrew abbreviations hold quotation marks.

    A field that is quoted as a whole, with its inner quotation marks doubled, is what spreadsheets write: unquoted.
    """
    header: list[str] | None = None
    for number, line in bounded_lines(path):
        if isinstance(line, BadRow):
            yield number, line
            continue
        if not line.strip():
            continue
        fields = [unquoted(field) for field in line.rstrip("\r\n").split("\t")]
        if header is None:
            header = checked_header(fields, path)
        else:
            yield number, row_of_fields(header, fields)


def unquoted(field: str) -> str:
    inner = field[1:-1]
    if len(field) < 2 or field[0] != '"' or field[-1] != '"' or '"' in inner.replace('""', ""):
        return field
    return inner.replace('""', '"')


def checked_header(fields: list[str], path: Path) -> list[str]:
    header = [field.strip() for field in fields]
    if len(set(header)) < len(header):
        raise ValueError(f"{path}: a column name occurs twice in the header: {', '.join(header)}")
    return header


def row_of_fields(header: list[str], fields: list[str]) -> Row:
    if len(fields) != len(header):
        return BadRow("INVALID_ROW", f"found {len(fields)} fields, expected {len(header)} as in the header")
    return {name: field for name, field in zip(header, fields, strict=True) if field.strip()}


def good_lines(path: Path, problems: list[tuple[int, Row]]) -> Iterator[str]:
    """Lines for the CSV reader, which takes nothing but text; what is no line is put aside, an empty line instead."""
    for number, line in bounded_lines(path):
        if isinstance(line, BadRow):
            problems.append((number, line))
        yield "\n" if isinstance(line, BadRow) else line


def bounded_lines(path: Path) -> Iterator[tuple[int, str | BadRow]]:
    """Numbered lines of a UTF-8 file, with or without byte order mark; those above `MAX_LINE_BYTES` are bad rows."""
    with path.open("rb") as file:
        check_byte_order_mark(file, path)
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
                num_bytes = len(line) + skip_line(file)
                yield number, BadRow("LINE_TOO_LONG", f"{num_bytes} bytes, expected at most {MAX_LINE_BYTES}")
                continue
            try:
                yield number, line.decode("utf-8")
            except UnicodeDecodeError as error:
                found = f"line {number}: byte 0x{line[error.start]:02x} at column {error.start + 1} is not UTF-8"
                raise ValueError(f"{path} {found}; convert it: iconv -f windows-1255 -t utf-8") from None


def check_byte_order_mark(file: BinaryIO, path: Path) -> None:
    head = file.read(4)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)):
        raise ValueError(f"{path} is UTF-16 or UTF-32, expected UTF-8; convert it: iconv -f utf-16 -t utf-8")
    file.seek(len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0)


def skip_line(file: BinaryIO) -> int:
    """Read to the end of a long line piece by piece; returns the number of bytes."""
    num_bytes = 0
    while piece := file.readline(MAX_LINE_BYTES):
        num_bytes += len(piece)
        if piece.endswith(b"\n"):
            break
    return num_bytes


def read_parquet(path: Path) -> Iterator[tuple[int, Row]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(PARQUET_BATCH_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except FileNotFoundError:
        raise
    except (pyarrow.ArrowException, OSError) as error:  # OSError: a footer that is no Thrift
        raise ValueError(f"{path} cannot be read as Parquet: {' '.join(str(error).split())}") from None
