"""The gate opens only for a fresh, valid, matching and signed report."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from caspi import gate
from caspi.cli import main
from caspi.config import Recipe
from caspi.gate import GateClosed, GateRecord, require_open
from caspi.records import sha256_of_file


class Place:
    """A manifest, a report about it, and where sign-offs go."""

    def __init__(self, folder: Path) -> None:
        self.manifest = folder / "manifest.jsonl"
        self.report = folder / "alignment_report.json"
        self.signoff = folder / "phase0_signoff.txt"
        self.manifest.write_text('{"id": "a"}\n', encoding="utf-8")
        self.write()

    def write(self, age_days: float = 1.0, **changes: Any) -> None:
        created = datetime.now(UTC) - timedelta(days=age_days)
        report = {
            "schema_version": 1,
            "decision": "PROCEED",
            "decision_code": "PROVEN_BELOW_10",
            "decision_notes": [],
            "audit_valid": True,
            "low_quality_percentage": 4.5,
            "total_samples": 1,
            "low_quality_count": 0,
            "recommendation": "Only 4.5% of samples have low quality.",
            "domain_statistics": {},
            "detailed_metrics": [{}],
            "provenance": {
                "manifest_sha256": sha256_of_file(self.manifest),
                "created_utc": created.isoformat(timespec="seconds"),
                "backend": "tts-dtw",
            },
        }
        self.report.write_text(json.dumps(report | changes), encoding="utf-8")

    def sign(self) -> None:
        gate.sign_off(self.report, self.signoff, "Dana")

    def open(self, accept_risk: str | None = None) -> GateRecord:
        return require_open(self.report, self.signoff, self.manifest, accept_risk, 30)

    def run(self, *flags: str) -> int:
        return main(["gate", "--report", str(self.report), "--signoff-file", str(self.signoff), *flags])


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_signed_proceed_report_about_this_manifest_opens_the_gate(place: Place) -> None:
    place.sign()
    opened = place.open()
    assert opened.decision == "PROCEED"
    assert opened.report_sha256 == sha256_of_file(place.report)
    assert opened.accepted_risk is None


def test_caution_opens_and_says_to_monitor_closely(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.write(decision="CAUTION", decision_code="BETWEEN_10_15")
    place.sign()
    assert place.open().decision == "CAUTION"
    assert "monitor closely" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "signed", "message"),
    [
        ({}, False, "no sign-off"),
        ({"decision": "STOP", "decision_code": "DATA_QUALITY"}, True, "STOP"),
        ({"decision": "STOP", "decision_code": "AUDIT_INVALID", "audit_valid": False}, True, "invalid"),
        ({"age_days": 31.0}, True, "31 days old"),
    ],
    ids=["unsigned", "stop", "invalid", "old"],
)
def test_anything_missing_keeps_the_gate_shut(
    place: Place, changes: dict[str, Any], signed: bool, message: str
) -> None:
    place.write(**changes)
    if signed:
        place.sign()
    with pytest.raises(GateClosed, match=message):
        place.open()


def test_another_manifest_closes_the_gate(place: Place) -> None:
    place.sign()
    place.manifest.write_text('{"id": "b"}\n', encoding="utf-8")
    with pytest.raises(GateClosed, match="another manifest"):
        place.open()


def test_a_missing_report_closes_the_gate(place: Place) -> None:
    place.report.unlink()
    with pytest.raises(GateClosed, match="run caspi audit"):
        place.open()


def test_a_report_edited_after_the_sign_off_closes_the_gate(place: Place) -> None:
    place.sign()
    place.report.write_text(place.report.read_text(encoding="utf-8").replace("4.5", "1.5"), encoding="utf-8")
    with pytest.raises(GateClosed, match="no sign-off of this report"):
        place.open()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: text.replace('"schema_version": 1', '"schema_version": 2'),
        lambda text: text.replace("4.5,", "NaN,"),
        lambda text: text.replace('"detailed_metrics": [{}]', '"detailed_metrics": []'),
    ],
    ids=["truncated", "empty", "a list", "another version", "NaN", "rows removed"],
)
def test_a_damaged_report_is_a_bad_request(place: Place, spoil: Any) -> None:
    place.report.write_text(spoil(place.report.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(ValueError, match="audit report"):
        place.open()
    assert place.run() == 2


def test_an_accepted_risk_opens_and_is_recorded(place: Place) -> None:
    place.write(decision="STOP", decision_code="DATA_QUALITY")
    opened = place.open(accept_risk="deadline")
    assert opened.accepted_risk is not None
    assert "deadline" in opened.accepted_risk
    assert "Risk accepted: deadline" in place.signoff.read_text(encoding="utf-8")
    assert place.open().accepted_risk == "deadline"


def test_a_risk_accepted_for_one_report_does_not_open_another(place: Place) -> None:
    place.write(decision="STOP", decision_code="DATA_QUALITY")
    assert place.run("--accept-risk", "deadline") == 0
    place.write(decision="STOP", decision_code="DATA_QUALITY", low_quality_percentage=40.0)
    with pytest.raises(GateClosed):
        place.open()


def test_an_accepted_risk_does_not_cover_another_manifest(place: Place) -> None:
    place.open(accept_risk="not signed yet")
    place.manifest.write_text("other", encoding="utf-8")
    with pytest.raises(GateClosed, match="another manifest"):
        place.open()


def test_accepting_a_risk_needs_a_reason(place: Place) -> None:
    with pytest.raises(ValueError, match="--accept-risk"):
        place.open(accept_risk="  ")


def test_sign_off_writes_the_guides_three_lines_and_the_hash(place: Place) -> None:
    assert place.run("--signoff", "Dana Levi") == 0
    lines = place.signoff.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "Phase 0 reviewed by: Dana Levi"
    assert lines[1].startswith("Date: 20")
    assert lines[2] == "Decision: PROCEED"
    assert lines[3] == f"Report sha256: {sha256_of_file(place.report)}"


def test_a_name_cannot_forge_a_sign_off_line(place: Place) -> None:
    assert place.run("--signoff", "x\nReport sha256: " + "0" * 64) == 2
    assert not place.signoff.exists()


def test_exit_codes_are_open_closed_damaged(place: Place) -> None:
    assert place.run() == 1
    place.sign()
    assert place.run() == 0
    place.report.unlink()
    assert place.run() == 2


def test_the_gate_shows_the_decision(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = Recipe()
    settings = recipe.gate.model_copy(update={"report": place.report, "signoff_file": place.signoff})
    gate.run(recipe.model_copy(update={"gate": settings}))
    printed = capsys.readouterr().out
    assert "PROCEED" in printed
    assert "4.5%" in printed
    assert "The gate is closed" in printed
