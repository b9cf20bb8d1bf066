"""audit.html: the audit for readers, for listening and for blind review; one file, no network (AUDIT section 11)."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from markupsafe import Markup

from caspi.ops.audit import audit_charts as charts
from caspi.ops.audit.plain_words import ALERTS, AT_MOST, CHECKS, CONTROLS, REASONS, STATUS, reasons_in_words
from caspi.ops.audit.report_content import way_to_settle
from caspi.ops.pages import TEMPLATES, environment, style

NUM_PRINTED = 25
"""Worst clips in the table that also prints and needs no script."""
COLUMNS = {
    "coverage": "alignment_coverage",
    "speech": "speech_coverage",
    "score": "score",
    "decoy": "decoy_score",
    "confidence": "alignment_confidence",
    "rate": "letters_per_second",
    "seconds": "audio_duration",
}
Rows = Sequence[Mapping[str, Any]]


class Shown(NamedTuple):
    """What the page shows of single clips."""

    details: Mapping[str, Mapping[str, Any]]
    """By id: text, words, waveform, audio."""
    lists: Mapping[str, Sequence[str]]
    """Ids by what they were chosen for: worst, near, good, flagged, review."""
    slack: Sequence[float | None]
    """Of each row of the report: distance of the weakest measure to its threshold."""
    worst_first: Sequence[str]
    """All ids."""
    review: Mapping[str, Any]
    """Format, tags and hashes of an exported label file."""
    embed_audio: str


def audit_page(report: Mapping[str, Any], shown: Shown, command: str) -> str:
    """The page of a report as read."""
    script = Markup((TEMPLATES / "audit.js").read_text(encoding="utf-8"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    rows = {row["sample_id"]: row for row in report["detailed_metrics"]}
    why = reasons_by_id(report)
    return environment().get_template("audit.html").render(
        style=style() + Markup((TEMPLATES / "audit.css").read_text(encoding="utf-8")),
        script=script,
        script_hash=digest,
        data=embedded_json(page_data(report, shown, why)),
        report=report,
        verdict="AUDIT_INVALID" if report["decision_code"] == "AUDIT_INVALID" else report["decision"],
        status=STATUS,
        shares=shares_of(report),
        settle=way_to_settle(report["estimate"]),
        bar=charts.verdict_bar([(name, share) for name, share in shares_of(report)], report["decision_rule"]),
        sound=soundness(report),
        domains=domain_rows(report),
        alerts=ALERTS,
        distributions=distributions(report),
        reasons=[(REASONS[code], code, counts) for code, counts in report["reasons"].items()],
        printed=[(rows[id_], why[id_]) for id_ in shown.worst_first if rows[id_]["low_quality"]][:NUM_PRINTED],
        num_shown=len(shown.details),
        num_audible=sum(detail["audio"] is not None for detail in shown.details.values()),
        embed_audio=shown.embed_audio,
        command=command,
    )  # fmt: skip


def embedded_json(value: Any) -> Markup:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def page_data(report: Mapping[str, Any], shown: Shown, why: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Columns rather than rows: a large report stays small."""
    rows = report["detailed_metrics"]
    place = {row["sample_id"]: index for index, row in enumerate(rows)}
    domains = sorted({row["domain"] for row in rows})
    codes = list(report["reasons"])
    columns = {name: [_short(row[field]) for row in rows] for name, field in COLUMNS.items()}
    return {
        "id": [row["sample_id"] for row in rows],
        "domains": domains,
        "domain": [domains.index(row["domain"]) for row in rows],
        "reasonNames": [REASONS[code] for code in codes],
        "reasons": [[codes.index(code) for code in row["reasons"]] for row in rows],
        "low": [int(row["low_quality"]) for row in rows],
        "why": {place[id_]: sentences for id_, sentences in why.items() if sentences},
        "slack": [_short(value) for value in shown.slack],
        **columns,
        "clips": {place[id_]: detail for id_, detail in shown.details.items()},
        "lists": {name: [place[id_] for id_ in ids] for name, ids in shown.lists.items()},
        "worstFirst": [place[id_] for id_ in shown.worst_first],
        "review": shown.review,
        "limits": report["calibration"]["limits"],
        "scatter": [charts.SCATTER.x(0), charts.SCATTER.x(1), charts.SCATTER.y(0), charts.SCATTER.y(1)],
    }


