"""The alignment cache survives a kill at any byte and refuses what it did not write."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from caspi.ops.audit.alignment_cache import alignment_key, open_cache

ENTRIES = {alignment_key("a" * 64, ["שלום", number], "m" * 64): {"score": number / 3} for number in range(4)}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "folder" / "cache.jsonl"
    with open_cache(path) as cache:
        for key, value in ENTRIES.items():
            cache.add(key, value)
    return path


def test_what_was_added_is_found_again(written: Path) -> None:
    with open_cache(written) as cache:
        assert {key: cache[key] for key in ENTRIES} == ENTRIES
        assert "no such key" not in cache
        cache.add("new", [1, None])
        assert cache["new"] == [1, None]
    with open_cache(written) as cache:
        assert len(cache) == len(ENTRIES) + 1


def test_audio_question_and_model_each_change_the_key() -> None:
    keys = {
        alignment_key(audio, request, model)
        for audio in ("a", "b")
        for request in (["x", 1], ["x", 2])
        for model in ("m", "n")
    }
    assert len(keys) == 8


def test_a_file_cut_at_any_byte_keeps_every_whole_entry_and_can_be_continued(
    written: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = written.read_bytes()
    ends = [index + 1 for index, byte in enumerate(whole) if byte == ord("\n")]
    for size in sorted({0, 1, *range(0, len(whole), 41), *ends[:-1], *(end - 1 for end in ends), ends[1] + 1}):
        written.write_bytes(whole[:size])
        caplog.clear()
        with caplog.at_level(logging.WARNING), open_cache(written) as cache:
            num_kept = sum(end <= size for end in ends)
            assert len(cache) == num_kept
            assert bool(caplog.records) == (size not in (0, *ends)), size
            for key, value in list(ENTRIES.items())[num_kept:]:
                cache.add(key, value)
        assert written.read_bytes() == whole


def test_a_last_line_of_rubbish_is_cut_off_too(written: Path) -> None:
    whole = written.read_bytes()
    written.write_bytes(whole + b"\0" * 40 + b"\n")
    with open_cache(written) as cache:
        assert len(cache) == len(ENTRIES)
    assert written.read_bytes() == whole


@pytest.mark.parametrize(
    "line",
    [b"{", b"[]", b'{"key": 1, "value": 2}', b'{"key": "k"}', b"\xff\xfe", b'{"key": "k", "value": 1, "more": 2}'],
)
def test_a_damaged_line_in_the_middle_is_named_and_refused(written: Path, line: bytes) -> None:
    lines = written.read_bytes().splitlines(keepends=True)
    written.write_bytes(b"".join([lines[0], line + b"\n", *lines[2:]]))
    with pytest.raises(ValueError, match=r"cache\.jsonl line 2 is damaged.*delete the file"), open_cache(written):
        pass


def test_a_folder_in_its_place_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be opened"), open_cache(tmp_path):
        pass


def test_two_writers_are_kept_apart(written: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from caspi.ops.audit.alignment_cache import open_cache\n"
        "try:\n    open_cache(Path(sys.argv[1])).__enter__()\n"
        "except ValueError as error:\n    print(error)"
    )
    with open_cache(written):
        done = subprocess.run([sys.executable, "-c", code, str(written)], capture_output=True, text=True, check=True)
    assert "another process is writing to" in done.stdout
    assert len(json.loads(written.read_text(encoding="utf-8").splitlines()[0])["key"]) == 64
