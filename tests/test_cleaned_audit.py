"""An audit of a cleaned manifest: the aligner that filtered it does not decide, another one does, and so do people."""

import importlib.resources
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from made_audit import made_corpus, run_made_audit

from caspi.cli import main
from caspi.config import Audit
from caspi.records import CleanedUtterance, dump_json, read_manifest, sha256_of_file, write_jsonl
from caspi.speech.alignment.audit_files import read_audit
from caspi.speech.alignment.review import Label, LabelFile, review_plan, seal

RESIDUAL = {
    "point_pct": 1.5,
    "upper_pct": 4.2,
    "worst_kind": "K6_subst50",
    "worst_kind_pct": 6.2,
    "detection": 0.9,
    "num_controls": 50,
}


def cleaned_corpus(folder: Path, backend: str, residual: dict[str, Any] | None = RESIDUAL) -> Path:
    """A manifest as `caspi clean` writes it, with its summary."""
    manifest = made_corpus(folder, 100)
    lines = [
        CleanedUtterance(**line.model_dump(), parent_id=line.id, action="keep", tier="strong")
        for line in read_manifest(manifest)
    ]
    cleaned = folder / "cleaned.jsonl"
    write_jsonl(cleaned, lines)
    provenance = {"cleaned_sha256": sha256_of_file(cleaned), "report_sha256": "1" * 64, "model_sha256": "2" * 64}
    summary = {"schema_version": 1, "residual": residual, "provenance": provenance | {"backend": backend}}
    (folder / "cleaning_summary.json").write_text(dump_json(summary), encoding="utf-8")
    return cleaned


def read_report(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "alignment_report.json").read_text(encoding="utf-8"))
    schema = json.loads(importlib.resources.files("caspi").joinpath("alignment_report.schema.json").read_text("utf-8"))
    jsonschema.Draft202012Validator(schema).validate(report)
    return report


def test_the_filter_is_not_asked_about_its_own_work_and_the_gate_wants_a_signature(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest, output = cleaned_corpus(tmp_path, "uniform"), tmp_path / "report"
    code, _ = run_made_audit(manifest, output, frozenset(), monkeypatch, gate="point")
    printed, report = capsys.readouterr().out, read_report(output)
    assert code == 0
    assert report["estimate"]["raw"]["point"] < 5
    assert (report["decision"], report["decision_code"]) == ("CAUTION", "RESIDUAL_ESTIMATE")
    assert report["low_quality_percentage"] == 1.5
    assert "by construction: uniform chose these utterances" in printed
    assert "Residual estimate: 1.5%, at most 4.2%" in printed
    assert "Residual estimate" in (output / "audit.html").read_text(encoding="utf-8")
    gate = ["gate", "--report", str(output / "alignment_report.json"), "--signoff-file", str(tmp_path / "signed")]
    assert main(gate) == 1
    assert main([*gate, "--signoff", "Dana"]) == 0


def test_without_made_errors_nothing_is_known_and_the_gate_stays_shut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _ = run_made_audit(cleaned_corpus(tmp_path, "uniform", None), tmp_path / "r", frozenset(), monkeypatch)
    assert code == 1
    assert read_report(tmp_path / "r")["decision_code"] == "RESIDUAL_UNKNOWN"


def test_a_second_backend_decides_as_for_any_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_made_audit(cleaned_corpus(tmp_path, "ctc"), tmp_path / "r", frozenset(), monkeypatch)
    report = read_report(tmp_path / "r")
    assert report["estimate"]["basis"] == "raw"
    assert not report["decision_code"].startswith("RESIDUAL")


@pytest.mark.parametrize(("verdict", "decision"), [("good", "PROCEED"), ("bad", "STOP")])
def test_people_decide_over_the_residual_estimate(
    verdict: Any, decision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "r"
    manifest = cleaned_corpus(tmp_path, "uniform")
    run_made_audit(manifest, output, frozenset(), monkeypatch)
    files = read_audit(output, manifest)
    plan = review_plan(files.findings, files.population, Audit().review, files.report["sampling"]["seed"])
    labels = tuple(Label(id=id_, verdict=verdict) for id_ in plan)
    file = LabelFile(
        format="caspi-review-labels/1",
        manifest_sha256=files.report["provenance"]["manifest_sha256"],
        samples_sha256=files.samples_sha256,
        labels=labels,
        labels_sha256=seal(labels),
    )
    path = tmp_path / "labels.json"
    path.write_text(file.model_dump_json(), encoding="utf-8")
    run_made_audit(manifest, output, frozenset(), monkeypatch, labels=path)
    report = read_report(output)
    assert (report["decision"], report["estimate"]["basis"]) == (decision, "two_phase")


def test_a_cleaned_manifest_is_neither_cleaned_again_nor_laundered_by_prepare(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = cleaned_corpus(tmp_path, "uniform")
    for step in (["clean", "--output", str(tmp_path / "again")], ["prepare", "--output", str(tmp_path / "data")]):
        assert main([*step, "--manifest", str(manifest)]) == 2
        assert "was written by caspi clean" in capsys.readouterr().err


def test_without_its_summary_a_cleaned_manifest_is_not_audited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = cleaned_corpus(tmp_path, "uniform")
    (tmp_path / "cleaning_summary.json").unlink()
    with pytest.raises(ValueError, match="was written by caspi clean, but"):
        run_made_audit(manifest, tmp_path / "r", frozenset(), monkeypatch)
