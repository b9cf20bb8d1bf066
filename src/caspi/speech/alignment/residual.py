"""What a filter leaves behind: the share of bad utterances among those that it let pass (AUDIT section 9).

Auditing the survivors with the score that chose them finds nothing, by construction. How often the filter misses a bad
utterance is known only from the wrong pairs that the audit made on purpose, so this is an estimate under a model: that
real errors are as hard to see as those.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from caspi.speech.alignment.controls import DEFECTS
from caspi.speech.alignment.sampling import clopper_pearson

ONE_SIDED_95 = 0.10
"""Two-sided level whose ends are one-sided 95 % bounds."""


class Residual(NamedTuple):
    """Percent of bad utterances among those that were let pass."""

    point_pct: float
    """With the mean detection of all kinds of error."""
    upper_pct: float
    """With the lower 95 % bound of that detection."""
    worst_kind: str
    worst_kind_pct: float
    """If all errors were of the kind that is detected least."""
    detection: float
    """Mean share of made errors that the filter flagged."""
    detection_lower: float
    num_controls: int
    flagged_pct: float
    """Share of the whole manifest that was flagged."""


def estimate_residual(num_flagged: int, num_all: int, controls: Mapping[str, Mapping[str, Any]]) -> Residual | None:
    """p (1 - d) / (1 - flagged) with p = flagged / d, the share of bad utterances if no good one was flagged.

    Args:
        num_flagged: utterances of the whole manifest that the filter flagged, all of them looked at.
        controls: the report's `calibration.controls`: number of pairs and share flagged by kind.

    Returns:
        None if the audit tried no defect: then nothing says what the filter misses.
    """
    tried = {kind: row for kind, row in controls.items() if kind in DEFECTS and row["n"] > 0}
    if not tried:
        return None
    flagged = num_flagged / num_all
    detection = sum(row["flagged"] for row in tried.values()) / len(tried)
    num_controls = sum(row["n"] for row in tried.values())
    lower = clopper_pearson(detection * num_controls, num_controls, ONE_SIDED_95)[0]
    worst = min(sorted(tried), key=lambda kind: tried[kind]["flagged"])
    return Residual(
        point_pct=_left_pct(flagged, detection),
        upper_pct=_left_pct(flagged, lower),
        worst_kind=worst,
        worst_kind_pct=_left_pct(flagged, tried[worst]["flagged"]),
        detection=detection,
        detection_lower=lower,
        num_controls=num_controls,
        flagged_pct=100 * flagged,
    )


def _left_pct(flagged: float, detection: float) -> float:
    """Percent; a filter that sees less than it flagged can have left anything."""
    if detection <= flagged:
        return 100.0 if flagged else 0.0
    bad = flagged / detection
    return 100 * bad * (1 - detection) / (1 - flagged)
