"""What strangers send: through the real command line, with little memory and little time.

Each ends in one clear line and exit code 2, or in a counted outcome; the threats are listed in docs/design.md.
"""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile
from limited import assert_refused, caspi, put, sparse

from caspi.records import Rejected, read_jsonl, read_manifest

GIB = 2**30
TEXT = "שלום עולם"


def tone(seconds: float = 1.0, rate_hz: int = 16_000) -> np.ndarray:
    return (0.2 * np.sin(2 * np.pi * 300 * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def sound(container: str, subtype: str, samples: np.ndarray | None = None, rate_hz: int = 16_000) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, tone() if samples is None else samples, rate_hz, format=container, subtype=subtype)
    return buffer.getvalue()


def patched(data: bytes, position: int, replacement: bytes) -> bytes:
    return data[:position] + replacement + data[position + len(replacement) :]


def with_value(value: float, encoding: str = "FLOAT") -> bytes:
    samples = tone()
    samples[800] = value
    return sound("WAV", encoding, samples)


def flac_claiming(num_samples: int) -> bytes:
    """The number of samples is the 36 bits from the middle of byte 21 on (RFC 9639 section 8.2)."""
    data = sound("FLAC", "PCM_16")
    first = data[21] & 0xF0 | num_samples >> 32
    return patched(data, 21, bytes([first]) + (num_samples & 0xFFFFFFFF).to_bytes(4, "big"))


def ogg_claiming_hours() -> bytes:
    """Every page's granule position (byte 6 on) is raised to 2^50 samples; the pages' checksums are left wrong."""
    data = bytearray(sound("OGG", "VORBIS"))
    start = data.find(b"OggS", 1)
    while start >= 0:
        data[start + 6 : start + 14] = (2**50).to_bytes(8, "little")
        start = data.find(b"OggS", start + 4)
    return bytes(data)


def two_hours_of_silence() -> bytes:
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", 16_000, 1, format="FLAC", subtype="PCM_16") as file:
        for _ in range(72):
            file.write(np.zeros(1_600_000, dtype=np.int16))
    return buffer.getvalue()


def id3(num_bytes: int) -> bytes:
    """A tag header that states so many bytes, seven bits in each of four."""
    return b"ID3\x04\0\0" + bytes(num_bytes >> shift & 0x7F for shift in (21, 14, 7, 0))


AUDIO: dict[str, tuple[str, Callable[[Path], object]]] = {
    "0 bytes": ("AUDIO_EMPTY", put(lambda: b"")),
    "1 byte": ("AUDIO_UNSUPPORTED", put(lambda: b"R")),
    "text": ("AUDIO_UNSUPPORTED", put(lambda: b"not audio " * 50)),
    "zip": ("AUDIO_UNSUPPORTED", put(lambda: b"PK\x03\x04" + bytes(2000))),
    "gzip": ("AUDIO_UNSUPPORTED", put(lambda: b"\x1f\x8b\x08" + bytes(2000))),
    "html": ("AUDIO_UNSUPPORTED", put(lambda: b"<!DOCTYPE html><title>404</title>")),
    "wrong magic": ("AUDIO_UNSUPPORTED", put(lambda: patched(sound("WAV", "PCM_16"), 0, b"RIFZ"))),
    "wav cut off": ("AUDIO_TRUNCATED", put(lambda: sound("WAV", "PCM_16")[:9000])),
    "flac cut off": ("AUDIO_TRUNCATED", put(lambda: sound("FLAC", "PCM_16")[:3000])),
    "mp3 cut off": ("AUDIO_TRUNCATED", put(lambda: sound("MP3", "MPEG_LAYER_III")[:2000])),
    "flac claims 400 hours": ("AUDIO_HEADER", put(lambda: flac_claiming(400 * 3600 * 16_000))),
    "flac claims 8 hours": ("AUDIO_TRUNCATED", put(lambda: flac_claiming(8 * 3600 * 16_000))),
    "ogg claims 2^50 samples": ("AUDIO_UNREADABLE", put(ogg_claiming_hours)),
    "NaN": ("AUDIO_NOT_FINITE", put(lambda: with_value(np.nan))),
    "infinity": ("AUDIO_NOT_FINITE", put(lambda: with_value(np.inf))),
    "-infinity in doubles": ("AUDIO_NOT_FINITE", put(lambda: with_value(-np.inf, "DOUBLE"))),
    "scale of integers": ("AUDIO_OVER_RANGE", put(lambda: with_value(20_000.0))),
    "96 channels": ("AUDIO_HEADER", put(lambda: sound("WAV", "PCM_16", np.zeros((1000, 96), np.float32)))),
    "100 Hz": ("AUDIO_HEADER", put(lambda: patched(sound("WAV", "PCM_16"), 24, (100).to_bytes(4, "little")))),
    "4 GHz": ("AUDIO_HEADER", put(lambda: patched(sound("WAV", "PCM_16"), 24, b"\xff\xff\xff\x7f"))),
    "format chunk of 4 GiB": ("AUDIO_UNREADABLE", put(lambda: patched(sound("WAV", "PCM_16"), 16, b"\xff" * 4))),
    "id3 of 255 MiB": ("AUDIO_UNREADABLE", put(lambda: id3(2**28 - 1) + bytes(3000))),
    "600 MiB": ("AUDIO_TOO_LARGE", lambda path: sparse(path, 600 * 2**20, sound("WAV", "PCM_16"))),
    "folder": ("AUDIO_NOT_A_FILE", lambda path: path.mkdir()),
    "fifo": ("AUDIO_NOT_A_FILE", lambda path: os.mkfifo(path)),
    "link out of the folder": ("AUDIO_OUTSIDE_ROOT", lambda path: path.symlink_to("/etc/passwd")),
    "link to a device": ("AUDIO_OUTSIDE_ROOT", lambda path: path.symlink_to("/dev/zero")),
    "link to itself": ("AUDIO_UNREADABLE", lambda path: path.symlink_to(path)),
    "link to nothing": ("AUDIO_MISSING", lambda path: path.symlink_to("nothing.wav")),
    "nothing": ("AUDIO_MISSING", lambda path: None),
}
STRANGE_BUT_GOOD: dict[str, Callable[[Path], object]] = {
    "8 bits": put(lambda: sound("WAV", "PCM_U8")),
    "192 kHz": put(lambda: sound("WAV", "PCM_24", tone(1.0, 192_000), 192_000)),
    "size from a pipe": put(lambda: patched(sound("WAV", "PCM_16"), 4, b"\xff" * 4)),
    "both sizes from a pipe": put(lambda: patched(patched(sound("WAV", "PCM_16"), 4, b"\xff" * 4), 40, b"\xff" * 4)),
    "cover picture of 8 MiB": put(lambda: id3(8 * 2**20) + bytes(8 * 2**20) + sound("MP3", "MPEG_LAYER_III")),
    "two hours in 360 kB": put(two_hours_of_silence),
    "8 channels": put(lambda: sound("WAV", "PCM_16", np.stack([tone()] * 8, axis=1))),
}


def write_rows(path: Path, *rows: dict[str, Any] | str) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def row(name: str, **columns: Any) -> dict[str, Any]:
    return {"id": name, "audio_filepath": f"{name}.wav", "text": TEXT, "domain": "kan_clean", **columns}


def quarantined(folder: Path) -> dict[str, str]:
    return {item.id: item.reason for item in read_jsonl(folder / "data" / "quarantine.jsonl", Rejected)}


def test_each_hostile_file_is_counted_with_its_reason_and_strange_good_ones_are_kept(tmp_path: Path) -> None:
    for name, (_, make) in AUDIO.items():
        make(tmp_path / f"{name}.wav")
    for name, make in STRANGE_BUT_GOOD.items():
        make(tmp_path / f"{name}.wav")
    write_rows(tmp_path / "m.jsonl", *(row(name) for name in (*AUDIO, *STRANGE_BUT_GOOD)))
    ended = caspi("prepare", "--manifest", "m.jsonl", folder=tmp_path)
    assert ended.exit_code == 0, ended.printed
    assert quarantined(tmp_path) == {name: reason for name, (reason, _) in AUDIO.items()}
    kept = {item.id: item.duration for item in read_manifest(tmp_path / "data" / "manifest.jsonl")}
    assert kept.keys() == STRANGE_BUT_GOOD.keys()
    assert {name for name, seconds in kept.items() if abs(seconds - 1) > 0.2} == {"two hours in 360 kB"}
    for reason in quarantined(tmp_path).values():
        assert reason in ended.out


def unescaped(name: str, **columns: Any) -> str:
    """A line as Python's json writes it by default: ASCII, with NaN and lone surrogates."""
    return json.dumps(row(name, **{"audio_filepath": "good.wav", **columns}))


ROWS: dict[str, tuple[str, dict[str, Any] | str]] = {
    "up and out": ("AUDIO_OUTSIDE_ROOT", {"audio_filepath": "../../../etc/passwd"}),
    "absolute": ("AUDIO_OUTSIDE_ROOT", {"audio_filepath": "/etc/passwd"}),
    "http": ("AUDIO_URL", {"audio_filepath": "http://localhost/a.wav"}),
    "file url": ("AUDIO_URL", {"audio_filepath": "file:///etc/passwd"}),
    "bucket": ("AUDIO_URL", {"audio_filepath": "s3://bucket/a.wav"}),
    "NUL in the path": ("AUDIO_MISSING", {"audio_filepath": "a\0.wav"}),
    "surrogate in the path": ("AUDIO_MISSING", unescaped("surrogate in the path", audio_filepath="\ud800")),
    "path is a list": ("NO_AUDIO", {"audio_filepath": ["good.wav"]}),
    "no path": ("NO_AUDIO", {"audio_filepath": ""}),
    "path of a megabyte": ("AUDIO_UNREADABLE", {"audio_filepath": "x" * 900_000}),
    "NaN": ("NON_FINITE_NUMBER", unescaped("NaN", offset=float("nan"))),
    "infinity": ("NON_FINITE_NUMBER", unescaped("infinity", duration=float("inf"))),
    "1e400": ("NON_FINITE_NUMBER", unescaped("1e400", duration=0.5).replace("0.5", "1e400")),
    "negative": ("INVALID_NUMBER", {"offset": -1}),
    "number is an object": ("INVALID_NUMBER", {"offset": {}}),
    "10^300 seconds": ("AUDIO_STRETCH", {"offset": 1e300}),
    "0 seconds": ("AUDIO_STRETCH", {"duration": 0}),
    "text is a number": ("INVALID_ROW", {"text": 7}),
    "text is an object": ("INVALID_ROW", {"text": {"a": "b"}}),
    "lone surrogate": ("INVALID_TEXT", unescaped("lone surrogate", text="\ud800 כן")),
    "replacement": ("INVALID_TEXT", {"text": "\ufffd\ufffd"}),
    "only controls": ("EMPTY_TRANSCRIPT", {"text": "\u202e\u200f\x07\x1b"}),
    "only prompt tokens": ("EMPTY_TRANSCRIPT", {"text": "<|im_end|><asr_text><|im_start|>"}),
    "same id": ("DUPLICATE_ID", {"id": "good"}),
}  # fmt: skip
UNNAMED_ROWS: dict[str, tuple[str, str]] = {
    "not JSON": ("INVALID_ROW", "{'id': 'a'}"),
    "a list": ("INVALID_ROW", "[1, 2]"),
    "cut off": ("INVALID_ROW", '{"id": "a", "audio_fil'),
    "deep": ("INVALID_ROW", "[" * 100_000),
    "deep object": ("INVALID_ROW", '{"a":' * 50_000 + "1" + "}" * 50_000),
    "number of 5000 digits": ("INVALID_ROW", '{"id": ' + "9" * 5000 + "}"),
    "the same key twice": ("INVALID_ROW", '{"id": "k", "text": "כן", "text": "לא", "audio_filepath": "good.wav"}'),
    "id with an escape sequence": ("INVALID_ROW", json.dumps(row("good", id="a\x1b[31mred"))),
    "id written backwards": ("INVALID_ROW", json.dumps(row("good", id="\u202eabc"))),
    "id of a megabyte": ("INVALID_ROW", json.dumps(row("good", id="x" * 900_000))),
    "NUL bytes": ("INVALID_ROW", "\0" * 100),
}


def test_each_hostile_row_is_counted_with_its_reason_and_the_good_one_is_kept(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "good.wav", tone(), 16_000)
    named = [
        item if isinstance(item, str) else row(name, **{"audio_filepath": "good.wav", **item})
        for name, (_, item) in ROWS.items()
    ]
    text = "\u202e<script>alert(1)</script>\x00 שלום\r\n\x1b[2J"
    write_rows(tmp_path / "m.jsonl", row("good", text=text), *named, *(line for _, line in UNNAMED_ROWS.values()))
    ended = caspi("prepare", "--manifest", "m.jsonl", folder=tmp_path)
    assert ended.exit_code == 0, ended.printed
    rejected = [(item.id, item.reason) for item in read_jsonl(tmp_path / "data" / "quarantine.jsonl", Rejected)]
    expected = [("good" if name == "same id" else name, reason) for name, (reason, _) in ROWS.items()]
    assert rejected[: len(ROWS)] == expected
    assert [reason for _, reason in rejected[len(ROWS) :]] == [reason for reason, _ in UNNAMED_ROWS.values()]
    (kept,) = read_manifest(tmp_path / "data" / "manifest.jsonl")
    assert kept.text == "<script>alert(1)</script> שלום [2J", "controls are gone; what looks like HTML is text"
    assert ended.printed.isascii() or "\u202e" not in ended.printed
    assert "\x1b" not in ended.printed


def jsonl(**columns: Any) -> bytes:
    return json.dumps(row("good", **columns), ensure_ascii=False).encode()


def parquet(**columns: list[Any]) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), buffer, compression="zstd")
    return buffer.getvalue()


