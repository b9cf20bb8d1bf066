"""From flags and blind review to the true share of bad pairs (AUDIT section 6, detector bias).

A detector flags q of the pairs. Of the flagged ones a share PPV is bad, of the others a share FOR (false omission
rate); people who hear a random sample of both tell the two shares, whatever the detector is worth:

    share bad = sum over domains of W * (c + q * PPV + (1 - c - q) * FOR)

W is the domain's share of the manifest and c the share that is bad without hearing (no audio, no text).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from caspi.config import Audit
from caspi.speech.alignment.findings import Finding
from caspi.speech.alignment.review import Label, needs_hearing
from caspi.speech.alignment.sampling import Interval
from caspi.speech.seeds import seeded_generator

Draws = NDArray[np.float64]


class Cell(NamedTuple):
    """Reviewed clips of one domain, flagged or not."""

    domain: str
    is_flagged: bool
    num_audited: int
    """Audited clips in the cell that can be heard."""
    population: float
    """Utterances of the manifest for which they stand."""
    bad: int
    good: int
    unsure: int

    @property
    def num_decided(self) -> int:
        return self.bad + self.good

    def counting_unsure_as(self, verdict: str) -> "Cell":
        if verdict == "bad":
            return self._replace(bad=self.bad + self.unsure, unsure=0)
        return self._replace(good=self.good + self.unsure, unsure=0)


class Share(NamedTuple):
    """Share of bad pairs, with draws over both phases and over the second alone."""

    point: float
    draws: Draws
    review_draws: Draws


def cells_of(findings: Sequence[Finding], population: Mapping[str, int], labels: Sequence[Label]) -> list[Cell]:
    verdicts = {label.id: label.verdict for label in labels}
    cells = []
    for domain in sorted({finding.domain for finding in findings}):
        own = [finding for finding in findings if finding.domain == domain]
        for is_flagged in (True, False):
            inside = [f for f in own if needs_hearing(f) and f.low_quality == is_flagged]
            found = [verdicts.get(f.sample_id) for f in inside]
            counts = {verdict: found.count(verdict) for verdict in ("bad", "good", "unsure")}
            share = population[domain] * len(inside) / len(own)
            cells.append(Cell(domain, is_flagged, len(inside), share, **counts))
    return cells


def two_phase_share(
    findings: Sequence[Finding], population: Mapping[str, int], cells: Sequence[Cell], deff: float, settings: Audit
) -> Share:
    """The estimate with its bootstrap draws.

    The point is unbiased, from the plain rates. The draws take each rate from its Beta distribution with half a success
    and half a failure added (Jeffreys), because resampling 0 bad of 60 would claim certainty; both phases are corrected
    for having taken a large part of a finite population, and the first for recordings (`deff`).

    Raises:
        ValueError: no reviewed clip where one is needed.
    """
    rates = {flag: _rates([cell for cell in cells if cell.is_flagged == flag], settings) for flag in (True, False)}
    total = sum(population.values())
    num_draws = settings.estimation.num_bootstrap_draws
    point, draws, review_draws = 0.0, np.zeros(num_draws), np.zeros(num_draws)
    for domain in sorted({finding.domain for finding in findings}):
        own = [finding for finding in findings if finding.domain == domain]
        flagged = sum(finding.low_quality for finding in own) / len(own)
        certain = sum(not needs_hearing(finding) for finding in own) / len(own)
        drawn = _flagged_draws(domain, len(own), flagged, population[domain], deff, settings)
        certain_part = certain / flagged if flagged else 0.0
        (ppv, ppv_draws), (omitted, omitted_draws) = rates[True][domain], rates[False][domain]
        weight = population[domain] / total

        def bad(q: Any, flagged_rate: Any, unflagged_rate: Any, certain_part: float = certain_part) -> Any:
            return q * (certain_part + (1 - certain_part) * flagged_rate) + (1 - q) * unflagged_rate

        point += weight * bad(flagged, ppv, omitted)
        draws += weight * bad(drawn, ppv_draws, omitted_draws)
        review_draws += weight * bad(flagged, ppv_draws, omitted_draws)
    return Share(point, draws, review_draws)


def two_phase_interval(
    findings: Sequence[Finding], population: Mapping[str, int], cells: Sequence[Cell], deff: float, settings: Audit
) -> tuple[Interval, Share]:
    """In percent. Clips about which the reviewer was unsure are left out of the point, and the ends of the interval
    hold whatever they are: the lower end counts them as good, the upper end as bad."""
    share = two_phase_share(findings, population, cells, deff, settings)
    tail = (1 - settings.estimation.confidence_fraction) / 2
    ends = []
    is_sure = not any(cell.unsure for cell in cells)
    for verdict, quantile in (("good", tail), ("bad", 1 - tail)):
        assumed = [cell.counting_unsure_as(verdict) for cell in cells]
        draws = share.draws if is_sure else two_phase_share(findings, population, assumed, deff, settings).draws
        ends.append(100 * float(np.quantile(draws, quantile)))
    point = 100 * share.point
    num_labels = float(sum(cell.num_decided for cell in cells))
    lower, upper = min(ends[0], point), min(100.0, max(ends[1], point))
    level = settings.estimation.confidence_fraction
    return Interval(point, lower, upper, level, "two_phase", num_labels, deff), share


def labels_needed(share: Share, limit_fraction: float, num_labels: int, z_sum: float) -> int | None:
    """Labels that would show on which side of a limit the share lies; None: no number would, the audit is too small.

    Args:
        z_sum: quantile of the confidence plus quantile of the power.
    """
    allowed = ((limit_fraction - share.point) / z_sum) ** 2
    both, review = float(np.var(share.draws)), float(np.var(share.review_draws))
    left = allowed - max(0.0, both - review)
    return None if left <= 0 else int(np.ceil(num_labels * review / left))


def rogan_gladen(
    findings: Sequence[Finding],
    raw: Mapping[str, Any],
    gold: Sequence[Label],
    control_detection: float | None,
    settings: Audit,
) -> tuple[Interval | None, dict[str, Any]]:
    """Cross-check: (flagged - FPR) / (TPR - FPR), in percent, and the rates it used (Rogan and Gladen 1978).

    FPR is the flagged share of gold clips known to be good. TPR is that of gold clips known to be bad, or with fewer
    than `review.min_domain_labels` of them the mean detection of the controls, which is only a model of real defects.
    """
    flags = {finding.sample_id: finding.low_quality for finding in findings}
    good = [flags[label.id] for label in gold if label.verdict == "good"]
    bad = [flags[label.id] for label in gold if label.verdict == "bad"]
    power = settings.review.min_detector_power
    by_gold = len(bad) >= settings.review.min_domain_labels
    detection = sum(bad) / len(bad) if by_gold else control_detection
    false_alarms = sum(good) / len(good) if good else None
    used = {
        "num_good": len(good),
        "num_bad": len(bad),
        "num_unsure": len(gold) - len(good) - len(bad),
        "fpr": false_alarms,
        "tpr": detection,
        "tpr_from": "gold" if by_gold else "controls",
    }
    if false_alarms is None or detection is None or detection - false_alarms < power:
        return None, used
    num_draws, generator = settings.estimation.num_bootstrap_draws, seeded_generator(settings.seed, "rogan-gladen")
    fpr = generator.beta(sum(good) + 0.5, len(good) - sum(good) + 0.5, num_draws)
    tpr = generator.beta(sum(bad) + 0.5, len(bad) - sum(bad) + 0.5, num_draws) if by_gold else detection
    share, size = raw["point"] / 100, raw["n_eff"]
    is_census = raw["method"] == "census"
    flagged = share if is_census else generator.beta(share * size + 0.5, (1 - share) * size + 0.5, num_draws)
    draws = np.clip((flagged - fpr) / np.maximum(tpr - fpr, power), 0, 1)
    point = 100 * min(1.0, max(0.0, (share - false_alarms) / (detection - false_alarms)))
    level = settings.estimation.confidence_fraction
    lower, upper = (100 * np.quantile(draws, ((1 - level) / 2, (1 + level) / 2))).tolist()
    return Interval(
        point, min(lower, point), max(upper, point), level, "rogan_gladen", float(len(gold)), raw["deff"]
    ), used


def _rates(cells: Sequence[Cell], settings: Audit) -> dict[str, tuple[float, Draws]]:
    """Share of bad clips by domain, with draws; a domain with few labels takes the rate of all domains together."""
    pooled = Cell("", cells[0].is_flagged, *(sum(values) for values in zip(*(cell[2:] for cell in cells), strict=True)))
    few = settings.review.min_domain_labels
    everywhere: tuple[float, Draws] | None = None
    rates = {}
    for cell in cells:
        if cell.num_audited and cell.num_decided >= min(few, cell.num_audited):
            rates[cell.domain] = _rate(cell, settings)
        else:
            everywhere = everywhere or _rate(pooled, settings)
            rates[cell.domain] = everywhere
    return rates


def _rate(cell: Cell, settings: Audit) -> tuple[float, Draws]:
    num_draws = settings.estimation.num_bootstrap_draws
    if cell.num_audited == 0:  # nothing to hear; the worst is assumed of what the audit may have missed
        return 1.0, np.ones(num_draws)
    if cell.num_decided == 0:
        kind = "flagged" if cell.is_flagged else "unflagged"
        raise ValueError(f"no {kind} clip has a verdict good or bad ({cell.unsure} unsure): review more clips")
    rate, remaining = cell.bad / cell.num_decided, 1 - cell.num_decided / max(cell.population, cell.num_decided)
    if remaining <= 0:
        return rate, np.full(num_draws, rate)
    size = cell.num_decided / remaining
    generator = seeded_generator(settings.seed, "two-phase review", f"{cell.domain}\0{cell.is_flagged}")
    return rate, generator.beta(rate * size + 0.5, (1 - rate) * size + 0.5, num_draws)


def _flagged_draws(
    domain: str, num_audited: int, flagged: float, population: int, deff: float, settings: Audit
) -> Draws:
    num_draws, remaining = settings.estimation.num_bootstrap_draws, 1 - num_audited / population
    if remaining <= 0:
        return np.full(num_draws, flagged)
    size = num_audited / deff / remaining
    generator = seeded_generator(settings.seed, "two-phase audit", domain)
    return generator.beta(flagged * size + 0.5, (1 - flagged) * size + 0.5, num_draws)
