"""alignment_report.json: reading it, and its views on the console and in Weights & Biases."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from caspi.config import one_line
from caspi.files import read_object

SCHEMA_VERSION = 1
RULE = "=" * 70
TOO_FEW = (
    "\nToo few clips were compared to say anything; audit more: --sample-rate 1 takes all, --num-samples 300 so many."
)
SIGNS = {"PROCEED": "✅", "CAUTION": "⚠️", "STOP": "❌"}
WANDB_RUN_NAME = "phase0-audit"
WANDB_ARTIFACT = "phase0-audit-report"

log = logging.getLogger(__name__)


class Provenance(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    manifest_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    created_utc: str
    backend: str


class GateView(BaseModel):
    """What the gate needs of a report; the rest is in the schema."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    schema_version: Literal[1]
    decision: Literal["PROCEED", "CAUTION", "STOP"]
    decision_code: str
    decision_notes: list[str]
    audit_valid: bool
    low_quality_percentage: float = Field(ge=0, le=100)
    total_samples: int = Field(ge=0)
    low_quality_count: int = Field(ge=0)
    recommendation: str
    domain_statistics: dict[str, Any]
    detailed_metrics: list[Any]
    provenance: Provenance


def read_gate_view(path: Path) -> GateView:
    """Read a report for the gate.

    Raises:
        ValueError: the report is missing, truncated, or not one of ours; the message says which and the way out.
    """
    try:
        view = GateView.model_validate(read_object(path))
    except FileNotFoundError:
        raise ValueError(f"there is no audit report {path}; run caspi audit") from None
    except ValidationError as error:
        raise ValueError(f"audit report {path} is incomplete: {one_line(error)}; run caspi audit again") from None
    except ValueError as error:
        raise ValueError(f"audit report {error}; run caspi audit again") from None
    if len(view.detailed_metrics) != view.total_samples:
        found = f"{len(view.detailed_metrics)} entries for {view.total_samples} samples"
        raise ValueError(f"audit report {path} has been changed: {found}; run caspi audit again")
    return view


def recommendation(report: Mapping[str, Any], proceed_below_pct: float, stop_above_pct: float) -> str:
    """The guide's sentences about the decision, with this report's numbers."""
    share = report["low_quality_percentage"]
    notes = "".join(f"\n{note[0].upper()}{note[1:]}." for note in report["decision_notes"])
    if report["decision_code"] == "AUDIT_INVALID":
        failed = [check["name"] for check in report["calibration"]["checks"] if _breaks(check)]
        is_small = "num_utterances" in failed
        reason = TOO_FEW if is_small else _self_test_note(report["calibration"]["self_test"])
        return f"The audit itself is invalid ({', '.join(failed)}): no statement about the data.{reason}"
    if report["decision"] == "PROCEED":
        first = f"Only {share:.1f}% of samples have low quality (<{proceed_below_pct:g}% threshold)."
        return f"{first}\nData quality is acceptable for Round 2 training.{notes}"
    if report["decision"] == "STOP":
        first = f"{share:.1f}% of samples have low quality (>{stop_above_pct:g}% threshold)."
        return f"{first}\nFix data quality before training.{notes}"
    return f"{share:.1f}% of samples have low quality.\nProceed but monitor closely.{notes}"


def console_block(report: Mapping[str, Any], path: Path) -> str:
    """The results as the deployment guide shows them, and two lines more."""
    lines = [RULE, "PHASE 0 AUDIT RESULTS", RULE, ""]
    lines.append(f"Total samples audited: {report['total_samples']:,}")
    share = report["sample_low_quality_percentage"]
    lines.append(f"Low quality samples: {report['low_quality_count']:,} ({share:.1f}%)")
    lines += _estimate_lines(report["estimate"])
    lines += _review_lines(report["estimate"], report["review"])
    lines += ["", "Coverage distribution:"]
    lines += [f"  {name}: {_number(report['coverage_distribution'][name])}" for name in _QUANTILE_NAMES]
    lines += ["", "Per-domain breakdown:"]
    for domain, row in report["domain_statistics"].items():
        lines += ["", *_domain_lines(domain, row)]
    lines += ["", RULE, "DECISION GATE", RULE, ""]
    lines += [f"{SIGNS[report['decision']]} {report['decision']}: {report['recommendation']}", ""]
    lines += [f"✓ Full report saved to: {_from_here(path)}", RULE]
    return "\n".join(lines)


