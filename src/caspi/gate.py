"""The gate between audit and training: it opens because files say so, not because somebody says yes.

It needs a fresh, valid report about exactly the manifest that will be trained on, a decision that allows training, and
a sign-off of that very report.
"""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from caspi.config import Recipe
from caspi.files import read_text
from caspi.ops.audit.alignment_report import SIGNS, GateView, read_gate_view
from caspi.records import AnswerIsNo, ExitCode, Record, sha256_of_file

REPORT_HASH = "Report sha256: "
RISK = "Risk accepted: "
RISK_HASH = "Risk report sha256: "
SECONDS_PER_DAY = 86_400


class GateClosed(AnswerIsNo):
    """Training is not allowed; the message says why and the way out."""


class GateRecord(Record):
    """What opened the gate; part of the training run's record."""

    decision: Literal["PROCEED", "CAUTION", "STOP"] | None
    """None: there was no usable report, and the risk was accepted."""
    low_quality_percentage: float | None
    report_sha256: str | None
    accepted_risk: str | None
    """The reason given to open a closed gate, and in brackets what had closed it."""


def run(recipe: Recipe) -> int:
    """Show the decision, sign it off if asked. Exit code: 0 open, 1 closed.

    Raises:
        ValueError: the report is missing or damaged.
    """
    settings = recipe.gate
    view = read_gate_view(settings.report)
    print(f"{SIGNS[view.decision]} {view.decision} ({view.decision_code}): {view.recommendation}")
    print(f"Samples audited: {view.total_samples:,}; low quality: {view.low_quality_percentage:.1f}%")
    if settings.signoff is not None:
        sign_off(settings.report, settings.signoff_file, settings.signoff)
        print(f"Signed off by {settings.signoff} in {settings.signoff_file}")
    closed = why_closed(view, settings.report, settings.signoff_file, settings.max_age_days)
    if closed and settings.accept_risk is not None:
        accept(settings.report, settings.signoff_file, settings.accept_risk, closed)
    risk = accepted_risks(settings.signoff_file).get(sha256_of_file(settings.report))
    if closed and risk is not None:
        print(f"The gate would be closed: {closed}\nIt is open because a risk was accepted: {risk}")
        return ExitCode.DONE
    print(f"The gate is closed: {closed}" if closed else "The gate is open.")
    return ExitCode.NO if closed else ExitCode.DONE


def require_open(
    report_path: Path, signoff_path: Path, manifest_path: Path, accept_risk: str | None, max_age_days: float
) -> GateRecord:
    """Let training pass, or say why not.

    Args:
        accept_risk: reason to train although the gate is closed; it is recorded in the sign-off file.

    Raises:
        GateClosed: the gate is closed and no risk was accepted.
        ValueError: the report is damaged, or the reason is blank.
    """
    if accept_risk is not None:
        _one_line(accept_risk, "--accept-risk")
    if not report_path.exists():
        return _accept_or_close(
            None, f"there is no audit report {report_path}; run caspi audit", report_path, signoff_path, accept_risk
        )
    view = read_gate_view(report_path)
    report_hash = sha256_of_file(report_path)
    known_risk = accepted_risks(signoff_path).get(report_hash)
    closed = _other_manifest(view, manifest_path)
    if not closed and known_risk is None:
        closed = why_closed(view, report_path, signoff_path, max_age_days)
    if closed:
        return _accept_or_close(view, closed, report_path, signoff_path, accept_risk)
    if view.decision == "CAUTION":
        print(f"{SIGNS['CAUTION']} Phase 0 says CAUTION ({view.decision_code}): proceed but monitor closely.")
    return GateRecord(
        decision=view.decision,
        low_quality_percentage=view.low_quality_percentage,
        report_sha256=report_hash,
        accepted_risk=known_risk,
    )


