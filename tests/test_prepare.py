"""`caspi prepare` as a user runs it: every row ends in the manifest or, with its reason, in quarantine."""

import hashlib
import io
import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile

from caspi.cli import main
from caspi.ops.progress import clock, progress_text, track
from caspi.records import Rejected, read_jsonl, read_manifest
from caspi.speech.corpora.audio import AudioError
from caspi.speech.corpora.clips import ClipFacts, FileJob, Finding, Stretch, inspect_file, inspect_files


def tone(seconds: float, rate_hz: int = 16_000) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * 300 * np.arange(round(seconds * rate_hz)) / rate_hz)


def write_manifest(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "corpus.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def prepare(manifest: Path, output: Path, *flags: str) -> int:
    return main(["prepare", "--manifest", str(manifest), "--output", str(output), *flags])


def reasons(output: Path) -> dict[str, str]:
    return {item.id: item.reason for item in read_jsonl(output / "quarantine.jsonl", Rejected)}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    soundfile.write(folder / "good.flac", tone(2.0), 16_000)
    soundfile.write(folder / "stereo.wav", np.stack([tone(1.5, 44_100)] * 2, axis=1), 44_100)
    soundfile.write(folder / "long.flac", tone(16.0), 16_000)
    return folder


def row(name: str, **values: Any) -> dict[str, Any]:
    return {"id": name, "audio_filepath": "good.flac", "text": "שלום עולם", "domain": "kan_clean", **values}


def test_every_row_of_a_hostile_corpus_is_kept_or_counted(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nan = tone(2.0)
    nan[20_000] = np.nan
    soundfile.write(corpus / "nan.wav", nan, 16_000, subtype="FLOAT")
    soundfile.write(corpus / "short.wav", tone(0.3), 16_000)
    (corpus / "empty.wav").write_bytes(b"")
    (corpus / "text.wav").write_text("שלום לך " * 100, encoding="utf-8")
    (corpus / "cut.flac").write_bytes((corpus / "long.flac").read_bytes()[:3000])
    os.mkfifo(corpus / "fifo.wav")
    (corpus / "link.wav").symlink_to("/etc/passwd")
    rejected: dict[str, tuple[str, dict[str, Any]]] = {
        "NaN samples": ("AUDIO_NOT_FINITE", {"audio_filepath": "nan.wav"}),
        "short": ("TOO_SHORT", {"audio_filepath": "short.wav"}),
        "0 bytes": ("AUDIO_EMPTY", {"audio_filepath": "empty.wav"}),
        "text as wav": ("AUDIO_UNSUPPORTED", {"audio_filepath": "text.wav"}),
        "cut off": ("AUDIO_TRUNCATED", {"audio_filepath": "cut.flac"}),
        "fifo": ("AUDIO_NOT_A_FILE", {"audio_filepath": "fifo.wav"}),
        "link": ("AUDIO_OUTSIDE_ROOT", {"audio_filepath": "link.wav"}),
        "absent": ("AUDIO_MISSING", {"audio_filepath": "absent.wav"}),
        "no text": ("EMPTY_TRANSCRIPT", {"text": ""}),
        "only marks": ("EMPTY_TRANSCRIPT", {"text": "\u200f<|0.00|>"}),
        "only dashes": ("NO_LETTERS", {"text": "- ... !"}),
        "wrong encoding": ("INVALID_TEXT", {"text": "של\ufffdום"}),
        "NaN offset": ("NON_FINITE_NUMBER", {"offset": float("nan")}),
        "beyond the end": ("AUDIO_STRETCH", {"offset": 1.0, "duration": 1.5}),
    }
    kept = [
        row("good"),
        row("stereo", audio_filepath="stereo.wav"),
        row("long", audio_filepath="long.flac"),
        row("stretch", offset=0.5, duration=1.0),
        row("rounded end", duration=2.03),
        row("digits", text="25"),
    ]
    bad = [row(name, **values) for name, (_, values) in rejected.items()]
    path = write_manifest(corpus, *kept, *bad, row("good", text="שוב"), row("good", audio_filepath="absent.wav"))
    output = tmp_path / "data"
    assert prepare(path, output) == 0

    utterances = {utterance.id: utterance for utterance in read_manifest(output / "manifest.jsonl")}
    assert list(utterances) == [item["id"] for item in kept]
    durations = {name: utterance.duration for name, utterance in utterances.items()}
    expected = {"good": 2.0, "stereo": 1.5, "long": 16.0, "stretch": 1.0, "rounded end": 2.0, "digits": 2.0}
    assert durations == expected
    assert [name for name, utterance in utterances.items() if utterance.needs_resegmentation] == ["long"]
    assert utterances["good"].source_sha256 == hashlib.sha256((corpus / "good.flac").read_bytes()).hexdigest()
    assert utterances["good"].audio_filepath == str(corpus / "good.flac")

    quarantine = list(read_jsonl(output / "quarantine.jsonl", Rejected))
    assert {item.id: item.reason for item in quarantine if item.id != "good"} == {
        name: reason for name, (reason, _) in rejected.items()
    }
    assert [item.reason for item in quarantine if item.id == "good"] == ["DUPLICATE_ID"] * 2
    summary = json.loads((output / "prepare_summary.json").read_text(encoding="utf-8"))
    assert summary["num_rows"] == len(kept) + len(bad) + 2
    assert summary["rejected_by_reason"] == Counter(item.reason for item in quarantine)
    assert summary["hours"] == pytest.approx(24.5 / 3600, abs=1e-6)
    printed = capsys.readouterr().out
    for reason in summary["rejected_by_reason"]:
        assert reason in printed


def test_the_same_input_gives_the_same_bytes_and_a_second_run_replaces_the_first(corpus: Path, tmp_path: Path) -> None:
    path = write_manifest(corpus, row("a"), row("b", audio_filepath="absent.wav"))
    assert prepare(path, tmp_path / "one") == 0
    assert prepare(path, tmp_path / "two") == 0
    names = ["manifest.jsonl", "quarantine.jsonl"]
    first = [(tmp_path / "one" / name).read_bytes() for name in names]
    assert [(tmp_path / "two" / name).read_bytes() for name in names] == first
    assert prepare(path, tmp_path / "one") == 0
    assert [(tmp_path / "one" / name).read_bytes() for name in names] == first
    assert sorted(file.name for file in (tmp_path / "one").iterdir()) == sorted([*names, "prepare_summary.json"])


def test_audio_below_the_output_is_named_relative_to_the_manifest(corpus: Path) -> None:
    assert prepare(write_manifest(corpus, row("a")), corpus) == 0
    (line,) = (corpus / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["audio_filepath"] == "good.flac"


def test_embedded_audio_is_written_once_under_its_hash(corpus: Path, tmp_path: Path) -> None:
    data = (corpus / "good.flac").read_bytes()
    audio = [{"bytes": data, "path": "x"}, {"bytes": data, "path": "y"}, {"bytes": b"", "path": ""}]
    table = pyarrow.table(
        {"audio": [*audio, {"bytes": b"hello world", "path": ""}], "text": ["אחת", "שתיים", "ש", "א"]}
    )
    pyarrow.parquet.write_table(table, tmp_path / "kan.parquet")
    output = tmp_path / "data"
    assert prepare(tmp_path / "kan.parquet", output) == 0
    (written,) = (output / "audio").iterdir()
    assert written.read_bytes() == data
    assert written.name == f"{hashlib.sha256(data).hexdigest()[:32]}.flac"
    utterances = read_manifest(output / "manifest.jsonl")
    assert {utterance.audio_filepath for utterance in utterances} == {str(written)}
    assert [utterance.text for utterance in utterances] == ["אחת", "שתיים"]
    assert list(reasons(output).values()) == ["AUDIO_EMPTY", "AUDIO_UNSUPPORTED"]
    written.write_bytes(b"torn")
    assert prepare(tmp_path / "kan.parquet", output) == 0
    assert written.read_bytes() == data


def test_the_domain_comes_from_column_then_source_then_measurement(tmp_path: Path) -> None:
    """Bursts of tone are speech to a voice detector; the noise under them is loud in one file, faint in the other."""
    rng = np.random.default_rng(0)
    bursts = tone(4.0) * (np.arange(64_000) // 8_000 % 2)
    noise = rng.standard_normal(64_000)
    soundfile.write(tmp_path / "clean.flac", bursts + 0.0005 * noise, 16_000)
    soundfile.write(tmp_path / "noisy.flac", bursts + 0.12 * noise, 16_000)
    soundfile.write(tmp_path / "long.flac", np.tile(bursts + 0.0005 * noise, 6), 16_000)
    plain = {"text": "שלום", "domain": None}
    path = write_manifest(
        tmp_path,
        row("column", audio_filepath="noisy.flac", domain="studio", source="whatsapp"),
        row("kan", audio_filepath="noisy.flac", source="hebrew_speech_kan", **plain),
        row("whatsapp", audio_filepath="clean.flac", source="eval-WhatsApp", **plain),
        row("kanban", audio_filepath="clean.flac", source="kanban", **plain),
        row("noisy", audio_filepath="noisy.flac", **plain),
        row("long", audio_filepath="long.flac", **plain),
    )
    assert prepare(path, tmp_path / "data") == 0
    found = {item.id: (item.domain, item.domain_source) for item in read_manifest(tmp_path / "data" / "manifest.jsonl")}
    assert found == {
        "column": ("studio", "column"),
        "kan": ("kan_clean", "source"),
        "whatsapp": ("whatsapp_noisy", "source"),
        "kanban": ("kan_clean", "measured"),
        "noisy": ("whatsapp_noisy", "measured"),
        "long": ("long_tail", "measured"),
    }


BAD_REQUESTS = {
    "missing": ("absent.jsonl", None, "does not exist"),
    "empty": ("m.jsonl", "", "holds no rows"),
    "blank lines": ("m.jsonl", "\n\n", "holds no rows"),
    "header only": ("m.csv", "audio_filepath,text\n", "holds no rows"),
    "unknown format": ("m.xlsx", "?", "unknown format"),
}


@pytest.mark.parametrize(("name", "content", "message"), BAD_REQUESTS.values(), ids=BAD_REQUESTS.keys())
def test_a_bad_request_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content, encoding="utf-8")
    assert prepare(tmp_path / name, tmp_path / "data") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "data" / "manifest.jsonl").exists()


def test_when_everything_is_quarantined_no_manifest_remains(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "data"
    assert prepare(write_manifest(corpus, row("a")), output) == 0
    assert prepare(write_manifest(corpus, row("a", text="?")), output) == 2
    assert not (output / "manifest.jsonl").exists()
    assert reasons(output) == {"a": "NO_LETTERS"}
    assert "not one row became an utterance" in capsys.readouterr().err


def test_a_manifest_is_not_overwritten_by_its_own_result(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_manifest(corpus, row("a")).rename(corpus / "manifest.jsonl")
    before = path.read_bytes()
    assert prepare(path, corpus) == 2
    assert path.read_bytes() == before
    assert "give another --output" in capsys.readouterr().err


def test_preparing_a_prepared_manifest_changes_nothing(corpus: Path, tmp_path: Path) -> None:
    path = write_manifest(
        corpus, row("a", text="שָׁלוֹם <|0.00|> עולם", prev_text="כן", group_id="g"), row("b", offset=0.5)
    )
    assert prepare(path, tmp_path / "one") == 0
    assert prepare(tmp_path / "one" / "manifest.jsonl", tmp_path / "two", "--root", str(corpus)) == 0
    assert (tmp_path / "two" / "manifest.jsonl").read_bytes() == (tmp_path / "one" / "manifest.jsonl").read_bytes()


def job(path: Path) -> FileJob:
    return FileJob(path, (Stretch(0.0, None, wants_snr=False),), None, 512.0, 10.0)


def crash_on_the_guilty(file_job: FileJob) -> list[Finding]:
    if file_job.path.name == "guilty.flac":
        os.kill(os.getpid(), signal.SIGKILL)
    return inspect_file(file_job)


def test_a_crashing_decoder_costs_one_file_and_no_other(corpus: Path) -> None:
    good, guilty = job(corpus / "good.flac"), job(corpus / "guilty.flac")
    reports = list(inspect_files([good, guilty, good], 2, crash_on_the_guilty, min_files_for_processes=1))
    assert [type(findings[0]) for findings in reports] == [ClipFacts, AudioError, ClipFacts]
    error = reports[1][0]
    assert isinstance(error, AudioError)
    assert error.reason == "AUDIO_CRASHED_DECODER"


def test_worker_processes_find_what_one_process_finds(corpus: Path) -> None:
    names = ["good.flac", "stereo.wav", "absent.wav", "long.flac"]
    jobs = [job(corpus / name) for name in names]

    def view(reports: list[list[Finding]]) -> list[str]:
        return [repr(findings) for findings in reports]

    alone = list(inspect_files(jobs, 1))
    assert view(list(inspect_files(jobs, 2, min_files_for_processes=1))) == view(alone)


def test_a_float_clip_longer_than_one_load_is_searched_for_nan_to_its_end(tmp_path: Path) -> None:
    samples = np.zeros(4000 * 4_000, dtype=np.float32)
    samples[-5] = np.nan
    soundfile.write(tmp_path / "a.wav", samples, 4_000, subtype="FLOAT")
    (finding,) = inspect_file(job(tmp_path / "a.wav"))
    assert isinstance(finding, AudioError)
    assert finding.reason == "AUDIO_NOT_FINITE"


def test_progress_in_a_log_is_a_line_now_and_then_with_the_time_left() -> None:
    stream = io.StringIO()
    assert list(track(range(3), 3, "counting", seconds_between_lines=0.0, stream=stream)) == [0, 1, 2]
    lines = stream.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "counting: 1/3 (33 %)", "counting: 2/3 (67 %)", "counting: 3/3 (100 %)"
    ]  # fmt: skip
    quiet = io.StringIO()
    assert list(track(range(3), None, "counting", stream=quiet)) == [0, 1, 2]
    assert quiet.getvalue() == "", "short loops say nothing"


def test_progress_text_tells_rate_and_time_left() -> None:
    assert progress_text(1200, 20_000, 3.0) == "1200/20000 (6 %), 400/s, 0:47 left"
    assert progress_text(5, None, 10.0) == "5, 0.5/s"
    assert clock(3723.4) == "1:02:03"
