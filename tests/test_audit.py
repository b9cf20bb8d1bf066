"""The audit as a user runs it, on synthetic Hebrew with planted defects."""

import gzip
import importlib.resources
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from audit_corpora import write_audit_corpus, write_gold

from caspi import audit
from caspi.config import Audit, AuditPage, Calibration, Recipe
from caspi.records import Utterance, read_manifest, sha256_of_file, write_jsonl
from caspi.speech.corpora.audio import write_audio
from caspi.speech.synthetic.synth import Domain
from caspi.speech.synthetic.synth_corpus import read_truth

FEW_CONTROLS = Calibration(num_control_utterances=24, num_dose_utterances=8, num_self_test_sentences=4)
NO_CONTROLS = Calibration(num_control_utterances=0, num_dose_utterances=0, num_self_test_sentences=0)
WORDS = ["שלום", "לבן", "ילדה", "רוצה", "מיץ", "גשם", "חזק", "המורה", "כתבה", "הלוח", "בוקר", "ספר"]


def recipe_for(manifest: Path, output: Path, calibration: Calibration = FEW_CONTROLS, **changes: Any) -> Recipe:
    settings: dict[str, Any] = {"manifest": manifest, "output": output, "sample_rate": 1.0, "num_processes": 1}
    settings |= {"backend": "tts-dtw", "page": AuditPage(max_clips=4)}
    settings |= {"calibration": calibration} | changes
    return Recipe(audit=Audit(**settings))


def read_report(folder: Path) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in the report")

    text = (folder / "alignment_report.json").read_text(encoding="utf-8")
    report: dict[str, Any] = json.loads(text, parse_constant=refuse)
    schema = json.loads(importlib.resources.files("caspi").joinpath("alignment_report.schema.json").read_text("utf-8"))
    jsonschema.Draft202012Validator(schema).validate(report)
    return report


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 short utterances, a tenth of them with defects."""
    pytest.importorskip("espeakng_loader", reason="needs the espeak engine (extra demo)")
    shares: dict[Domain, float] = {"kan_clean": 0.5, "whatsapp_noisy": 0.5}
    return write_audit_corpus(tmp_path_factory.mktemp("audited"), 80, 0.10, 3, shares)


@pytest.fixture(scope="session")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A manifest of noise clips; texts and durations can be chosen."""

    def make(texts: list[str], **changes: Any) -> Path:
        folder = tmp_path_factory.mktemp("noise")
        rng = np.random.default_rng(1)
        utterances = []
        for number, text in enumerate(texts):
            samples = rng.normal(0, 0.05, 16_000).astype(np.float32) * np.repeat([1, 0.01, 1, 0.02], 4000)
            write_audio(folder / f"{number}.wav", samples.astype(np.float32))
            row: dict[str, Any] = {
                "id": f"n{number}",
                "audio_filepath": f"{number}.wav",
                "text": text,
                "duration": 1.0,
            } | changes
            utterances.append(Utterance(domain="kan_clean", **row))
        write_jsonl(folder / "manifest.jsonl", utterances)
        return folder / "manifest.jsonl"

    return make


def texts_of(count: int, num_words: int = 3) -> list[str]:
    rng = np.random.default_rng(2)
    return [" ".join(rng.choice(WORDS, num_words, replace=False)) for _ in range(count)]


@pytest.fixture(scope="session")
def audited(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path, int]:
    output = tmp_path_factory.mktemp("report")
    code = audit.run(recipe_for(corpus, output, gold=write_gold(corpus, 10)))
    return read_report(output), output, code


def test_planted_defects_are_found_and_good_pairs_are_let_pass(
    audited: tuple[dict[str, Any], Path, int], corpus: Path
) -> None:
    report, _, _ = audited
    truth = read_truth(corpus.parent)
    flagged = {row["sample_id"]: row["low_quality"] for row in report["detailed_metrics"]}
    bad = [flagged[i] for i, t in truth.items() if t.defect]
    good = [flagged[i] for i, t in truth.items() if t.defect is None]
    assert len(bad) == 8
    assert sum(bad) >= 7
    assert sum(good) / len(good) <= 0.12


