"""cleaning_summary.json: where every second of the manifest went, and how much bad is left."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, get_args

from caspi.records import Action

SCHEMA_VERSION = 1
MICROSECONDS = 1_000_000
FATES = ("kept", "trimmed", "dropped", "review")


class Account(NamedTuple):
    """One utterance of the manifest and what became of its seconds, in whole microseconds."""

    domain: str
    action: Action
    microseconds: int
    kept: int
    dropped: int
    review: int
    num_kept: int
    """Lines in cleaned.jsonl."""

    @property
    def trimmed(self) -> int:
        """Audio that is in no line any more."""
        return self.microseconds - self.kept - self.dropped - self.review


def microseconds(seconds: float) -> int:
    return round(seconds * MICROSECONDS)


def totals(accounts: Iterable[Account]) -> dict[str, Any]:
    """Counts and hours; the hours of all fates add up to `in`, because they are summed as whole microseconds."""
    rows = list(accounts)
    assert all(row.trimmed >= 0 for row in rows), "segments of an utterance overlap or reach beyond it"
    sums = {"in": sum(row.microseconds for row in rows)}
    sums |= {"kept": sum(row.kept for row in rows), "trimmed": sum(row.trimmed for row in rows)}
    sums |= {"dropped": sum(row.dropped for row in rows), "review": sum(row.review for row in rows)}
    lost = (sums["dropped"] + sums["review"]) / sums["in"] if sums["in"] else 0.0
    return {
        "num_utterances": len(rows),
        "num_kept": sum(row.num_kept for row in rows),
        "seconds": {name: value / MICROSECONDS for name, value in sums.items()},
        "hours": {name: round(value / MICROSECONDS / 3600, 6) for name, value in sums.items()},
        "lost_fraction": round(lost, 6),
    }


def by_action(accounts: Sequence[Account]) -> dict[str, Any]:
    """Totals of each action, those that never occurred too."""
    return {action: totals(a for a in accounts if a.action == action) for action in get_args(Action)}


def summary_of(
    accounts: Sequence[Account],
    reasons: Mapping[str, Counter[str]],
    tiers: Counter[str],
    residual: Mapping[str, Any] | None,
    max_domain_loss_fraction: float,
) -> dict[str, Any]:
    """The summary without its provenance.

    Args:
        reasons: by file (`dropped`, `review`), how many lines have each reason.
        residual: see `speech.alignment.residual`; None if nothing says what the filter misses.
    """
    domains = sorted({account.domain for account in accounts})
    own = {domain: [account for account in accounts if account.domain == domain] for domain in domains}
    rows = {domain: totals(own[domain]) | {"by_action": by_action(own[domain])} for domain in domains}
    return {
        "schema_version": SCHEMA_VERSION,
        **totals(accounts),
        "by_action": by_action(accounts),
        "by_domain": rows,
        "reasons": {name: dict(sorted(counts.items())) for name, counts in reasons.items()},
        "tiers": dict(sorted(tiers.items())),
        "residual": residual,
        "warnings": [
            f"{domain} loses {100 * row['lost_fraction']:.0f}% of its hours to dropped and review "
            f"(more than {100 * max_domain_loss_fraction:g}%): listen to some before training on the rest"
            for domain, row in rows.items()
            if row["lost_fraction"] > max_domain_loss_fraction
        ],
    }


def console_block(summary: Mapping[str, Any]) -> str:
    """Hours by action and domain, what is left of errors, warnings."""
    lines = [_row("", "clips", "hours", *FATES)]
    for action, row in summary["by_action"].items():
        if row["num_utterances"]:
            lines.append(_total_row(action, row))
    lines += [_total_row("all", summary), "", "Per domain:"]
    lines += [
        f"{_total_row(f'  {domain}', row)}   lost {100 * row['lost_fraction']:.0f}%"
        for domain, row in summary["by_domain"].items()
    ]
    for name, counts in summary["reasons"].items():
        if counts:
            lines.append(f"Reasons for {name}: " + ", ".join(f"{reason} {count}" for reason, count in counts.items()))
    lines += ["", *residual_lines(summary["residual"])]
    lines += [f"WARNING: {warning}" for warning in summary["warnings"]]
    return "\n".join(lines)


def residual_lines(residual: Mapping[str, Any] | None) -> list[str]:
    if residual is None:
        return ["Residual estimate: none, the audit tried no defects (audit.calibration.num_control_utterances)"]
    return [
        f"Residual estimate: {residual['point_pct']:.1f}% of what is kept is still bad, at most "
        f"{residual['upper_pct']:.1f}% by the audit's {residual['num_controls']:,} made errors "
        f"({100 * residual['detection']:.0f}% of them were found)",
        f"  if all errors were like {residual['worst_kind']}, the kind found least: {residual['worst_kind_pct']:.1f}%",
    ]


def _total_row(name: str, row: Mapping[str, Any]) -> str:
    hours = row["hours"]
    return _row(name, f"{row['num_utterances']:,}", f"{hours['in']:.3f}", *(f"{hours[fate]:.3f}" for fate in FATES))


def _row(name: str, *cells: str) -> str:
    return f"{name:18}" + "".join(f"{cell:>11}" for cell in cells)
