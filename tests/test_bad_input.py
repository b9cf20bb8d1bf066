"""Bad input through the real command line: one clear line and exit 2, or a counted quarantine; never a traceback."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

GOOD_TEXT = "שלום עולם"


def caspi(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "caspi", *arguments]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert "Traceback" not in result.stderr, result.stderr
    return result


def tone(seconds: float = 1.0, rate_hz: int = 16_000) -> np.ndarray:
    times = np.arange(round(seconds * rate_hz)) / rate_hz
    return (0.2 * np.sin(2 * np.pi * 300 * times)).astype(np.float32)


def write_tone(path: Path) -> None:
    soundfile.write(path, tone(), 16_000)


def write_nan(path: Path) -> None:
    samples = tone()
    samples[800] = np.nan
    soundfile.write(path, samples, 16_000, subtype="FLOAT")


def write_stereo(path: Path) -> None:
    samples = tone(rate_hz=44_100)
    soundfile.write(path, np.stack([samples, samples], axis=1), 44_100)


def truncate_flac(path: Path) -> None:
    whole = path.with_suffix(".flac")
    soundfile.write(whole, np.random.default_rng(0).normal(0, 0.1, 32_000).astype(np.float32), 16_000, format="FLAC")
    path.write_bytes(whole.read_bytes()[:9000])


BAD_AUDIO: dict[str, tuple[Callable[[Path], object], str]] = {
    "NaN audio": (write_nan, "AUDIO_NOT_FINITE"),
    "0-byte audio": (lambda path: path.write_bytes(b""), "AUDIO_EMPTY"),
    "text file named .wav": (lambda path: path.write_text("not audio " * 50), "AUDIO_UNSUPPORTED"),
    "truncated file": (truncate_flac, "AUDIO_TRUNCATED"),
    "missing audio": (lambda path: None, "AUDIO_MISSING"),
}


def prepare(folder: Path, rows: list[dict[str, object]]) -> subprocess.CompletedProcess[str]:
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / "in.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return caspi("prepare", "--manifest", "in.jsonl", folder=folder)


def rejected(folder: Path) -> list[tuple[str, str]]:
    lines = (folder / "data/quarantine.jsonl").read_text(encoding="utf-8").splitlines()
    return [(item["id"], item["reason"]) for item in map(json.loads, lines)]


def row(name: str, **columns: object) -> dict[str, object]:
    return {"id": name, "audio_filepath": f"{name}.wav", "text": GOOD_TEXT, "domain": "kan_clean"} | columns


@pytest.mark.parametrize("kind", BAD_AUDIO)
def test_bad_audio_is_quarantined_with_its_reason_and_the_rest_goes_on(kind: str, tmp_path: Path) -> None:
    make, reason = BAD_AUDIO[kind]
    make(tmp_path / "bad.wav")
    write_tone(tmp_path / "good.wav")
    result = prepare(tmp_path, [row("bad"), row("good")])
    assert result.returncode == 0, result.stderr
    assert rejected(tmp_path) == [("bad", reason)]
    assert reason in result.stdout + result.stderr
    assert len((tmp_path / "data/manifest.jsonl").read_text().splitlines()) == 1


def test_stereo_at_44_khz_is_read_as_mono_16_khz(tmp_path: Path) -> None:
    from caspi.speech.corpora.audio import load_audio

    write_stereo(tmp_path / "good.wav")
    assert prepare(tmp_path, [row("good")]).returncode == 0
    samples = load_audio(tmp_path / "good.wav")
    assert samples.shape == (16_000,)
    assert np.corrcoef(samples[500:-500], tone()[500:-500])[0, 1] > 0.999


@pytest.mark.parametrize(
    ("columns", "reason"), [({"text": "  "}, "EMPTY_TRANSCRIPT"), ({"text": "..."}, "NO_LETTERS")], ids=str
)
def test_a_transcript_without_words_is_quarantined(columns: dict[str, object], reason: str, tmp_path: Path) -> None:
    write_tone(tmp_path / "bad.wav")
    write_tone(tmp_path / "good.wav")
    assert prepare(tmp_path, [row("bad", **columns), row("good")]).returncode == 0
    assert rejected(tmp_path) == [("bad", reason)]


def test_the_second_of_two_equal_ids_is_quarantined(tmp_path: Path) -> None:
    write_tone(tmp_path / "same.wav")
    assert prepare(tmp_path, [row("same"), row("same")]).returncode == 0
    assert rejected(tmp_path) == [("same", "DUPLICATE_ID")]


def write_truncated_report(folder: Path) -> None:
    (folder / "report.json").write_text('{"schema_version": 1, "decision": "PROC')


def write_unknown_key(folder: Path) -> None:
    (folder / "recipe.toml").write_text("[train]\nlearning_rate = 1e-4\n")


def write_yaml(folder: Path) -> None:
    (folder / "recipe.toml").write_text("train:\n  batch_size: 2\n")


REFUSED: dict[str, tuple[Callable[[Path], object], list[str], str]] = {
    "missing manifest": (lambda folder: None, ["prepare", "--manifest", "none.jsonl"], "none.jsonl"),
    "empty manifest": (lambda f: (f / "e.jsonl").write_text(""), ["prepare", "--manifest", "e.jsonl"], "e.jsonl"),
    "manifest without audio": (lambda folder: None, ["audit", "--manifest", "none.jsonl"], "none.jsonl does not exist"),
    "missing recipe": (lambda folder: None, ["train", "--recipe", "none.toml"], "none.toml does not exist"),
    "unknown key": (write_unknown_key, ["train", "--recipe", "recipe.toml"], "learning_rate"),
    "recipe that is not TOML": (write_yaml, ["train", "--recipe", "recipe.toml"], "TOML"),
    "unknown step": (lambda folder: None, ["trian"], "no step 'trian'"),
    "unknown flag": (lambda folder: None, ["gate", "--sign", "me"], "--sign"),
    "value out of range": (lambda folder: None, ["audit", "--sample-rate", "3"], "sample_rate"),
    "missing report": (lambda folder: None, ["gate", "--report", "report.json"], "there is no audit report"),
    "truncated report": (write_truncated_report, ["gate", "--report", "report.json"], "damaged"),
    "missing test set": (lambda folder: None, ["evaluate", "--test-sets", "a=none.jsonl"], "none.jsonl"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_request_that_cannot_be_met_is_refused_with_one_line(kind: str, tmp_path: Path) -> None:
    make, arguments, expected = REFUSED[kind]
    make(tmp_path)
    result = caspi(*arguments, folder=tmp_path)
    assert result.returncode == 2, result.stdout + result.stderr
    assert expected in result.stderr
    if "error: " in result.stderr:
        assert len(result.stderr.strip().splitlines()) == 1
