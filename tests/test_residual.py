"""What a filter leaves is told from what it misses, and a cleaned manifest is recognised."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caspi.config import Audit
from caspi.ops.audit.cleaned_manifest import read_cleaning
from caspi.ops.audit.decision import decide_filtered
from caspi.ops.audit.report_content import with_residual, without_review
from caspi.records import CleanedUtterance, Utterance, is_cleaned, read_manifest, sha256_of_file, write_jsonl
from caspi.speech.alignment.residual import estimate_residual


def controls(**flagged: float) -> dict[str, dict[str, Any]]:
    return {kind: {"n": 100, "flagged": share} for kind, share in flagged.items()}


def test_the_estimate_meets_a_simulated_filter() -> None:
    rng = np.random.default_rng(0)
    bad = rng.random(200_000) < 0.18
    flagged = bad & (rng.random(len(bad)) < 0.85)
    residual = estimate_residual(int(flagged.sum()), len(bad), controls(K2_truncated=0.9, K3_dropped=0.8))
    assert residual is not None
    left = 100 * (bad & ~flagged).sum() / (~flagged).sum()
    assert residual.point_pct == pytest.approx(left, abs=0.15)
    assert residual.upper_pct > left
    assert residual.worst_kind == "K3_dropped"
    assert residual.worst_kind_pct > residual.point_pct


def test_false_alarms_make_the_estimate_too_high_never_too_low() -> None:
    rng = np.random.default_rng(1)
    bad = rng.random(100_000) < 0.10
    flagged = (bad & (rng.random(len(bad)) < 0.9)) | (~bad & (rng.random(len(bad)) < 0.04))
    residual = estimate_residual(int(flagged.sum()), len(bad), controls(K2_truncated=0.9))
    assert residual is not None
    assert residual.point_pct > 100 * (bad & ~flagged).sum() / (~flagged).sum()


def test_only_made_defects_count_and_without_any_there_is_no_estimate() -> None:
    assert estimate_residual(5, 100, controls(K1_shuffle_similar=1.0, K7_reversed=1.0, P1_gain=0.0)) is None
    assert estimate_residual(5, 100, {"K2_truncated": {"n": 0, "flagged": 0.0}}) is None


@pytest.mark.parametrize(("flagged", "detection", "left"), [(0, 0.9, 0.0), (0, 0.0, 0.0), (50, 0.3, 100.0)])
def test_the_ends_are_finite(flagged: int, detection: float, left: float) -> None:
    residual = estimate_residual(flagged, 100, controls(K2_truncated=detection))
    assert residual is not None
    assert residual.point_pct == left
    assert 0 <= residual.upper_pct <= 100


def residual_of(point: float, upper: float, num_controls: int = 100) -> dict[str, Any]:
    filter_ = {"backend": "ctc", "report_sha256": "0" * 64}
    worst = {"worst_kind": "K6_subst50", "worst_kind_pct": 9.0}
    return {"point": point, "upper": upper, "num_controls": num_controls, "filter": filter_, **worst}


@pytest.mark.parametrize(
    ("status", "residual", "decision", "code"),
    [
        ("valid", residual_of(1.0, 2.0), "CAUTION", "RESIDUAL_ESTIMATE"),
        ("degraded", residual_of(0.0, 0.0), "CAUTION", "RESIDUAL_ESTIMATE"),
        ("valid", residual_of(8.0, 10.0), "CAUTION", "RESIDUAL_NOT_BELOW_10"),
        ("valid", residual_of(15.0, 20.0), "CAUTION", "RESIDUAL_NOT_BELOW_10"),
        ("valid", residual_of(15.1, 20.0), "STOP", "DATA_QUALITY"),
        ("valid", residual_of(100.0, 100.0, 0), "STOP", "RESIDUAL_UNKNOWN"),
        ("invalid", residual_of(0.0, 0.0), "STOP", "AUDIT_INVALID"),
    ],
)
@pytest.mark.parametrize("gate", ["evidence", "point"])
def test_a_filtered_manifest_never_proceeds_by_its_own_filter(
    status: str, residual: dict[str, Any], decision: str, code: str, gate: Any
) -> None:
    verdict = decide_filtered(status, residual, Audit(gate=gate))
    assert (verdict.decision, verdict.code) == (decision, code)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "cleaned.jsonl"
    line: dict[str, Any] = {"id": "a", "audio_filepath": "a.wav", "text": "שלום", "duration": 1.0, "domain": "d"}
    write_jsonl(path, [CleanedUtterance(**line, parent_id="a", action="keep", tier="strong")])
    summarise(path)
    return path


def summarise(manifest: Path, **changes: Any) -> None:
    residual = {"point_pct": 1.5, "upper_pct": 2.5, "worst_kind": "K6_subst50", "worst_kind_pct": 4.0}
    residual |= {"detection": 0.9, "num_controls": 50}
    provenance = {"cleaned_sha256": sha256_of_file(manifest), "report_sha256": "1" * 64, "backend": "ctc"}
    summary = {"schema_version": 1, "residual": residual, "provenance": provenance | {"model_sha256": "2" * 64}}
    (manifest.parent / "cleaning_summary.json").write_text(json.dumps(summary | changes), encoding="utf-8")


def test_a_cleaned_manifest_knows_what_filtered_it(manifest: Path) -> None:
    assert is_cleaned(manifest)
    (line,) = read_manifest(manifest)
    assert isinstance(line, CleanedUtterance)
    cleaning = read_cleaning(manifest)
    assert cleaning is not None
    estimate = {"basis": "raw", "raw_upper_with_unjudged_domains": 1.0, "raw_open_threshold_pct": None, "raw": {}}
    figures = {"estimate": estimate}
    filtered = with_residual(figures, cleaning, "ctc")
    assert filtered["estimate"]["basis"] == "residual"
    assert filtered["estimate"]["residual"]["upper"] == 2.5
    assert without_review(filtered)["estimate"]["basis"] == "residual"
    assert with_residual(figures, cleaning, "qwen") == figures
    assert with_residual(figures, None, "ctc") == figures


def test_an_ordinary_manifest_does_not(tmp_path: Path) -> None:
    path = tmp_path / "manifest.jsonl"
    write_jsonl(path, [Utterance(id="a", audio_filepath="a.wav", text="שלום", duration=1.0, domain="d")])
    assert read_cleaning(path) is None
    assert read_cleaning(tmp_path / "missing.jsonl") is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (None, "is not there: keep cleaning_summary.json beside the manifest"),
        ({"residual": {"point_pct": -1}}, "is damaged"),
        ({"schema_version": 2}, "schema_version"),
        ({"residual": {"point_pct": float("inf")}}, "damaged"),
        ({"provenance": {}}, "is damaged"),
    ],
)
def test_a_summary_that_is_missing_or_damaged_is_refused(
    manifest: Path, changes: dict[str, Any] | None, message: str
) -> None:
    (manifest.parent / "cleaning_summary.json").unlink()
    if changes is not None:
        summarise(manifest, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        read_cleaning(manifest)
    assert "\n" not in str(caught.value)


def test_a_summary_of_another_cleaning_is_refused(manifest: Path) -> None:
    manifest.write_text(manifest.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="about another cleaned manifest"):
        read_cleaning(manifest)