def wandb_metrics(report: Mapping[str, Any]) -> dict[str, Any]:
    """The guide's keys."""
    metrics: dict[str, Any] = {
        "phase0/total_samples": report["total_samples"],
        "phase0/low_quality_count": report["low_quality_count"],
        "phase0/low_quality_percentage": report["low_quality_percentage"],
        "phase0/decision": report["decision"],
    }
    metrics |= {f"phase0/coverage_{name}": value for name, value in report["coverage_distribution"].items()}
    for domain, row in report["domain_statistics"].items():
        for name in ("count", "low_quality_pct", "mean_coverage", "length_mismatch_pct"):
            metrics[f"phase0/{domain}/{name}"] = row[name]
    return {name: value for name, value in metrics.items() if value is not None}


def log_to_wandb(report: Mapping[str, Any], path: Path) -> None:
    """Send the report to Weights & Biases, or note it offline; a failure is said and stops nothing."""
    import wandb

    from caspi.ops.training.tracking import DEFAULT_PROJECT, plan_wandb

    plan = plan_wandb({"WANDB_PROJECT": DEFAULT_PROJECT} | dict(os.environ))
    if plan.mode == "off":
        log.warning("Phase 0 is not logged to W&B: %s", plan.reason)
        return
    try:
        project = os.environ.get("WANDB_PROJECT", DEFAULT_PROJECT)
        with wandb.init(
            project=project, name=WANDB_RUN_NAME, job_type="audit", mode=plan.mode, dir=str(path.parent)
        ) as run:
            run.log(wandb_metrics(report))
            artifact = wandb.Artifact(WANDB_ARTIFACT, type="audit")
            artifact.add_file(str(path))
            run.log_artifact(artifact)
    except (wandb.Error, OSError) as error:
        log.warning("Phase 0 could not be logged to W&B: %s", error)


_QUANTILE_NAMES = ("p10", "p25", "p50", "p75", "p90", "mean")


def _estimate_lines(estimate: Mapping[str, Any]) -> list[str]:
    raw, gross = estimate["raw"], estimate["gross_mismatch"]
    level = f"{100 * raw['level']:g}%"
    lines = [f"Population estimate: {raw['point']:.1f}% [{raw['lower']:.1f}, {raw['upper']:.1f}] ({level})"]
    residual = estimate.get("residual")
    if residual is not None:
        lines[0] += f" by construction: {residual['filter']['backend']} chose these utterances"
        lines.append(f"Residual estimate: {residual['point']:.1f}%, at most {residual['upper']:.1f}%")
    if gross is not None:
        lines.append(
            f"Decoys that beat their transcript: {gross['point'] / 2:.1f}% → gross mismatch ≤{gross['upper']:.1f}%"
        )
    return lines


def _review_lines(estimate: Mapping[str, Any], review: Mapping[str, Any] | None) -> list[str]:
    lines = []
    if review is not None:
        share = estimate["two_phase"]
        labels = f"{review['num_labels']} clips heard, {review['unsure']} unsure"
        lines.append(
            f"After blind review: {share['point']:.1f}% [{share['lower']:.1f}, {share['upper']:.1f}] ({labels})"
        )
    check = estimate.get("rogan_gladen")
    if check is not None:
        bounds = f"[{check['lower']:.1f}, {check['upper']:.1f}]"
        lines.append(f"Cross-check by gold labels (Rogan-Gladen): {check['point']:.1f}% {bounds}")
    return lines


def _domain_lines(domain: str, row: Mapping[str, Any]) -> list[str]:
    lines = [
        f"  {domain}:",
        f"    Samples: {row['count']:,}",
        f"    Low quality: {row['low_quality_pct']:.1f}%",
        f"    Mean coverage: {_number(row['mean_coverage'])}",
        f"    Length mismatches: {row['length_mismatch_pct']:.1f}%",
    ]
    if row["alert"] is not None:
        lines.append("    High risk domain: look at its samples before training")
    return lines


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}"


def _from_here(path: Path) -> str:
    return str(path) if path.is_absolute() else f"./{path}"


def _breaks(check: Mapping[str, Any]) -> bool:
    return check["consequence"] == "invalid" and not check["passed"]


def _self_test_note(self_test: Mapping[str, Any] | None) -> str:
    if self_test is None:
        return ""
    if self_test["passed"]:
        return "\nThe tool separates synthetic Hebrew; these pairs look random to it."
    return "\nThe tool does not separate even synthetic Hebrew: it is broken or deaf to Hebrew."
