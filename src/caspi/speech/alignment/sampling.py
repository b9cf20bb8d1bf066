"""Which utterances are audited, and what they say about all of them (AUDIT section 6).

The sample is nested: an utterance's place is decided by a hash of its id alone, so a larger sample contains every
smaller one, on every machine and in every order.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, norm

from caspi.config import Estimation
from caspi.speech.seeds import hash_key, seeded_generator


class Sample(NamedTuple):
    indices: list[int]
    """Positions of the drawn items, ascending."""
    target: dict[str, int]
    """Number asked for by domain, before shortages."""
    drawn: dict[str, int]
    population: dict[str, int]

    @property
    def redistributed(self) -> dict[str, int]:
        """Items a domain lacked (negative) or took over from others (positive)."""
        return {d: self.drawn[d] - self.target.get(d, 0) for d in self.drawn if self.drawn[d] != self.target.get(d, 0)}


class Interval(NamedTuple):
    """A share in percent with its two-sided confidence interval."""

    point: float
    lower: float
    upper: float
    level: float
    method: str
    n_eff: float
    deff: float


class Stratum(NamedTuple):
    """Audited items of one domain."""

    population: int
    hits: NDArray[np.bool_]
    """[num_audited] the property whose share is asked for."""
    groups: tuple[str, ...]
    """[num_audited] recording or speaker; items of one group may resemble each other."""


def draw_sample(
    ids: Sequence[str], domains: Sequence[str], num_samples: int, shares: Mapping[str, float], seed: int
) -> Sample:
    """Draw a nested stratified sample.

    Args:
        ids, domains: one entry per item of the population.
        num_samples: size wanted; the whole population when it is not larger.
        shares: share of the sample by domain. A domain without one gets its share of the population; shares are
            then scaled to add up to 1. A domain with too few items is taken whole and the rest goes to the others.
    """
    members: dict[str, list[int]] = {}
    for index, domain in enumerate(domains):
        members.setdefault(domain, []).append(index)
    members = dict(sorted(members.items()))
    population = {domain: len(indices) for domain, indices in members.items()}
    wanted = {domain: shares.get(domain, count / len(ids)) for domain, count in population.items()}
    wanted |= {domain: share for domain, share in shares.items() if domain not in wanted}
    num_samples = min(num_samples, len(ids))
    target = largest_remainder(num_samples, wanted)
    drawn = population if num_samples == len(ids) else _fill(num_samples, wanted, population)
    chosen: list[int] = []
    for domain, indices in members.items():
        chosen += sorted(indices, key=lambda i: hash_key(seed, "sample", ids[i]))[: drawn[domain]]
    return Sample(sorted(chosen), target, dict(drawn), population)


def largest_remainder(total: int, shares: Mapping[str, float]) -> dict[str, int]:
    """Split a whole number by shares so that the parts add up to it."""
    weight = sum(shares.values())
    if weight <= 0:
        return dict.fromkeys(shares, 0)
    exact = {name: total * share / weight for name, share in shares.items()}
    parts = {name: math.floor(value) for name, value in exact.items()}
    by_remainder = sorted(shares, key=lambda name: (parts[name] - exact[name], name))
    for name in by_remainder[: total - sum(parts.values())]:
        parts[name] += 1
    return parts


def _fill(num_samples: int, shares: Mapping[str, float], population: Mapping[str, int]) -> dict[str, int]:
    """Allocate by shares without exceeding any domain; domains with a share come first, then the others."""
    drawn = dict.fromkeys(population, 0)
    while (missing := num_samples - sum(drawn.values())) > 0:
        room = [d for d in population if drawn[d] < population[d]]
        open_shares = {d: shares[d] for d in room if shares[d] > 0} or {d: float(population[d]) for d in room}
        for domain, part in largest_remainder(missing, open_shares).items():
            drawn[domain] = min(population[domain], drawn[domain] + part)
    return drawn


def estimate_share(strata: Mapping[str, Stratum], settings: Estimation, seed: int, *, finite: bool = True) -> Interval:
    """Share of hits in the population, in percent, from a stratified sample.

    Design-weighted share; each side of the interval adds up the squared distances from the domains' shares to their own
    limits, weighted by population (MOVER; Zou and Donner 2008). A heavy domain with few hits keeps its skewed limits
    that way; one binomial of the same variance for all domains loses them, and its upper limit is then too low up to
    three times as often as it promises. A cluster bootstrap lets items of one recording, which resemble each other,
    count for less. A census has no sampling error.

    Args:
        finite: whether a census leaves nothing unknown; False when the hits themselves are random, as decoys are.
    """
    weights = _weights(strata)
    point = sum(weights[d] * float(s.hits.mean()) for d, s in strata.items())
    num_audited = sum(len(s.hits) for s in strata.values())
    level = settings.confidence_fraction
    if finite and all(len(s.hits) == s.population for s in strata.values()):
        return Interval(100 * point, 100 * point, 100 * point, level, "census", float(num_audited), 1.0)
    smoothed = sum(weights[d] * _smoothed(s) for d, s in strata.items())
    variance = sum(weights[d] ** 2 * _variance(s, finite) for d, s in strata.items())
    deff = design_effect(strata, settings.num_bootstrap_draws, seed)
    below = above = 0.0
    for domain, stratum in strata.items():
        share = float(stratum.hits.mean())
        lower, upper, _ = stratum_limits(stratum, settings, deff=deff, finite=finite)
        below += (weights[domain] * (share - lower)) ** 2
        above += (weights[domain] * (upper - share)) ** 2
    lower, upper = max(0.0, point - math.sqrt(below)), min(1.0, point + math.sqrt(above))
    n_eff = max(1.0, smoothed * (1 - smoothed) / variance / deff)
    return Interval(100 * point, 100 * lower, 100 * upper, level, "stratified_wilson", n_eff, deff)


def stratum_limits(
    stratum: Stratum, settings: Estimation, *, deff: float = 1.0, finite: bool = True
) -> tuple[float, float, str]:
    """Limits of the share of hits in one domain, and the method.

    Wilson, or with fewer than `settings.korn_graubard_below` hits Clopper-Pearson, on the number of independent items
    that carry as much information: more than were drawn where they are a good part of the domain (finite population),
    fewer where they resemble each other (Korn and Graubard 1998).
    """
    count, hits = len(stratum.hits), int(stratum.hits.sum())
    share, alpha = hits / count, 1 - settings.confidence_fraction
    remaining = 1 - count / stratum.population if finite else 1.0
    if remaining <= 0:
        return share, share, "census"
    n = max(1.0, count / remaining / deff)
    if hits < settings.korn_graubard_below:
        lower, upper = clopper_pearson(share * n, n, alpha)
        return min(lower, share), max(upper, share), "korn_graubard"
    return *wilson(share, n, alpha), "wilson_neff"


def wilson(share: float, n: float, alpha: float) -> tuple[float, float]:
    """Two-sided Wilson interval of a share."""
    z = float(norm.ppf(1 - alpha / 2))
    centre = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def clopper_pearson(hits: float, n: float, alpha: float) -> tuple[float, float]:
    """Two-sided Clopper-Pearson interval of a share; hits and n may be effective, that is fractional, numbers."""
    lower = 0.0 if hits <= 0 else float(beta.ppf(alpha / 2, hits, n - hits + 1))
    upper = 1.0 if hits >= n else float(beta.ppf(1 - alpha / 2, hits + 1, n - hits))
    return lower, upper


def design_effect(strata: Mapping[str, Stratum], num_draws: int, seed: int) -> float:
    """Variance of the estimate when whole groups are drawn, over that of single items; at least 1."""
    weights = _weights(strata)
    clustered = independent = 0.0
    for domain, stratum in sorted(strata.items()):
        single = weights[domain] ** 2 * _variance(stratum, finite=False)
        independent += single
        num_groups = len(set(stratum.groups))
        if 1 < num_groups < len(stratum.groups):
            spread = _bootstrap_variance(stratum, num_draws, seeded_generator(seed, "groups", domain))
            single = weights[domain] ** 2 * spread * num_groups / (num_groups - 1)
        clustered += single
    return max(1.0, clustered / independent)


def samples_needed(point_pct: float, threshold_pct: float, population: int, settings: Estimation, deff: float) -> int:
    """Size of the sample that would show, with the settings' power, on which side of a threshold the share lies.

    Raises:
        ValueError: the share is exactly the threshold, which no sample can decide.
    """
    if point_pct == threshold_pct:
        raise ValueError(f"no sample can separate {point_pct} % from the threshold {threshold_pct} %")
    null, true = threshold_pct / 100, max(point_pct, 100 / (2 * population)) / 100
    z_alpha, z_power = power_quantiles(settings)
    root = z_alpha * math.sqrt(null * (1 - null)) + z_power * math.sqrt(true * (1 - true))
    n = deff * (root / (true - null)) ** 2
    return min(population, math.ceil(n / (1 + (n - 1) / population)))


def power_quantiles(settings: Estimation) -> tuple[float, float]:
    """Normal quantiles of one side of the interval and of the power."""
    return float(norm.ppf(0.5 + settings.confidence_fraction / 2)), float(norm.ppf(settings.power_fraction))


def _weights(strata: Mapping[str, Stratum]) -> dict[str, float]:
    total = sum(stratum.population for stratum in strata.values())
    return {domain: stratum.population / total for domain, stratum in strata.items()}


def _smoothed(stratum: Stratum) -> float:
    return (float(stratum.hits.sum()) + 0.5) / (len(stratum.hits) + 1)


def _variance(stratum: Stratum, finite: bool) -> float:
    n = len(stratum.hits)
    share = _smoothed(stratum)
    remaining = 1 - n / stratum.population if finite else 1.0
    return remaining * share * (1 - share) / max(n - 1, 1)


def _bootstrap_variance(stratum: Stratum, num_draws: int, generator: np.random.Generator) -> float:
    """Variance of the share of hits when groups are drawn with replacement."""
    _, group = np.unique(np.array(stratum.groups), return_inverse=True)
    sizes = np.bincount(group).astype(np.float64)
    hits = np.bincount(group, weights=stratum.hits.astype(np.float64))
    draws = generator.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), size=num_draws)
    return float(np.var((draws @ hits) / (draws @ sizes)))
