"""An audit of a tenth of 60 clips ended in AUDIT_INVALID with the words that the pairs look random; 6 were too few."""

from typing import Any

import pytest

from caspi.ops.audit.alignment_report import recommendation


@pytest.mark.parametrize(
    ("failed", "expected"), [("num_utterances", "--sample-rate 1 takes all"), ("separable_mass", "look random to it")]
)
def test_an_invalid_audit_says_what_is_wrong_with_it(failed: str, expected: str) -> None:
    checks = [{"name": failed, "consequence": "invalid", "passed": False}]
    calibration = {"checks": checks, "self_test": {"passed": True}}
    report: dict[str, Any] = {"low_quality_percentage": 0.0, "decision_notes": [], "decision_code": "AUDIT_INVALID"}
    text = recommendation(report | {"calibration": calibration}, 10.0, 15.0)
    assert failed in text
    assert expected in text