def test_the_report_says_what_it_is_about(audited: tuple[dict[str, Any], Path, int], corpus: Path) -> None:
    report, output, _ = audited
    assert report["audit_valid"]
    assert report["total_samples"] == 80
    assert report["provenance"]["manifest_sha256"] == sha256_of_file(corpus)
    assert report["estimate"]["raw"]["method"] == "census"
    assert report["low_quality_percentage"] == pytest.approx(100 * report["low_quality_count"] / 80)
    lines = (output / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == report["detailed_metrics"]


def test_word_spans_point_into_the_transcript(audited: tuple[dict[str, Any], Path, int], corpus: Path) -> None:
    _, output, _ = audited
    texts = {u.id: u.text for u in read_manifest(corpus)}
    lines = [json.loads(line) for line in gzip.decompress((output / "word_spans.jsonl.gz").read_bytes()).splitlines()]
    assert len(lines) == 80
    for line in lines:
        for word in line["words"]:
            start, end = word["char"]
            assert texts[line["id"]][start:end] == word["w"]


def test_spans_of_good_pairs_are_near_the_truth(audited: tuple[dict[str, Any], Path, int], corpus: Path) -> None:
    _, output, _ = audited
    truth = read_truth(corpus.parent)
    lines = [json.loads(line) for line in gzip.decompress((output / "word_spans.jsonl.gz").read_bytes()).splitlines()]
    errors = [
        abs(word["s"] - start)
        for line in lines
        if truth[line["id"]].defect is None
        for word, (start, _) in zip(line["words"], truth[line["id"]].word_times, strict=True)
        if word["s"] is not None
    ]
    assert np.median(errors) < 0.05


def test_the_times_that_are_known_are_held_against_the_aligners(audited: tuple[dict[str, Any], Path, int]) -> None:
    calibration = audited[0]["calibration"]
    gold = calibration["gold"]
    assert (gold["num_clips"], gold["num_failed"]) == (10, 0)
    assert gold["median_boundary_error_seconds"] < 0.05
    assert gold["within"]["0.16 s"] > 0.8
    assert gold["flagged_fraction"] <= 0.2
    assert gold["auc"] > 0.95
    segments = calibration["segment_times"]
    assert segments["num_utterances"] == 72
    assert segments["num_boundaries"] == 2 * 72
    assert segments["median_error_seconds"] < 0.06
    assert segments["shuffled_median_error_seconds"] > 3 * segments["median_error_seconds"]


def test_a_second_run_and_another_number_of_processes_give_the_same_bytes(
    audited: tuple[dict[str, Any], Path, int], corpus: Path, tmp_path: Path
) -> None:
    report, output, code = audited
    assert audit.run(recipe_for(corpus, tmp_path, num_processes=2, gold=corpus.parent / "gold.jsonl")) == code
    again = read_report(tmp_path)
    for key in ("created_utc", "wall_seconds"):
        del again["provenance"][key]
    first = {**report, "provenance": {k: v for k, v in report["provenance"].items() if k in again["provenance"]}}
    assert json.dumps(first, sort_keys=True) == json.dumps(again, sort_keys=True)
    for name in ("samples.jsonl", "word_spans.jsonl.gz"):
        assert (output / name).read_bytes() == (tmp_path / name).read_bytes()


def test_the_console_shows_the_guides_block(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    audit.run(recipe_for(corpus, tmp_path, NO_CONTROLS, num_samples=40))
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["=" * 70, "PHASE 0 AUDIT RESULTS", "=" * 70]
    assert lines[4] == "Total samples audited: 40"
    assert lines[5].startswith("Low quality samples: ")
    for expected in ("Coverage distribution:", "Per-domain breakdown:", "  kan_clean:", "DECISION GATE"):
        assert expected in lines
    assert any(line.startswith("Population estimate: ") for line in lines)
    assert any(line.startswith("Decoys that beat their transcript: ") for line in lines)
    assert lines[-3] == f"✓ Full report saved to: {tmp_path / 'alignment_report.json'}"
    assert lines[-1].startswith(f"✓ To look, listen and review: {tmp_path / 'audit.html'} (carries voices")


@pytest.mark.parametrize("backend", ["uniform", "random"])
def test_a_blind_aligner_ends_in_audit_invalid(backend: str, corpus: Path, tmp_path: Path) -> None:
    assert audit.run(recipe_for(corpus, tmp_path, NO_CONTROLS, backend=backend)) == 3
    report = read_report(tmp_path)
    assert (report["decision"], report["decision_code"]) == ("STOP", "AUDIT_INVALID")
    assert not report["audit_valid"]
    assert all(row["alignment_confidence"] is None for row in report["detailed_metrics"])


def test_every_broken_clip_is_a_counted_outcome(noise: Callable[..., Path], tmp_path: Path) -> None:
    manifest = noise(texts_of(40))
    utterances = read_manifest(manifest)
    for number in (0, 1, 2):
        Path(utterances[number].audio_filepath).write_bytes(b"" if number else b"not audio at all")
    changed = [
        u.model_copy(
            update={"text": "", "audio_filepath": u.audio_filepath}
            if u.id == "n3"
            else {"duration": 600.0}
            if u.id == "n4"
            else {}
        )
        for u in utterances
    ]
    write_jsonl(manifest, changed)
    assert audit.run(recipe_for(manifest, tmp_path, NO_CONTROLS, backend="random")) == 3
    report = read_report(tmp_path)
    rows = {row["sample_id"]: row for row in report["detailed_metrics"]}
    assert report["total_samples"] == 40
    assert report["failed_count"] == 3
    for number, reason in enumerate(["AUDIO_ERROR"] * 3 + ["EMPTY_TRANSCRIPT", "TOO_LONG"]):
        assert rows[f"n{number}"]["reasons"] == [reason]
        assert rows[f"n{number}"]["low_quality"]
        assert rows[f"n{number}"]["error"]


def test_an_audit_in_which_everything_fails_is_still_a_report(noise: Callable[..., Path], tmp_path: Path) -> None:
    manifest = noise(texts_of(35), audio_filepath="missing.wav")
    assert audit.run(recipe_for(manifest, tmp_path, backend="uniform")) == 3
    report = read_report(tmp_path)
    assert report["failed_count"] == report["low_quality_count"] == 35
    assert report["coverage_distribution"]["mean"] is None


@pytest.mark.parametrize(("count", "num_words"), [(35, 1), (1, 3)], ids=["one-word clips", "a single clip"])
def test_tiny_inputs_end_in_a_report(count: int, num_words: int, noise: Callable[..., Path], tmp_path: Path) -> None:
    manifest = noise(texts_of(count, num_words))
    assert audit.run(recipe_for(manifest, tmp_path, FEW_CONTROLS, backend="random")) == 3
    assert read_report(tmp_path)["total_samples"] == count


def test_a_sample_is_weighted_up_to_the_manifest(noise: Callable[..., Path], tmp_path: Path) -> None:
    manifest = noise(texts_of(60))
    audit.run(recipe_for(manifest, tmp_path, NO_CONTROLS, backend="random", sample_rate=0.5))
    report = read_report(tmp_path)
    assert report["total_samples"] == 30
    assert sum(row["weight"] for row in report["detailed_metrics"]) == pytest.approx(60)
    assert report["sampling"]["redistributed"] == {"kan_clean": 18}


def test_a_gpu_audits_everything_unless_a_rate_is_given() -> None:
    def rate(device: str, **changes: Any) -> float:
        return audit.sample_rate({"device": device, "model_id": "m", "dtype": "d"}, Audit(**changes))

    assert (rate("cuda"), rate("cpu")) == (1.0, 0.10)
    assert (rate("cuda", sample_rate=0.3), rate("cpu", sample_rate=0.3)) == (0.3, 0.3)


@pytest.mark.slow
def test_weights_and_biases_is_logged_offline_when_asked(
    noise: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_PHASE0_LOGGING", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    audit.run(recipe_for(noise(texts_of(31)), tmp_path, NO_CONTROLS, backend="random"))
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


@pytest.mark.slow
@pytest.mark.parametrize(("defects", "decision"), [(0.02, "PROCEED"), (0.11, "CAUTION"), (0.25, "STOP")])
@pytest.mark.parametrize("seed", [1, 2])
def test_planted_corpora_get_the_decision_they_deserve(
    defects: float, decision: str, seed: int, tmp_path: Path
) -> None:
    shares: dict[Domain, float] = {"kan_clean": 0.7, "whatsapp_noisy": 0.3}
    manifest = write_audit_corpus(tmp_path / "corpus", 300, defects, seed, shares)
    audit.run(recipe_for(manifest, tmp_path / "report", Calibration(num_control_utterances=60)))
    assert read_report(tmp_path / "report")["decision"] == decision
