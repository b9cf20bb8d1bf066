"""What the audited sample says about the whole manifest (AUDIT section 6)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from caspi.config import Audit
from caspi.speech.alignment.findings import Finding, decoy_wins, domain_statistics, strata_of
from caspi.speech.alignment.review import Label, review_plan
from caspi.speech.alignment.sampling import Interval, estimate_share, power_quantiles, samples_needed
from caspi.speech.alignment.two_phase import Cell, cells_of, labels_needed, rogan_gladen, two_phase_interval

ROUND_DIGITS = 6
UNJUDGED = ("too_small", "invalid")
"""Status of domains whose utterances count as bad in the upper bound."""


def estimate_population(
    findings: Sequence[Finding], population: Mapping[str, int], statuses: Mapping[str, str], settings: Audit
) -> dict[str, Any]:
    """`estimate` and `domain_statistics` of the report.

    Args:
        population: utterances of the manifest by domain.
        statuses: validity by domain; a domain without one was not judged.
    """
    seed = settings.seed
    rows = domain_statistics(findings, population, statuses, settings)
    low = rounded(estimate_share(strata_of(findings, population), settings.estimation, seed)._asdict())
    wins = decoy_wins(findings, population)
    gross = twice(estimate_share(wins, settings.estimation, seed, finite=False)) if wins else None
    size = sum(population.values())
    unjudged = [domain for domain in population if statuses.get(domain, "too_small") in UNJUDGED]
    limit = open_threshold(low, settings)
    needed = None
    if limit is not None:
        needed = samples_needed(low["point"], limit, size, settings.estimation, low["deff"])
    upper = min(100.0, low["upper"] + _unknown_pct(unjudged, rows, population))
    return {
        "estimate": {
            "raw": low,
            "basis": "raw",
            "gross_mismatch": gross._asdict() if gross else None,
            "upper_with_unjudged_domains": upper,
            "raw_upper_with_unjudged_domains": upper,
            "open_threshold_pct": limit,
            "raw_open_threshold_pct": limit,
            "samples_needed_for_decision": needed,
        },
        "domain_statistics": rows,
    }


def estimate_reviewed(
    findings: Sequence[Finding],
    estimated: Mapping[str, Any],
    population: Mapping[str, int],
    labels: Sequence[Label],
    settings: Audit,
) -> dict[str, Any]:
    """`estimate` and `review` of the report once people have heard clips: the two-phase estimate decides from then on.

    Args:
        estimated: `estimate` and `domain_statistics` of the audit.

    Raises:
        ValueError: too few labels to say anything.
    """
    raw, rows = estimated["estimate"]["raw"], estimated["domain_statistics"]
    cells = cells_of(findings, population, labels)
    interval, share = two_phase_interval(findings, population, cells, raw["deff"], settings)
    bounds = interval._asdict()
    by_domain = {domain: _reviewed_domain(domain, findings, population, cells, settings) for domain in rows}
    heard = {domain for domain, row in by_domain.items() if row["ci"] is not None}
    unjudged = [d for d in population if rows.get(d, {}).get("status", "too_small") in UNJUDGED and d not in heard]
    limit = open_threshold(rounded(bounds), settings)
    needed = None
    if limit is not None:
        needed = labels_needed(share, limit / 100, int(interval.n_eff), sum(power_quantiles(settings.estimation)))
    verdicts = Counter(label.verdict for label in labels)
    num_planned = len(review_plan(findings, population, settings.review, settings.seed))
    return {
        "estimate": {
            **estimated["estimate"],
            "basis": "two_phase",
            "two_phase": bounds,
            "upper_with_unjudged_domains": min(100.0, interval.upper + _unknown_pct(unjudged, rows, population)),
            "open_threshold_pct": limit,
            "labels_needed_for_decision": needed,
        },
        "review": {
            "num_planned": num_planned,
            "num_labels": len(labels),
            **{verdict: verdicts[verdict] for verdict in ("good", "bad", "unsure")},
            "tags": dict(sorted(Counter(tag for label in labels for tag in label.tags).items())),
            "by_domain": by_domain,
        },
    }


def cross_check(
    findings: Sequence[Finding],
    estimates: Mapping[str, Any],
    gold: Sequence[Label],
    control_detection: float | None,
    settings: Audit,
) -> dict[str, Any]:
    """`estimate` with Rogan and Gladen's figure, which decides nothing."""
    interval, used = rogan_gladen(findings, estimates["raw"], gold, control_detection, settings)
    return {**estimates, "rogan_gladen": interval._asdict() if interval else None, "gold": used}


def open_threshold(interval: Mapping[str, float], settings: Audit) -> float | None:
    """The threshold of the decision, in percent, that an interval leaves open; the nearer one of two."""
    thresholds = (settings.proceed_below_pct, settings.stop_above_pct)
    inside = [limit for limit in thresholds if interval["lower"] <= limit <= interval["upper"] != interval["lower"]]
    apart = [limit for limit in inside if limit != interval["point"]]
    return min(apart, key=lambda limit: abs(limit - interval["point"])) if apart else None


def _unknown_pct(unjudged: Sequence[str], rows: Mapping[str, Any], population: Mapping[str, int]) -> float:
    """What the upper bound grows by when everything in these domains is bad."""
    size = sum(population.values())
    shares = {domain: rows[domain]["low_quality_pct"] if domain in rows else 0.0 for domain in unjudged}
    return sum(population[domain] / size * (100 - share) for domain, share in shares.items())


def _reviewed_domain(
    domain: str,
    findings: Sequence[Finding],
    population: Mapping[str, int],
    cells: Sequence[Cell],
    settings: Audit,
) -> dict[str, Any]:
    """Labels of one domain; its own interval where they suffice, else None."""
    own = [cell for cell in cells if cell.domain == domain]
    row: dict[str, Any] = {"ci": None}
    for cell in own:
        counts = {"bad": cell.bad, "good": cell.good, "unsure": cell.unsure, "audited": cell.num_audited}
        row["flagged" if cell.is_flagged else "unflagged"] = counts
    enough = all(cell.num_decided >= min(settings.review.min_domain_labels, cell.num_audited) for cell in own)
    if enough:
        inside = [finding for finding in findings if finding.domain == domain]
        row["ci"] = two_phase_interval(inside, {domain: population[domain]}, own, 1.0, settings)[0]._asdict()
    return row


def twice(interval: Interval) -> Interval:
    """Half of all wrong transcripts lose against a decoy by chance, so the share of losses counts double."""
    point, lower, upper = (min(100.0, 2 * value) for value in (interval.point, interval.lower, interval.upper))
    return interval._replace(point=point, lower=lower, upper=upper)


def rounded(value: Any) -> Any:
    """Numbers with six decimals, everywhere inside: enough for every use, and thresholds are met exactly."""
    if isinstance(value, float):
        return round(value, ROUND_DIGITS)
    if isinstance(value, Mapping):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner) for inner in value]
    return value
