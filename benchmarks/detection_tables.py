"""What `benchmarks.audit_detection` found, as tables."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from benchmarks.measure import markdown_table
from benchmarks.planted import GOOD, KINDS, JudgedPair, PlantedAudit
from caspi.speech.alignment.sampling import clopper_pearson

LEAST_DETECTION = {
    "shuffled": 0.98,
    "truncated": 0.90,
    "dropped": 0.90,
    "extra": 0.95,
    "order": 0.88,
    "half substituted": 0.65,
    "reversed": 0.99,
}
MOST_FALSE_ALARMS = 0.04
ALPHA = 0.05


def detection_table(rows: Sequence[JudgedPair]) -> str:
    """Share flagged by kind and domain, with 95 % Clopper-Pearson intervals."""
    domains = sorted({row.domain for row in rows})
    lines = []
    for kind in (GOOD, *KINDS):
        own = [row for row in rows if row.kind == kind]
        demand = f"<= {MOST_FALSE_ALARMS:.2f}" if kind == GOOD else f">= {LEAST_DETECTION[kind]:.2f}"
        cells = [flagged_share([row for row in own if row.domain == domain]) for domain in domains]
        lines.append([kind, demand, flagged_share(own), *cells])
    return markdown_table(["kind", "demand", "all", *domains], lines)


def rates_table(rows: Sequence[JudgedPair]) -> str:
    """The same without domains, by the share of defects in the corpora that the thresholds come from."""
    rates = sorted({row.rate for row in rows})
    lines = [
        [kind, *(flagged_share([row for row in rows if row.kind == kind and row.rate == rate]) for rate in rates)]
        for kind in (GOOD, *KINDS)
    ]
    return markdown_table(["kind", *(f"{rate:.0%} planted" for rate in rates)], lines)


def flagged_share(rows: Sequence[JudgedPair]) -> str:
    hits, count = sum(row.is_flagged for row in rows), len(rows)
    if not count:
        return ""
    lower, upper = clopper_pearson(hits, count, ALPHA)
    return f"{hits / count:.3f} [{lower:.3f}, {upper:.3f}] {hits}/{count}"


def audits_table(audits: Sequence[PlantedAudit]) -> str:
    """By planted share: what was printed, its error, and how often each interval held."""
    lines = []
    for rate in sorted({audit.rate for audit in audits}):
        own = [audit for audit in audits if audit.rate == rate]
        raw = [audit.raw[0] for audit in own]
        reviewed = [audit.two_phase[0] for audit in own]
        lines.append(
            [
                f"{np.mean([audit.true_pct for audit in own]):.1f}",
                f"{np.mean(raw):.1f} ({np.std(raw):.1f})",
                held(own, lambda audit: (audit.flagged_pct, *audit.raw[1:])),
                held(own, lambda audit: (audit.true_pct, *audit.raw[1:])),
                held(own, lambda audit: (audit.true_pct, 0.0, audit.raw[2])),
                f"{np.mean(reviewed):.1f} ({np.std(reviewed):.1f})",
                held(own, lambda audit: (audit.true_pct, *audit.two_phase[1:])),
            ]
        )
    header = [
        "planted %",
        "raw % (sd)",
        "interval holds the flagged share of the whole",
        "interval holds the planted share",
        "planted share below the upper end",
        "reviewed % (sd)",
        "reviewed interval holds the planted share",
    ]
    return markdown_table(header, lines)


def held(
    audits: Sequence[PlantedAudit],
    look: Callable[[PlantedAudit], tuple[float, float, float]],
) -> str:
    """How often a truth lies between two ends; `look` gives the three."""
    return share_of([lower <= truth <= upper for truth, lower, upper in map(look, audits)])


def share_of(outcomes: Iterable[bool]) -> str:
    found = list(outcomes)
    hits, count = sum(found), len(found)
    lower, upper = clopper_pearson(hits, count, ALPHA)
    return f"{hits / count:.2f} [{lower:.2f}, {upper:.2f}]"
