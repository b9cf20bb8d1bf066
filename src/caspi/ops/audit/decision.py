"""The Phase 0 decision from an estimate (AUDIT section 7).

PROCEED needs proof, STOP needs only the estimate: going on by mistake costs days of training and spoils the
comparison of the two rounds, stopping by mistake costs a review.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from caspi.config import Audit

Decision = Literal["PROCEED", "CAUTION", "STOP"]


class Evidence(NamedTuple):
    status: str
    """valid, degraded or invalid."""
    low_quality_pct: float
    """Population estimate."""
    lower_pct: float
    upper_pct: float
    """Upper bound, domains that could not be judged counted as bad."""
    gross_mismatch_upper_pct: float
    alarming_domains: tuple[str, ...]
    """Domains whose lower bound exceeds `domain_alert_pct`."""
    way_to_settle: str | None
    """How much more evidence would settle the decision, if any would."""


class Verdict(NamedTuple):
    decision: Decision
    code: str
    certainty: Literal["confirmed", "borderline"]
    notes: list[str]


def decide(evidence: Evidence, settings: Audit) -> Verdict:
    if evidence.status == "invalid":
        return Verdict("STOP", "AUDIT_INVALID", "borderline", ["no statement about the data"])
    share = evidence.low_quality_pct
    same_band = {_band(value, settings) for value in (evidence.lower_pct, share, evidence.upper_pct)}
    certainty: Literal["confirmed", "borderline"] = "confirmed" if len(same_band) == 1 else "borderline"
    band = _band(share, settings)
    if settings.gate == "point":
        return Verdict(band, "POINT_RULE", certainty, ["the point estimate alone decided (--gate point)"])
    if band == "STOP":
        return Verdict("STOP", "DATA_QUALITY", certainty, [])
    doubts = _doubts(evidence, settings)
    if band == "CAUTION":
        doubts.insert(0, ("BETWEEN_10_15", "the share of low quality lies between the two thresholds"))
    if not doubts:
        return Verdict("PROCEED", "PROVEN_BELOW_10", certainty, [])
    return Verdict("CAUTION", doubts[0][0], certainty, [note for _, note in doubts])


def is_settled(verdict: Verdict) -> bool:
    """Would more samples leave the decision as it is? An aligner that is blind stays blind."""
    if verdict.code in ("AUDIT_INVALID", "PROVEN_BELOW_10") or verdict.code.startswith("RESIDUAL_"):
        return True
    return verdict.certainty == "confirmed" and verdict.code in ("DATA_QUALITY", "BETWEEN_10_15", "DOMAIN_ALERT")


def decide_filtered(status: str, residual: Mapping[str, Any], settings: Audit) -> Verdict:
    """Decide about a manifest that this very aligner filtered: what it finds there is nothing, by construction.

    The residual estimate can stop, but it rests on made errors and so never proves: the most it gives is CAUTION.
    """
    if status == "invalid":
        return Verdict("STOP", "AUDIT_INVALID", "borderline", ["no statement about the data"])
    way_out = "60 blind reviews (caspi audit --labels) or an audit with another --backend would be proof"
    if not residual["num_controls"]:
        note = f"nothing says what the filter missed, because its audit tried no made errors: {way_out}"
        return Verdict("STOP", "RESIDUAL_UNKNOWN", "borderline", [note])
    notes = [
        f"{residual['filter']['backend']} filtered this manifest and cannot find what it missed; by the made errors "
        f"that it missed, at most {residual['upper']:.1f}% are left, and {residual['worst_kind_pct']:.1f}% if all were "
        f"like {residual['worst_kind']}",
        way_out,
    ]
    band = _band(residual["point"], settings)
    if band == "STOP":
        return Verdict("STOP", "DATA_QUALITY", "borderline", notes)
    is_low = residual["upper"] < settings.proceed_below_pct
    return Verdict("CAUTION", "RESIDUAL_ESTIMATE" if is_low else "RESIDUAL_NOT_BELOW_10", "borderline", notes)


def _band(share_pct: float, settings: Audit) -> Decision:
    """Exactly the thresholds are CAUTION."""
    if share_pct > settings.stop_above_pct:
        return "STOP"
    return "PROCEED" if share_pct < settings.proceed_below_pct else "CAUTION"


def _doubts(evidence: Evidence, settings: Audit) -> list[tuple[str, str]]:
    """What stands against PROCEED, as code and note."""
    limit = settings.proceed_below_pct
    doubts = []
    if evidence.low_quality_pct < limit <= evidence.upper_pct:
        needed = f"; {evidence.way_to_settle}" if evidence.way_to_settle else ""
        note = f"the true share may be as high as {evidence.upper_pct:.1f}%{needed}"
        doubts.append(("NOT_PROVEN_BELOW_10", note))
    for domain in evidence.alarming_domains:
        doubts.append(("DOMAIN_ALERT", f"{domain}: more than {settings.domain_alert_pct:g}% low quality"))
    if evidence.status != "valid":
        doubts.append(("DEGRADED_ALIGNER", "the aligner separates right from wrong transcripts only in part"))
    if evidence.gross_mismatch_upper_pct >= limit:
        note = f"wrong transcripts may be as frequent as {evidence.gross_mismatch_upper_pct:.1f}%: listen to some first"
        doubts.append(("REVIEW_FIRST", note))
    return doubts