def why_closed(view: GateView, report_path: Path, signoff_path: Path, max_age_days: float) -> str | None:
    """The first thing that keeps the gate shut, with the way out; None: open as far as the report goes."""
    if not view.audit_valid:
        return "the audit was invalid and says nothing about the data; audit with another backend"
    if view.decision == "STOP":
        return f"the decision is STOP ({view.low_quality_percentage:.1f}% low quality); repair the data, audit again"
    age_days = (time.time() - _created(view, report_path)) / SECONDS_PER_DAY
    if age_days > max_age_days:
        return f"the report is {age_days:.0f} days old, at most {max_age_days:g} are allowed; audit again"
    if sha256_of_file(report_path) not in signed_hashes(signoff_path):
        return f"{signoff_path} has no sign-off of this report; run caspi gate --signoff NAME"
    return None


def sign_off(report_path: Path, signoff_path: Path, name: str) -> None:
    """Append the guide's three lines and the hash of the report.

    Raises:
        ValueError: the name is blank or has several lines, or the report is missing or damaged.
    """
    view = read_gate_view(report_path)
    _append(
        signoff_path,
        [
            f"Phase 0 reviewed by: {_one_line(name, '--signoff')}",
            f"Date: {_now()}",
            f"Decision: {view.decision}",
            f"{REPORT_HASH}{sha256_of_file(report_path)}",
        ],
    )


def accept(report_path: Path, signoff_path: Path, reason: str, closed: str) -> None:
    """Append an accepted risk.

    Raises:
        ValueError: the reason is blank or has several lines.
    """
    report_hash = sha256_of_file(report_path) if report_path.exists() else "none"
    _append(
        signoff_path,
        [
            f"{RISK}{_one_line(reason, '--accept-risk')}",
            f"Date: {_now()}",
            f"Gate was closed: {closed}",
            f"{RISK_HASH}{report_hash}",
        ],
    )


def signed_hashes(signoff_path: Path) -> set[str]:
    """Hashes of the reports that were signed off.

    Raises:
        ValueError: the file cannot be read as text.
    """
    lines = _lines(signoff_path)
    return {line.removeprefix(REPORT_HASH).strip() for line in lines if line.startswith(REPORT_HASH)}


def accepted_risks(signoff_path: Path) -> dict[str, str]:
    """Reasons of accepted risks by the hash of the report they were accepted for; the last one counts.

    Raises:
        ValueError: the file cannot be read as text.
    """
    reasons, reason = {}, ""
    for line in _lines(signoff_path):
        if line.startswith(RISK):
            reason = line.removeprefix(RISK)
        elif line.startswith(RISK_HASH):
            reasons[line.removeprefix(RISK_HASH).strip()] = reason
    return reasons


def _lines(path: Path) -> list[str]:
    try:
        return read_text(path).splitlines()
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise ValueError(f"sign-off file {error}; sign into another with --signoff-file") from None


def _accept_or_close(
    view: GateView | None, closed: str, report_path: Path, signoff_path: Path, accept_risk: str | None
) -> GateRecord:
    if accept_risk is None:
        raise GateClosed(f"the gate is closed: {closed} (or accept it with --accept-risk REASON)")
    accept(report_path, signoff_path, accept_risk, closed)
    return GateRecord(
        decision=view.decision if view else None,
        low_quality_percentage=view.low_quality_percentage if view else None,
        report_sha256=sha256_of_file(report_path) if view else None,
        accepted_risk=f"{accept_risk} [{closed}]",
    )


def _other_manifest(view: GateView, manifest_path: Path) -> str | None:
    if not manifest_path.exists():
        raise ValueError(f"manifest {manifest_path} does not exist; run caspi prepare")
    if sha256_of_file(manifest_path) == view.provenance.manifest_sha256:
        return None
    return f"the report is about another manifest than {manifest_path}; audit the one that will be trained on"


def _created(view: GateView, report_path: Path) -> float:
    """Seconds since the epoch."""
    try:
        created = datetime.fromisoformat(view.provenance.created_utc)
    except ValueError:
        found = view.provenance.created_utc
        raise ValueError(f"audit report {report_path}: created_utc is {found!r}, expected a date and time") from None
    return (created if created.tzinfo else created.replace(tzinfo=UTC)).timestamp()


def _append(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(f"{line}\n" for line in lines))


def _one_line(text: str, flag: str) -> str:
    if not text.strip() or len(text.splitlines()) != 1:
        raise ValueError(f"{flag} needs one line of text, got {text!r}")
    return text.strip()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
