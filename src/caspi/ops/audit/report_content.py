"""alignment_report.json from its figures: decide, say it in words, add what went in."""

import hashlib
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from caspi.config import Audit, Recipe
from caspi.ops.audit.alignment_report import SCHEMA_VERSION, recommendation
from caspi.ops.audit.decision import Evidence, Verdict, decide
from caspi.records import dump_json, sha256_of_file

PLACES = {"manifest", "output", "num_processes"}
"""Settings that change where and how fast, not what comes out."""


def report_of(figures: Mapping[str, Any], settings: Audit) -> dict[str, Any]:
    """The whole report, decided.

    Args:
        figures: `estimate`, `domain_statistics` and every other key that the decision does not touch, rounded.
    """
    verdict = decide_on(figures, settings)
    report = {
        **figures,
        "schema_version": SCHEMA_VERSION,
        "decision": verdict.decision,
        "decision_code": verdict.code,
        "decision_notes": verdict.notes,
        "certainty": verdict.certainty,
        "low_quality_percentage": figures["estimate"]["raw"]["point"],
    }
    text = recommendation(report, settings.proceed_below_pct, settings.stop_above_pct)
    return {**report, "recommendation": text}


def decide_on(figures: Mapping[str, Any], settings: Audit) -> Verdict:
    estimates, rows = figures["estimate"], figures["domain_statistics"]
    gross = estimates["gross_mismatch"]
    evidence = Evidence(
        status=figures["audit_status"],
        low_quality_pct=estimates["raw"]["point"],
        lower_pct=estimates["raw"]["lower"],
        upper_pct=estimates["upper_with_unjudged_domains"],
        gross_mismatch_upper_pct=gross["upper"] if gross else 100.0,
        alarming_domains=tuple(d for d, row in rows.items() if row["ci"]["lower"] > settings.domain_alert_pct),
        samples_needed=estimates["samples_needed_for_decision"],
    )
    return decide(evidence, settings)


def provenance_of(recipe: Recipe, model: Mapping[str, str]) -> dict[str, Any]:
    """What went in. Paths and the number of processes do not change the result and are not part of the hash.

    Args:
        model: model, device and precision of the aligner.
    """
    settings = recipe.audit
    decisive = {
        "language": recipe.language.model_dump(mode="json"),
        "audit": settings.model_dump(mode="json", exclude=PLACES),
    }
    return {
        "caspi_version": version("caspi"),
        "manifest_sha256": sha256_of_file(settings.manifest),
        "config_sha256": hashlib.sha256(dump_json(decisive).encode()).hexdigest(),
        "backend": settings.backend,
        **model,
        "model_revision": None,
    }
