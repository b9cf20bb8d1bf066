"""alignment_report.json from its figures: decide, say it in words, add what went in."""

import hashlib
import shlex
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from caspi.config import Audit, Recipe
from caspi.ops.audit.alignment_report import SCHEMA_VERSION, recommendation
from caspi.ops.audit.cleaned_manifest import SummaryView
from caspi.ops.audit.decision import Evidence, Verdict, decide, decide_filtered, is_settled
from caspi.records import dump_json, sha256_of_file

PLACES = {
    "manifest",
    "output",
    "num_processes",
    "engine",
    "ray_address",
    "labels",
    "gold_labels",
    "embed_audio",
    "page",
}
"""Settings that change where, how fast and how it is shown, not what comes out."""
RULE = {"gate", "proceed_below_pct", "stop_above_pct", "domain_alert_pct"}


def report_of(figures: Mapping[str, Any], settings: Audit) -> dict[str, Any]:
    """The whole report, decided.

    Args:
        figures: `estimate`, `domain_statistics` and every other key that the decision does not touch, rounded.
    """
    verdict = decide_on(figures, settings)
    estimates = figures["estimate"]
    report = {
        **figures,
        "schema_version": SCHEMA_VERSION,
        "decision": verdict.decision,
        "decision_code": verdict.code,
        "decision_notes": verdict.notes,
        "certainty": verdict.certainty,
        "decision_rule": settings.model_dump(include=RULE),
        "low_quality_percentage": estimates[estimates["basis"]]["point"],
    }
    text = recommendation(report, settings.proceed_below_pct, settings.stop_above_pct)
    return {**report, "recommendation": text}


def decide_on(figures: Mapping[str, Any], settings: Audit) -> Verdict:
    """Decide on the estimate that `basis` names; reviewed domains alarm by what people heard."""
    estimates, review = figures["estimate"], figures["review"]
    if estimates["basis"] == "residual":
        return decide_filtered(figures["audit_status"], estimates["residual"], settings)
    share, gross = estimates[estimates["basis"]], estimates["gross_mismatch"]
    intervals = {domain: row["ci"] for domain, row in figures["domain_statistics"].items()}
    if review is not None:
        intervals |= {domain: row["ci"] for domain, row in review["by_domain"].items() if row["ci"] is not None}
    evidence = Evidence(
        status=figures["audit_status"],
        low_quality_pct=share["point"],
        lower_pct=share["lower"],
        upper_pct=estimates["upper_with_unjudged_domains"],
        gross_mismatch_upper_pct=gross["upper"] if gross else 100.0,
        alarming_domains=tuple(d for d, one in intervals.items() if one["lower"] > settings.domain_alert_pct),
        way_to_settle=way_to_settle(estimates),
    )
    return decide(evidence, settings)


def look_of(report: Mapping[str, Any], settings: Audit) -> dict[str, Any]:
    """What one look at the growing sample showed."""
    raw = report["estimate"]["raw"]
    return {
        "num_samples": report["total_samples"],
        **{name: raw[name] for name in ("point", "lower", "upper", "level")},
        "decision": report["decision"],
        "decision_code": report["decision_code"],
        "is_settled": is_settled(decide_on(report, settings)),
    }


def look_line(look: Mapping[str, Any], number: int, num_looks: int) -> str:
    share = f"{look['point']:.1f}% [{look['lower']:.1f}, {look['upper']:.1f}]"
    outcome = "settled" if look["is_settled"] else "not settled"
    return f"look {number} of {num_looks}: {look['num_samples']:,} samples, {share}: {look['decision_code']}, {outcome}"


def way_to_settle(estimates: Mapping[str, Any]) -> str | None:
    """How much more evidence would settle an open decision; None: the interval leaves nothing open."""
    if estimates["basis"] == "residual":
        return "60 blind reviews or another backend would settle it"
    if estimates["open_threshold_pct"] is None:
        return None
    if estimates["basis"] == "raw":
        return f"about {estimates['samples_needed_for_decision']:,} samples would settle it"
    needed = estimates["labels_needed_for_decision"]
    if needed is None:
        return "no number of reviewed clips would settle it: audit a larger sample"
    return f"about {needed:,} reviewed clips would settle it"


def with_residual(figures: Mapping[str, Any], cleaning: SummaryView | None, backend: str) -> dict[str, Any]:
    """The figures, decided by what the filter left if the audited manifest was filtered with the same aligner.

    Other weights or another precision of a backend count as the same: what one misses, the other misses too.
    """
    if cleaning is None or cleaning.provenance.backend != backend:
        return dict(figures)
    return {**figures, "estimate": {**figures["estimate"], "basis": "residual", "residual": cleaning.as_estimate()}}


def without_review(report: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a report as if nobody had reviewed yet: new labels replace earlier ones."""
    added = ("two_phase", "labels_needed_for_decision", "rogan_gladen", "gold")
    estimates = {name: value for name, value in report["estimate"].items() if name not in added}
    raw_upper = estimates["raw_upper_with_unjudged_domains"]
    limit = report["estimate"]["raw_open_threshold_pct"]
    basis = "residual" if "residual" in estimates else "raw"
    estimates |= {"basis": basis, "upper_with_unjudged_domains": raw_upper, "open_threshold_pct": limit}
    return {**report, "estimate": estimates, "review": None}


def mean_detection(calibration: Mapping[str, Any]) -> float | None:
    """Mean share of the planted defects that were flagged; None without controls."""
    return next((check["value"] for check in calibration["checks"] if check["name"] == "mean_detection"), None)


def config_sha256(settings: Mapping[str, Any]) -> str:
    """Hash of the settings that decide what an audit finds, as the report holds them."""
    return hashlib.sha256(dump_json(settings).encode()).hexdigest()


def provenance_of(recipe: Recipe, model: Mapping[str, str]) -> dict[str, Any]:
    """What went in. Paths and the number of processes do not change the result and are not part of the hash.

    Args:
        model: model, device and precision of the aligner, and their hash.
    """
    settings = recipe.audit
    decisive = {
        "language": recipe.language.model_dump(mode="json"),
        "audit": settings.model_dump(mode="json", exclude=PLACES),
    }
    return {
        "caspi_version": version("caspi"),
        "manifest_sha256": sha256_of_file(settings.manifest),
        "config_sha256": config_sha256(decisive),
        "settings": decisive,
        "backend": settings.backend,
        **model,
        "model_revision": None,
        "command": command_of(settings),
    }


def command_of(settings: Audit) -> str:
    """The command that gives this audit again, without the places of its files."""
    changed = settings.model_dump(mode="json", exclude=PLACES, exclude_defaults=True)
    return shlex.join(["caspi", "audit", *_flags(changed, "--")])


def _flags(values: Mapping[str, Any], prefix: str) -> list[str]:
    flags: list[str] = []
    for name, value in values.items():
        flag = prefix + name.replace("_", "-")
        if name == "domain_shares":
            flags += [flag, *(str(part) for pair in value.items() for part in pair)]
        elif isinstance(value, dict):
            flags += _flags(value, f"{flag}.")
        elif isinstance(value, bool):
            flags.append(flag if value else f"{prefix}no-{name.replace('_', '-')}")
        else:
            flags += [flag, *map(str, value if isinstance(value, list) else [value])]
    return flags
