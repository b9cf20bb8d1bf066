"""Can this audit speak at all? Does the aligner tell right transcripts from wrong ones (AUDIT section 4)?"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from caspi.config import Audit
from caspi.config import Validity as ValidityLimits
from caspi.speech.alignment.calibration import Measured, Thresholds, control_scores, judge
from caspi.speech.alignment.controls import DECOY, DEFECTS, DOSE, HARMLESS, ORIGINAL, REVERSED, dose_control
from caspi.speech.alignment.sampling import clopper_pearson
from caspi.speech.seeds import seeded_generator

Status = Literal["valid", "degraded", "invalid", "too_small"]
BLOCK_DRAWS = 100
Z_ONE_SIDED_95 = 1.645
FALSE_ACCEPTANCE_ALPHA = 0.10
"""Two-sided level whose upper end is the one-sided 95 % bound."""


class Check(NamedTuple):
    """One demand on the audit itself."""

    name: str
    value: float | None
    """None: it could not be measured, which does not pass."""
    limit: float
    passed: bool
    consequence: Literal["degraded", "invalid"]


class Separation(NamedTuple):
    """How far originals stand above their decoys."""

    num_pairs: int
    separable_mass: float
    """Share of originals above the 99th percentile of decoys."""
    auc: float
    auc_lower: float
    auc_upper: float


def separation(measured: Sequence[Measured], num_draws: int, seed: int) -> Separation | None:
    """None without any pair."""
    paired = [item for item in measured if item.is_paired]
    if not paired:
        return None
    matched, wrong = control_scores(paired, ORIGINAL), control_scores(paired, DECOY)
    draws = bootstrap_auc(matched, wrong, num_draws, seeded_generator(seed, "auc"))
    lower, upper = np.quantile(draws, (0.05, 0.95)).tolist()
    mass = float(np.mean(matched > np.quantile(wrong, 0.99)))
    return Separation(len(paired), mass, auc(matched, wrong), lower, upper)


def auc(matched: NDArray[np.float64], wrong: NDArray[np.float64]) -> float:
    """Probability that a matched pair scores above a wrong one; ties count half."""
    ranks = rankdata(np.concatenate([matched, wrong]))[: len(matched)]
    return float((ranks.sum() / len(matched) - (len(matched) + 1) / 2) / len(wrong))


def bootstrap_auc(
    matched: NDArray[np.float64], wrong: NDArray[np.float64], num_draws: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """AUC over utterances drawn with replacement, an original together with its decoy; [num_draws]."""
    count = len(matched)
    order = np.argsort(wrong, kind="stable")
    below = np.searchsorted(wrong[order], matched, side="left")
    not_above = np.searchsorted(wrong[order], matched, side="right")
    values = []
    for start in range(0, num_draws, BLOCK_DRAWS):
        size = (min(BLOCK_DRAWS, num_draws - start),)
        weights = generator.multinomial(count, np.full(count, 1 / count), size=size)
        cumulative = np.pad(np.cumsum(weights[:, order], axis=1), ((0, 0), (1, 0)))
        wins = (cumulative[:, below] + cumulative[:, not_above]) / 2
        values.append((weights * wins).sum(axis=1) / count**2)
    return np.concatenate(values)


def control_table(
    measured: Sequence[Measured], thresholds: Thresholds, settings: Audit
) -> dict[str, dict[str, float | int | None]]:
    """Per control: number of pairs, share flagged, AUC of originals against it, mean coverage."""
    originals = control_scores(measured, ORIGINAL)
    controls = sorted({control for item in measured for control in item.pairs})
    table: dict[str, dict[str, float | int | None]] = {}
    for control in controls:
        judged = [judge(item, control, thresholds, settings) for item in measured if control in item.pairs]
        table[control] = {
            "n": len(judged),
            "flagged": float(np.mean([bool(judgement.reasons) for judgement in judged])),
            "auc": auc(originals, control_scores(measured, control)) if len(originals) else None,
            "mean_coverage": float(np.mean([judgement.measures.alignment_coverage for judgement in judged])),
        }
    return table


def harmless_rise(measured: Sequence[Measured], thresholds: Thresholds, settings: Audit) -> float | None:
    """Rise of the flagged share under changes of the audio that leave the transcript right.

    The lower one-sided 95 % bound of the paired mean: a handful of controls must not degrade an audit by chance.
    """
    changes = [
        bool(judge(item, control, thresholds, settings).reasons)
        - bool(judge(item, ORIGINAL, thresholds, settings).reasons)
        for item in measured
        for control in HARMLESS
        if control in item.pairs and ORIGINAL in item.pairs
    ]
    if not changes:
        return None
    return float(np.mean(changes) - Z_ONE_SIDED_95 * np.std(changes) / np.sqrt(len(changes)))


def dose_response(table: Mapping[str, Mapping[str, Any]], levels: Sequence[float]) -> tuple[list[Any], float | None]:
    """Mean coverage by share of foreign words, and the rank correlation of the two."""
    curve = [
        {"level": level, "mean_coverage": table[dose_control(level)]["mean_coverage"]}
        for level in levels
        if dose_control(level) in table
    ]
    coverage = [point["mean_coverage"] for point in curve]
    if len(set(coverage)) < 2:
        return curve, None
    ranks = rankdata(coverage), rankdata([point["level"] for point in curve])
    return curve, float(np.corrcoef(*ranks)[0, 1])


class Validity(NamedTuple):
    status: Status
    checks: list[Check]
    separation: Separation | None
    by_domain: dict[str, dict[str, Any]]
    controls: dict[str, dict[str, float | int | None]]
    dose_response: list[Any]
    num_accepted_decoys: int
    num_decoys: int
    false_acceptance_upper: float


def assess(
    measured: Sequence[Measured], thresholds: Thresholds | None, num_failed: int, num_audited: int, settings: Audit
) -> Validity:
    """Judge the audit itself; without thresholds (nothing could be aligned) it is invalid.

    Args:
        num_failed: audited utterances without a measurement because audio or alignment failed.
    """
    paired = [item for item in measured if item.is_paired]
    apart = separation(paired, settings.validity.num_bootstrap_draws, settings.seed)
    table: dict[str, dict[str, float | int | None]] = {}
    accepted, rise = 0, None
    if thresholds is not None:
        table = control_table(paired, thresholds, settings)
        accepted = sum(not judge(item, DECOY, thresholds, settings).reasons for item in paired)
        rise = harmless_rise(paired, thresholds, settings)
    curve, correlation = dose_response(table, settings.calibration.dose_levels)
    detection = [float(table[control]["flagged"] or 0) for control in DEFECTS if control in table]
    upper = clopper_pearson(accepted, len(paired), FALSE_ACCEPTANCE_ALPHA)[1] if paired else 1.0
    limits, demands = settings.validity, settings.calibration
    mass = apart.separable_mass if apart else None
    acceptance = accepted / len(paired) if paired else None
    checks = [
        *_reversed_checks(paired, limits),
        _at_least("num_utterances", len(paired), limits.min_domain_utterances, "invalid"),
        _at_least("separable_mass", mass, limits.min_degraded_separable_mass, "invalid"),
        _at_most("false_acceptance", acceptance, limits.max_false_acceptance_upper_bound, "invalid"),
        _at_most("failed_fraction", num_failed / max(num_audited, 1), limits.max_failed_fraction, "invalid"),
        _at_least("separable_mass_full", mass, limits.min_separable_mass, "degraded"),
        _at_least("auc_lower_bound", apart.auc_lower if apart else None, limits.min_auc_lower_bound, "degraded"),
        _at_most("false_acceptance_upper_bound", upper, limits.max_false_acceptance_upper_bound, "degraded"),
        _at_least(
            "mean_detection", float(np.mean(detection)) if detection else None, demands.min_mean_detection, "degraded"
        ),
        _at_most("dose_correlation", correlation, demands.max_dose_correlation, "degraded"),
        _at_most("harmless_rise_lower_bound", rise, demands.max_harmless_rise, "degraded"),
    ]
    return Validity(
        status=overall_status(checks),
        checks=checks,
        separation=apart,
        by_domain=_by_domain(measured, settings),
        controls={c: row for c, row in table.items() if c != ORIGINAL and not c.startswith(DOSE)},
        dose_response=curve,
        num_accepted_decoys=accepted,
        num_decoys=len(paired),
        false_acceptance_upper=upper,
    )


def _reversed_checks(paired: Sequence[Measured], limits: ValidityLimits) -> list[Check]:
    """Is it the sound that separates? Reversed audio keeps text, length and loudness and holds no word.

    Left out where too few reversed pairs were aligned to say anything.
    """
    both = [item for item in paired if REVERSED in item.pairs]
    if len(both) < limits.min_domain_utterances:
        return []
    value = auc(control_scores(both, ORIGINAL), control_scores(both, REVERSED))
    return [_at_least("reversed_auc", value, limits.min_reversed_auc, "invalid")]


def overall_status(checks: Sequence[Check]) -> Status:
    failed = {check.consequence for check in checks if not check.passed}
    return "invalid" if "invalid" in failed else "degraded" if failed else "valid"


def _by_domain(measured: Sequence[Measured], settings: Audit) -> dict[str, dict[str, Any]]:
    counts = Counter(item.domain for item in measured if item.is_paired)
    rows = {}
    for domain, count in sorted(counts.items()):
        items = [item for item in measured if item.domain == domain]
        apart = separation(items, settings.validity.num_bootstrap_draws, settings.seed)
        assert apart is not None
        rows[domain] = {"n": count, "status": _domain_status(apart, settings), **apart._asdict()}
    return rows


def _domain_status(apart: Separation, settings: Audit) -> Status:
    limits = settings.validity
    if apart.num_pairs < limits.min_domain_utterances:
        return "too_small"
    if apart.separable_mass < limits.min_degraded_separable_mass:
        return "invalid"
    return "degraded" if apart.separable_mass < limits.min_separable_mass else "valid"


def _at_least(name: str, value: float | None, limit: float, consequence: Literal["degraded", "invalid"]) -> Check:
    return Check(name, value, limit, value is not None and value >= limit, consequence)


def _at_most(name: str, value: float | None, limit: float, consequence: Literal["degraded", "invalid"]) -> Check:
    return Check(name, value, limit, value is not None and value <= limit, consequence)