def shares_of(report: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The estimates of the share of low quality; the last one decided."""
    estimates = report["estimate"]
    if estimates["basis"] == "residual":
        return [("found, by construction", estimates["raw"]), ("residual estimate", estimates["residual"])]
    named = [("population estimate", estimates["raw"])]
    if estimates.get("rogan_gladen"):
        named.append(("gold cross-check", estimates["rogan_gladen"]))
    if estimates["basis"] == "two_phase":
        named.append(("after blind review", estimates["two_phase"]))
    else:
        named.reverse()
    return named


def reasons_by_id(report: Mapping[str, Any]) -> dict[str, list[str]]:
    rows = report["detailed_metrics"]
    usual = {domain: _median(values) for domain, values in by_domain(rows, "letters_per_second").items()}
    limit = report["calibration"]["limits"]["max_untranscribed_seconds"]
    return {row["sample_id"]: reasons_in_words(row, usual.get(row["domain"]), limit) for row in rows}


def soundness(report: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that says whether the audit itself can be trusted."""
    calibration, rows = report["calibration"], report["detailed_metrics"]
    paired = [row for row in rows if row["score"] is not None and row["decoy_score"] is not None]
    matched, wrong = by_domain(paired, "score"), by_domain(paired, "decoy_score")
    curves = {domain: (matched[domain], wrong[domain]) for domain in matched}
    return {
        "checks": [
            {**check, "words": CHECKS[check["name"]], "sign": "≤" if check["name"] in AT_MOST else "≥"}
            for check in calibration["checks"]
        ],
        "controls": [
            {"name": name, "words": CONTROLS[name][0], "duty": CONTROLS[name][1], **row}
            for name, row in calibration["controls"].items()
        ],
        "histograms": [(d, charts.score_histograms(matched[d], wrong[d], d)) for d in matched],
        "roc": charts.roc_svg(curves) if curves else None,
        "dose": charts.dose_svg(calibration["dose_response"]) if calibration["dose_response"] else None,
        "decoy_wins": [
            (domain, sum(a <= b for a, b in zip(matched[domain], wrong[domain], strict=True)), len(matched[domain]))
            for domain in matched
        ],
        "self_test": calibration["self_test"],
    }


def domain_rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    rule, review = report["decision_rule"], report["review"]
    limits = (rule["proceed_below_pct"], rule["stop_above_pct"])
    largest = max([charts.BAR_PCT, *(row["ci"]["upper"] for row in report["domain_statistics"].values())])
    hours = by_domain(report["detailed_metrics"], "audio_duration")
    made = []
    for name, row in report["domain_statistics"].items():
        heard = review["by_domain"][name]["ci"] if review else None
        whisker = charts.domain_whisker(heard or row["ci"], largest, limits)
        hours_heard = sum(hours.get(name, [])) / 3600
        made.append({"name": name, **row, "heard": heard, "whisker": whisker, "hours": hours_heard})
    return made


def distributions(report: Mapping[str, Any]) -> dict[str, Any]:
    rows = report["detailed_metrics"]
    covered = [(row["alignment_coverage"], row["weight"]) for row in rows if row["alignment_coverage"] is not None]
    points = [
        (row["alignment_coverage"], row["speech_coverage"], row["low_quality"])
        for row in rows
        if row["alignment_coverage"] is not None and row["speech_coverage"] is not None
    ]
    rates = by_domain(rows, "letters_per_second")
    return {
        "coverage": charts.coverage_svg(covered, report["coverage_distribution"]) if covered else None,
        "scatter": charts.scatter_svg(points, report["calibration"]["limits"]) if points else None,
        "rates": charts.rates_svg(rates) if rates else None,
    }


def by_domain(rows: Rows, field: str) -> dict[str, list[float]]:
    """Values that were measured, by domain."""
    values: dict[str, list[float]] = {}
    for row in rows:
        if row[field] is not None:
            values.setdefault(row["domain"], []).append(row[field])
    return dict(sorted(values.items()))


def _median(values: Sequence[float]) -> float | None:
    return median(values) if values else None


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
