"""`caspi clean` as a user runs it, on synthetic Hebrew in which every action is planted."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from made_cleaning import Planted, depth_inside_a_word, planted_corpus

from caspi import audit
from caspi.cli import main
from caspi.config import Audit, Calibration, Recipe
from caspi.model.training.build import load_data
from caspi.records import CleanedUtterance, dump_json, read_jsonl, read_manifest
from caspi.speech.corpora.audio import load_audio
from caspi.speech.text import alignment_words

pytestmark = pytest.mark.espeak

FILES = ("cleaned.jsonl", "dropped.jsonl", "review.jsonl", "cleaning_summary.json")
CALIBRATION = Calibration(
    num_control_utterances=8, num_dose_utterances=3, num_self_test_sentences=0, word_false_acceptance=(0.2, 0.1, 0.05)
)


class Cleaned(NamedTuple):
    planted: Planted
    report: Path
    output: Path
    code: int

    def lines(self, name: str) -> list[CleanedUtterance]:
        return list(read_jsonl(self.output / name, CleanedUtterance))

    def summary(self) -> dict[str, Any]:
        summary: dict[str, Any] = json.loads((self.output / "cleaning_summary.json").read_text(encoding="utf-8"))
        return summary


def flags(manifest: Path, report: Path, output: Path) -> list[str]:
    names = {"--manifest": manifest, "--report": report, "--output": output, "--num-processes": 1}
    return ["clean", *(str(part) for pair in names.items() for part in pair)]


@pytest.fixture(scope="module")
def cleaned(tmp_path_factory: pytest.TempPathFactory) -> Cleaned:
    folder = tmp_path_factory.mktemp("cleaning")
    (folder / "corpus").mkdir()
    planted = planted_corpus(folder / "corpus", num_good=25, num_long=2, seed=5)
    settings: dict[str, Any] = {
        "manifest": planted.manifest,
        "output": folder / "report",
        "sample_rate": 1.0,
        "num_processes": 1,
    }
    settings |= {"backend": "tts-dtw", "reference_voices": ("",), "calibration": CALIBRATION}
    audit.run(Recipe(audit=Audit(**settings)))
    report = folder / "report" / "alignment_report.json"
    code = main(flags(planted.manifest, report, folder / "out"))
    return Cleaned(planted, report, folder / "out", code)


def test_each_action_occurs_on_the_clip_it_was_planted_on(cleaned: Cleaned) -> None:
    assert cleaned.code == 0
    found: dict[str, str] = {}
    for name in FILES[:3]:
        found |= {line.parent_id: line.attempted or line.action for line in cleaned.lines(name)}
    assert set(found) == set(cleaned.planted.expected)
    for id_, action in cleaned.planted.expected.items():
        if action != "keep":
            assert found[id_] == action, id_
    kept = [found[id_] == "keep" for id_, action in cleaned.planted.expected.items() if action == "keep"]
    assert sum(kept) / len(kept) >= 0.9


def test_the_full_pass_judges_exactly_as_the_audit_did(cleaned: Cleaned) -> None:
    report = json.loads(cleaned.report.read_text(encoding="utf-8"))
    audited = {row["sample_id"]: row for row in report["detailed_metrics"]}
    lines = [line for name in FILES[:3] for line in cleaned.lines(name)]
    assert {line.parent_id for line in lines} == set(audited)
    for line in lines:
        assert list(line.reasons_before) == audited[line.parent_id]["reasons"]
        if line.action == "keep":
            assert line.alignment_confidence == audited[line.id]["alignment_confidence"]


def test_no_cut_lies_more_than_80_ms_inside_a_true_word(cleaned: Cleaned) -> None:
    cuts = [
        depth_inside_a_word(seconds, cleaned.planted.spoken[line.parent_id])
        for line in cleaned.lines("cleaned.jsonl")
        if line.action in ("resegment", "rescue", "trim")
        for seconds in (line.offset, line.offset + line.duration)
    ]
    assert len(cuts) >= 2 * (2 * 2 + 2)
    assert max(cuts) <= 0.080


def test_the_texts_of_segments_together_are_the_original(cleaned: Cleaned) -> None:
    lines = [line for name in FILES[:3] for line in cleaned.lines(name)]
    for utterance in read_manifest(cleaned.planted.manifest):
        own = sorted((line for line in lines if line.parent_id == utterance.id), key=lambda line: line.offset)
        assert " ".join(line.text for line in own) == utterance.text
        for before, after in pairwise(own):
            assert before.offset + before.duration <= after.offset + 1e-6


def test_what_is_rescued_was_really_said(cleaned: Cleaned) -> None:
    (line,) = [line for line in cleaned.lines("cleaned.jsonl") if line.action == "rescue"]
    spoken = cleaned.planted.spoken[line.parent_id]
    words = tuple(word.text for word in alignment_words(line.text))
    assert words == spoken.words[: len(words)]
    assert len(words) >= 5


def test_every_second_is_accounted_for(cleaned: Cleaned) -> None:
    summary = cleaned.summary()
    manifest_seconds = sum(utterance.duration for utterance in read_manifest(cleaned.planted.manifest))
    rows = [summary, *summary["by_domain"].values(), *summary["by_action"].values()]
    rows += [row for domain in summary["by_domain"].values() for row in domain["by_action"].values()]
    for row in rows:
        seconds = row["seconds"]
        assert seconds["in"] == pytest.approx(sum(seconds[fate] for fate in seconds if fate != "in"), abs=1e-9)
    assert summary["seconds"]["in"] == pytest.approx(manifest_seconds, abs=1e-4)
    for fate, name in (("kept", "cleaned"), ("dropped", "dropped"), ("review", "review")):
        written = sum(line.duration for line in cleaned.lines(f"{name}.jsonl"))
        assert summary["seconds"][fate] == pytest.approx(written, abs=1e-4)
    assert summary["by_action"]["trim"]["seconds"]["trimmed"] == pytest.approx(1.6 + 1.3, abs=0.8)


def test_training_reads_the_cleaned_manifest(cleaned: Cleaned) -> None:
    manifest = cleaned.output / "cleaned.jsonl"
    config = Recipe().train.model_copy(update={"manifest": manifest, "eval_fraction": 0.1})
    split = load_data(config)
    assert split.left_out == []
    lines = {line.id: line for line in read_manifest(manifest)}
    assert len(split.training) + len(split.evaluation) == len(lines)
    long = [line for line in lines.values() if line.id.startswith("long-0")]
    assert len(long) >= 2
    assert {line.group_id for line in long} == {"long-0"}
    assert [line.prev_text for line in long[1:]] == [line.text for line in long[:-1]]
    samples = load_audio(long[1].audio_filepath, long[1].offset, long[1].duration)
    assert len(samples) == pytest.approx(16_000 * long[1].duration, abs=16)


def test_lines_carry_tier_reasons_and_origin(cleaned: Cleaned) -> None:
    for line in cleaned.lines("cleaned.jsonl"):
        strong = min(line.alignment_coverage or 0, line.speech_coverage or 0) >= 0.9
        assert line.tier == ("strong" if strong else "normal")
        assert line.reasons == ()
        assert line.source_sha256
    for name in ("dropped.jsonl", "review.jsonl"):
        assert all(line.reasons and line.reasons_before and line.tier is None for line in cleaned.lines(name))
    assert cleaned.summary()["reasons"]["dropped.jsonl"]["EMPTY_TRANSCRIPT"] == 1


def test_a_killed_pass_goes_on_and_ends_with_the_same_bytes(cleaned: Cleaned, tmp_path: Path) -> None:
    report = tmp_path / "report" / "alignment_report.json"
    report.parent.mkdir()
    shutil.copy(cleaned.report, report)
    cache = report.parent / "alignment_cache.jsonl"
    command = [sys.executable, "-m", "caspi", *flags(cleaned.planted.manifest, report, tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: cache.exists() and cache.read_bytes().count(b"\n") >= 4)
    workers = children_of(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert workers
    wait_for(lambda: not any(is_running(pid) for pid in workers))
    first = cache.read_bytes()
    assert not (tmp_path / "cleaned.jsonl").exists()
    whole = first[: first.rindex(b"\n") + 1]
    cache.write_bytes(whole + b'{"key": "00ff')
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "was not finished" in done.stderr
    num_whole = whole.count(b"\n")
    assert f"{num_whole} of 32 clips are known from before" in done.stderr
    assert cache.read_bytes().startswith(whole)
    keys = [json.loads(line)["key"] for line in cache.read_bytes().splitlines()]
    assert len(keys) == len(set(keys)) > num_whole
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (cleaned.output / name).read_bytes(), name


def test_a_second_run_aligns_nothing(cleaned: Cleaned, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("something was aligned again")

    before = {name: (cleaned.output / name).read_bytes() for name in FILES}
    monkeypatch.setattr("caspi.model.aligners.workers.Worker.begin", refuse)
    assert main(flags(cleaned.planted.manifest, cleaned.report, cleaned.output)) == 0
    assert {name: (cleaned.output / name).read_bytes() for name in FILES} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda report: report | {"audit_valid": False}, "audit with another --backend"),
        (lambda report: report["provenance"].update(manifest_sha256="0" * 64), "about another manifest"),
        (lambda report: report["provenance"].update(model_sha256="0" * 64), "is not the one of the audit"),
        (lambda report: report["provenance"].pop("settings"), "provenance.settings: Field required"),
        (lambda report: report["provenance"]["settings"]["audit"].update(backend="magic"), "backend"),
        (lambda report: report["calibration"].update(thresholds={}), "holds no thresholds"),
        (lambda report: report["calibration"]["thresholds"]["word_score"].pop("fold 0 *"), "lacks thresholds"),
        (lambda report: report["calibration"]["thresholds"]["word_score"].update({"fold x": 1.0}), "lacks thresholds"),
        (lambda report: report["calibration"]["thresholds"]["word_score"].update({"fold 0 *": "high"}), "word_score"),
        (lambda report: report["calibration"]["controls"]["K4_extra"].update(flagged=2.0), "flagged"),
        (lambda report: report.update(schema_version=2), "schema_version"),
    ],
)
def test_a_report_that_does_not_fit_is_refused_in_one_line(
    change: Callable[[dict[str, Any]], Any],
    message: str,
    cleaned: Cleaned,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = json.loads(cleaned.report.read_text(encoding="utf-8"))
    changed = change(report)
    report = changed if isinstance(changed, dict) and "calibration" in changed else report
    path = tmp_path / "alignment_report.json"
    path.write_text(dump_json(report), encoding="utf-8")
    assert main(flags(cleaned.planted.manifest, path, tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_another_backend_in_the_recipe_is_refused(
    cleaned: Cleaned, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[audit]\nbackend = "ctc"\n', encoding="utf-8")
    assert main([*flags(cleaned.planted.manifest, cleaned.report, tmp_path), "--recipe", str(recipe)]) == 2
    assert "audit.backend is ctc" in capsys.readouterr().err


def test_audio_that_changed_since_prepare_is_refused(
    cleaned: Cleaned, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = cleaned.planted.manifest.parent / "wrong-0.flac"
    before = path.read_bytes()
    path.write_bytes(before + b"\0")
    assert main(flags(cleaned.planted.manifest, cleaned.report, tmp_path)) == 2
    path.write_bytes(before)
    assert "has changed since the manifest was made" in capsys.readouterr().err


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def children_of(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and state_of(int(entry.name))[1] == pid:
            found.append(int(entry.name))
    return found


def is_running(pid: int) -> bool:
    return state_of(pid)[0] not in ("gone", "Z")


def state_of(pid: int) -> tuple[str, int]:
    """State and parent of a process."""
    try:
        state, parent, *_ = (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return "gone", 0
    return state, int(parent)
