"""Every kind of source gives the same items; a damaged row is counted in its place; no path leads outside."""

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from caspi.config import Prepare
from caspi.records import Rejected
from caspi.speech.corpora import tables
from caspi.speech.corpora.corpus import RawItem, Source, open_sources


def flac(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    samples = 0.1 * np.random.default_rng(seed).standard_normal(16_000)
    soundfile.write(buffer, samples, 16_000, format="FLAC")
    return buffer.getvalue()


def open_manifest(path: Path, **section: Any) -> Source:
    (source,) = open_sources(Prepare(manifest=(path,), **section))
    return source


def open_dataset(name: Path | str, **section: Any) -> Source:
    (source,) = open_sources(Prepare(datasets=(str(name),), **section))
    return source


def write_rows(path: Path, *rows: dict[str, Any] | str) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def only_item(source: Source) -> RawItem:
    (item,) = source.items()
    assert isinstance(item, RawItem), item
    return item


def test_the_same_row_is_the_same_item_in_every_text_format(tmp_path: Path) -> None:
    row = {"id": "u1", "audio_filepath": "a.wav", "text": 'צה"ל, אמר', "offset": "1.5", "domain": "kan_clean", "x": "?"}
    write_rows(tmp_path / "m.jsonl", row)
    quoted = {key: '"' + value.replace('"', '""') + '"' for key, value in row.items()}
    (tmp_path / "m.csv").write_text(",".join(row) + "\n" + ",".join(quoted.values()) + "\n", encoding="utf-8-sig")
    (tmp_path / "m.tsv").write_text("\t".join(row) + "\r\n" + "\t".join(row.values()) + "\r\n", encoding="utf-8")
    expected = RawItem("u1", "m", 'צה"ל, אמר', tmp_path / "a.wav", None, 1.5, None, "kan_clean", None, None, None, None)
    for suffix in ("jsonl", "csv", "tsv"):
        source = open_manifest(tmp_path / f"m.{suffix}")
        assert only_item(source) == expected, suffix
        assert source.ignored_columns == {"x"}, suffix


def test_columns_of_ivrit_corpora_are_understood(tmp_path: Path) -> None:
    """Transcript and previous transcript by their names there; score and recording inside the metadata struct."""
    row = {
        "audio": {"bytes": None, "path": "a.wav"},
        "transcript": "<|0.00|>שלום<|1.00|>",
        "prev_transcript": "לפני כן",
        "uuid": "e7",
        "metadata": {"quality_score": 0.75, "source_entry_id": 12, "seek": 3.0},
    }
    source = open_manifest(write_rows(tmp_path / "m.jsonl", row))
    item = only_item(source)
    assert (item.id, item.text, item.prev_text) == ("e7", "<|0.00|>שלום<|1.00|>", "לפני כן")
    assert (item.quality_score, item.group_id) == (0.75, "12")
    assert source.ignored_columns == {"seek"}


def test_missing_values_in_the_manner_of_pandas_are_missing(tmp_path: Path) -> None:
    line = (
        '{"audio_filepath": "a.wav", "text": "כן", "id": null, "speaker_id": 12.0, "domain": NaN, "quality_score": NaN}'
    )
    item = only_item(open_manifest(write_rows(tmp_path / "m.jsonl", line)))
    assert (item.id, item.group_id, item.domain, item.quality_score) == ("m-0000001", "12", None, None)


BAD_ROWS = {
    "truncated JSON": ('{"audio_filepath": "a.wav", "te', "INVALID_ROW"),
    "a list": ("[1, 2]", "INVALID_ROW"),
    "a bomb of brackets": ("[" * 100_000, "INVALID_ROW"),
    "an integer of 5000 digits": ('{"text": "x", "audio": "a.wav", "offset": ' + "9" * 5000 + "}", "INVALID_ROW"),
    "an integer of 400 digits": ('{"text": "x", "audio": "a.wav", "offset": ' + "9" * 400 + "}", "NON_FINITE_NUMBER"),
    "NaN offset": ('{"text": "x", "audio": "a.wav", "offset": NaN}', "NON_FINITE_NUMBER"),
    "infinite duration": ('{"text": "x", "audio": "a.wav", "duration": 1e999}', "NON_FINITE_NUMBER"),
    "nan as text": ('{"text": "x", "audio": "a.wav", "duration": "nan"}', "NON_FINITE_NUMBER"),
    "infinite score": ('{"text": "x", "audio": "a.wav", "quality_score": 1e999}', "NON_FINITE_NUMBER"),
    "negative offset": ('{"text": "x", "audio": "a.wav", "offset": -1}', "INVALID_NUMBER"),
    "words for a number": ('{"text": "x", "audio": "a.wav", "offset": "soon"}', "INVALID_NUMBER"),
    "truth for a number": ('{"text": "x", "audio": "a.wav", "offset": true}', "INVALID_NUMBER"),
    "a number for text": ('{"text": 5, "audio": "a.wav"}', "INVALID_ROW"),
    "a surrogate in the id": ('{"id": "\\ud800", "text": "x", "audio": "a.wav"}', "INVALID_ROW"),
    "an endless id": ('{"id": "' + "x" * 600 + '", "text": "x", "audio": "a.wav"}', "INVALID_ROW"),
    "no audio": ('{"text": "x"}', "NO_AUDIO"),
    "audio of no kind": ('{"text": "x", "audio": 7}', "NO_AUDIO"),
    "web address": ('{"text": "x", "audio": "https://host/a.wav"}', "AUDIO_URL"),
    "file address": ('{"text": "x", "audio": "file:///etc/passwd"}', "AUDIO_URL"),
    "NUL in the path": ('{"text": "x", "audio": "a\\u0000.wav"}', "AUDIO_MISSING"),
    "surrogate in the path": ('{"text": "x", "audio": "\\ud800.wav"}', "AUDIO_MISSING"),
    "path that is not UTF-8": ('{"text": "x", "audio": "\\udc80.wav"}', "AUDIO_MISSING"),
    "absolute path": ('{"text": "x", "audio": "/etc/passwd"}', "AUDIO_OUTSIDE_ROOT"),
    "path upwards": ('{"text": "x", "audio": "../../etc/passwd"}', "AUDIO_OUTSIDE_ROOT"),
}


@pytest.mark.parametrize(("line", "reason"), BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_a_bad_row_is_quarantined_with_its_reason(tmp_path: Path, line: str, reason: str) -> None:
    source = open_manifest(write_rows(tmp_path / "m.jsonl", line))
    (rejected,) = source.items()
    assert isinstance(rejected, Rejected)
    assert rejected.reason == reason
    rejected.detail.encode("utf-8")
    assert "\n" not in rejected.detail


def test_a_line_of_a_gigabyte_is_one_bad_row_and_is_never_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_LINE_BYTES", 1000)
    good = {"id": "good", "audio_filepath": "a.wav", "text": "כן"}
    path = write_rows(tmp_path / "m.jsonl", {"text": "x" * 50_000}, good)
    long, item = open_manifest(path).items()
    assert isinstance(long, Rejected)
    assert (long.reason, long.id) == ("LINE_TOO_LONG", "m-0000001")
    assert isinstance(item, RawItem)
    assert item.id == "good"


def test_symlinks_count_where_they_lead(tmp_path: Path) -> None:
    inside = tmp_path / "corpus"
    inside.mkdir()
    (tmp_path / "secret.wav").write_bytes(b"x")
    (inside / "out.wav").symlink_to(tmp_path / "secret.wav")
    (inside / "in.wav").symlink_to(inside / "real.wav")
    path = write_rows(
        inside / "m.jsonl", {"text": "x", "audio_filepath": "out.wav"}, {"text": "x", "audio_filepath": "in.wav"}
    )
    outside, item = open_manifest(path).items()
    assert isinstance(outside, Rejected)
    assert outside.reason == "AUDIO_OUTSIDE_ROOT"
    assert isinstance(item, RawItem)
    assert item.audio_path == inside / "real.wav"
    allowed, _ = open_manifest(path, root=tmp_path).items()
    assert isinstance(allowed, RawItem)
    assert allowed.audio_path == tmp_path / "secret.wav"


def test_an_open_quotation_mark_in_csv_loses_no_row_in_silence(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "m.csv", "id,audio_filepath,text", "1,a.wav,one", '2,b.wav,"two', "3,c.wav,three")
    first, rest = open_manifest(path).items()
    assert isinstance(first, RawItem)
    assert isinstance(rest, Rejected)
    assert rest.reason == "INVALID_ROW"
    assert "up to line 4" in rest.detail


def test_csv_rows_must_have_the_fields_of_the_header(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "m.csv", "audio_filepath,text", "a.wav,one,more", "a.wav", "", "a.wav,good")
    many, few, good = open_manifest(path).items()
    assert isinstance(many, Rejected)
    assert "found 3 fields, expected 2" in many.detail
    assert isinstance(few, Rejected)
    assert isinstance(good, RawItem)
    assert good.id == "m-0000005", "a generated id is the number of the line"


def test_tsv_keeps_quotation_marks_of_hebrew_abbreviations(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "m.tsv", "audio_filepath\ttext", 'a.wav\t"כן" אמר רמטכ"ל', 'b.wav\t"רמטכ""ל"')
    texts = [item.text for item in open_manifest(path).items() if isinstance(item, RawItem)]
    assert texts == ['"כן" אמר רמטכ"ל', 'רמטכ"ל']


REFUSED = {
    "UTF-16": ("m.jsonl", '{"text": "x"}'.encode("utf-16"), "UTF-16"),
    "Windows-1255": ("m.csv", "audio_filepath,text\na.wav,שלום\n".encode("cp1255"), "line 2: byte 0xf9"),
    "doubled column": ("m.csv", b"text,text\n", "occurs twice"),
    "unknown format": ("m.xlsx", b"PK", "unknown format '.xlsx'"),
    "text named parquet": ("m.parquet", b"hello", "cannot be read as Parquet"),
    "empty parquet": ("m.parquet", b"", "cannot be read as Parquet"),
}


@pytest.mark.parametrize(("name", "content", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_file_that_is_wrong_as_a_whole_is_one_clear_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        list(open_manifest(tmp_path / name).items())
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_missing_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.jsonl does not exist"):
        open_manifest(tmp_path / "absent.jsonl")
    with pytest.raises(ValueError, match=r"is not a file but a folder; for a folder: caspi prepare --datasets"):
        open_manifest(tmp_path)
    with pytest.raises(ValueError, match=r"absent does not exist, and is not an id"):
        open_dataset(tmp_path / "absent")
    with pytest.raises(ValueError, match="nothing to prepare"):
        open_sources(Prepare(datasets=()))


def test_sources_of_the_same_name_keep_their_ids_apart(tmp_path: Path) -> None:
    paths = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        paths.append(write_rows(tmp_path / folder / "train.jsonl", {"audio_filepath": "a.wav", "text": "כן"}))
    sources = open_sources(Prepare(manifest=tuple(paths)))
    ids = [item.id for source in sources for item in source.items()]
    assert ids == ["train-0000001", "train-2-0000001"]


def table_of(num_rows: int) -> Any:
    import pyarrow

    audio = [{"bytes": flac(seed), "path": f"{seed}.flac"} for seed in range(num_rows)]
    return pyarrow.table({"audio": audio, "sentence": [f"משפט {number}" for number in range(num_rows)]})


def check_embedded(source: Source, num_rows: int = 3) -> None:
    items = [item for item in source.items() if isinstance(item, RawItem)]
    assert [item.text for item in items] == [f"משפט {number}" for number in range(num_rows)]
    assert [item.audio_bytes for item in items] == [flac(seed) for seed in range(num_rows)], "bytes as they were stored"
    assert len({item.id for item in items}) == num_rows
    assert source.fingerprint


def test_parquet_rows_come_with_their_bytes_over_several_row_groups(tmp_path: Path) -> None:
    import pyarrow.parquet

    pyarrow.parquet.write_table(table_of(5), tmp_path / "train.parquet", row_group_size=2)
    check_embedded(open_dataset(tmp_path / "train.parquet"), num_rows=5)


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


@pytest.mark.parametrize("typed", [False, True], ids=["struct", "Audio feature"])
def test_a_dataset_repository_folder_is_read_without_decoding(tmp_path: Path, hub_cache: Path, typed: bool) -> None:
    """torchcodec is not installed: decoding would fail."""
    import datasets

    dataset = datasets.Dataset(table_of(3))
    if typed:
        dataset = dataset.cast_column("audio", datasets.Audio())
    (tmp_path / "repo" / "data").mkdir(parents=True)
    dataset.to_parquet(tmp_path / "repo" / "data" / "train-00000-of-00001.parquet")
    check_embedded(open_dataset(tmp_path / "repo"))
    with pytest.raises(ValueError, match="split") as caught:
        list(open_dataset(tmp_path / "repo", split="test").items())
    assert "train" in str(caught.value)


@pytest.mark.parametrize("with_splits", [False, True], ids=["dataset", "dataset of splits"])
def test_a_saved_dataset_is_read(tmp_path: Path, hub_cache: Path, with_splits: bool) -> None:
    import datasets

    dataset = datasets.Dataset(table_of(3)).cast_column("audio", datasets.Audio())
    saved = datasets.DatasetDict({"train": dataset}) if with_splits else dataset
    saved.save_to_disk(tmp_path / "saved")
    check_embedded(open_dataset(tmp_path / "saved"))
    if with_splits:
        with pytest.raises(ValueError, match="no split 'dev', found train"):
            list(open_dataset(tmp_path / "saved", split="dev").items())


@pytest.mark.parametrize("part", [".", "train"])
def test_an_audio_folder_is_read_from_its_metadata(tmp_path: Path, part: str) -> None:
    (tmp_path / part).mkdir(exist_ok=True)
    write_rows(tmp_path / part / "metadata.csv", "file_name,transcription", "clips/a.flac,שלום")
    item = only_item(open_dataset(tmp_path))
    assert item.audio_path == Path(os.path.realpath(tmp_path / part / "clips" / "a.flac"))
    assert item.text == "שלום"


def test_a_dataset_that_cannot_be_had_says_what_to_do(hub_cache: Path) -> None:
    with pytest.raises(ValueError, match="crowd-transcribe-v5") as caught:
        list(open_dataset("ivrit-ai/crowd-transcribe-v5").items())
    message = str(caught.value)
    assert "\n" not in message
    assert "then give the folder" in message


def test_a_folder_of_sounds_with_their_texts_is_a_source_and_every_file_is_accounted_for(tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    (folder / "call 7").mkdir(parents=True)
    for name in ("a.wav", "call 7/b.flac", "silent.wav", "outside.wav", "windows.wav", "phone.m4a"):
        (folder / name).write_bytes(b"x")
    for name, text in {"a": "שלום", "call 7/b": "\ufeffבוקר\r\nטוב", "phone": "כן", "widow": "לא"}.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8", newline="")
    (folder / "windows.txt").write_bytes("שלום".encode("windows-1255"))
    (tmp_path / "secret.txt").write_text("root:x:0:0", encoding="utf-8")
    (folder / "outside.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "notes.TXT").write_text("?")
    source = open_dataset(folder)
    items = list(source.items())
    found = [(item.id, item.audio_path, item.text) for item in items if isinstance(item, RawItem)]
    assert found == [
        ("a", folder / "a.wav", "שלום"),
        ("call 7/b", folder / "call 7" / "b.flac", "בוקר\r\nטוב"),
        ("phone", folder / "phone.m4a", "כן"),
    ]
    rejected = {item.reason: item.detail for item in items if isinstance(item, Rejected)}
    assert rejected.keys() == {"NO_TRANSCRIPT", "TEXT_OUTSIDE_ROOT", "INVALID_TEXT", "NO_AUDIO"}
    assert "silent.wav" in rejected["NO_TRANSCRIPT"]
    assert "widow.txt" in rejected["NO_AUDIO"]
    assert source.unused_files == {"notes.TXT"}
    before = source.fingerprint
    (folder / "a.txt").write_text("שלוש", encoding="utf-8")
    again = open_dataset(folder)
    list(again.items())
    assert again.fingerprint != before