def parquet_bomb() -> bytes:
    """64 rows that share one value of 40 MB: 6 kB on disk, 2.5 GB when they are read together."""
    audio = pyarrow.DictionaryArray.from_arrays([0] * 64, pyarrow.array([b"RIFF" + bytes(40_000_000)]))
    table = pyarrow.table({"audio": pyarrow.StructArray.from_arrays([audio], ["bytes"]), "text": [TEXT] * 64})
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer, compression="zstd", store_schema=False)
    assert len(buffer.getvalue()) < 10_000
    return buffer.getvalue()


REFUSED_MANIFESTS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "UTF-16": ("m.jsonl", put(lambda: jsonl().decode().encode("utf-16")), "UTF-16"),
    "windows-1255": ("m.jsonl", put(lambda: jsonl().decode().encode("windows-1255")), "not UTF-8; convert it"),
    "csv of another encoding": ("m.csv", put(lambda: "audio_filepath,text\na,שלום".encode("cp1255")), "not UTF-8"),
    "csv with a column twice": ("m.csv", put(lambda: b"text,text,audio_filepath\na,b,c\n"), "occurs twice"),
    "fifo": ("m.jsonl", os.mkfifo, "not a file"),
    "folder": ("m.jsonl", Path.mkdir, "is not a file but a folder"),
    "device": ("m.jsonl", lambda path: path.symlink_to("/dev/zero"), "not a file"),
    "link to itself": ("m.jsonl", lambda path: path.symlink_to(path), "m.jsonl"),
    "parquet garbage": ("m.parquet", put(lambda: b"PAR1" + bytes(5000) + b"PAR1"), "cannot be read as Parquet"),
    "parquet cut off": ("m.parquet", put(lambda: parquet(text=[TEXT] * 99)[:-40]), "cannot be read as Parquet"),
    "text as parquet": ("m.parquet", put(lambda: b"hello " * 500), "cannot be read as Parquet"),
    "unknown suffix": ("m.pkl", put(lambda: b"\x80\x04."), "unknown format"),
}


