"""What the audited sample says about the whole manifest (AUDIT section 6)."""

from collections.abc import Mapping, Sequence
from typing import Any

from caspi.config import Audit
from caspi.speech.alignment.findings import Finding, decoy_wins, domain_statistics, strata_of
from caspi.speech.alignment.sampling import Interval, estimate_share, samples_needed

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
    unjudged_pct = sum(
        population[domain] / size * (100 - (rows[domain]["low_quality_pct"] if domain in rows else 0.0))
        for domain in population
        if statuses.get(domain, "too_small") in UNJUDGED
    )
    needed = None
    if low["point"] < settings.proceed_below_pct <= low["upper"]:
        needed = samples_needed(low["point"], settings.proceed_below_pct, size, settings.estimation, low["deff"])
    return {
        "estimate": {
            "raw": low,
            "basis": "raw",
            "gross_mismatch": gross._asdict() if gross else None,
            "upper_with_unjudged_domains": min(100.0, low["upper"] + unjudged_pct),
            "samples_needed_for_decision": needed,
        },
        "domain_statistics": rows,
    }


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