@pytest.mark.parametrize("kind", REFUSED_MANIFESTS)
def test_a_hostile_manifest_is_refused_with_one_line(kind: str, tmp_path: Path) -> None:
    name, make, expected = REFUSED_MANIFESTS[kind]
    make(tmp_path / name)
    assert_refused(caspi("prepare", "--manifest", name, folder=tmp_path), expected)


COUNTED_MANIFESTS: dict[str, tuple[str, Callable[[Path], object], list[str]]] = {
    "byte order mark and CRLF": ("m.jsonl", put(lambda: b"\xef\xbb\xbf" + jsonl() + b"\r\n"), []),
    "line of a gigabyte": ("m.jsonl", lambda path: sparse(path, GIB, jsonl() + b"\n"), ["LINE_TOO_LONG"]),
    "csv field of a megabyte": (
        "m.csv",
        put(lambda: f'audio_filepath,text\ngood.wav,כן\ngood.wav,"{"x" * 900_000}"\n'.encode()),
        ["INVALID_ROW"],
    ),
    "csv with other columns": ("m.csv", put(lambda: b"wav,words\ngood.wav,hello\n"), ["NO_AUDIO"]),
    "csv with a field too many": (
        "m.csv",
        put(lambda: "audio_filepath,text\ngood.wav,כן\ngood.wav,כן,לא\n".encode()),
        ["INVALID_ROW"],
    ),
    "parquet with other columns": ("m.parquet", put(lambda: parquet(wav=["a"], words=["b"])), ["NO_AUDIO"]),
    "parquet of numbers": ("m.parquet", put(lambda: parquet(audio=[1.5], text=[7])), ["NO_AUDIO"]),
    "parquet bomb": ("m.parquet", put(parquet_bomb), ["AUDIO_UNSUPPORTED"]),
}


@pytest.mark.parametrize("kind", COUNTED_MANIFESTS)
def test_a_strange_manifest_loses_no_row_in_silence(kind: str, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "good.wav", tone(), 16_000)
    name, make, reasons = COUNTED_MANIFESTS[kind]
    make(tmp_path / name)
    caspi("prepare", "--manifest", name, folder=tmp_path)
    rejected = list(read_jsonl(tmp_path / "data" / "quarantine.jsonl", Rejected))
    assert sorted({item.reason for item in rejected}) == reasons
    summary = json.loads((tmp_path / "data" / "prepare_summary.json").read_text(encoding="utf-8"))
    assert summary["num_rows"] == summary["num_utterances"] + len(rejected)
