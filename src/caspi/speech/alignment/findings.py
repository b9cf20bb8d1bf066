"""What the audit found, utterance by utterance and summed up (AUDIT sections 3 and 8)."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from caspi.config import Audit
from caspi.records import Record
from caspi.speech.alignment.calibration import Judgement, Measured
from caspi.speech.alignment.controls import DECOY, ORIGINAL
from caspi.speech.alignment.quality import FAILURES, Pair
from caspi.speech.alignment.sampling import Stratum, stratum_limits

QUANTILES = {"p10": 0.10, "p25": 0.25, "p50": 0.50, "p75": 0.75, "p90": 0.90}


class Finding(Record):
    """One audited utterance: a line of samples.jsonl and an entry of `detailed_metrics`."""

    sample_id: str
    group_id: str | None
    domain: str
    audio_duration: float
    """Seconds."""
    transcript_length: int
    """Characters."""
    words: int
    weight: float
    """Utterances of the manifest that this one stands for."""
    low_quality: bool
    reasons: list[str]
    speech_seconds: float | None = None
    snr_db: float | None = None
    alignment_coverage: float | None = None
    speech_coverage: float | None = None
    alignment_confidence: float | None = None
    model_confidence: float | None = None
    score: float | None = None
    decoy_score: float | None = None
    decoy_id: str | None = None
    """Utterance of the manifest whose transcript was the decoy."""
    mismatch_p: float | None = None
    """Conformal p-value: how often a decoy of the domain scores as high."""
    letters_per_second: float | None = None
    longest_untranscribed_s: float | None = None
    length_mismatch: bool = False
    dataset_quality_score: float | None = None
    """The corpus' own score, on its own scale."""
    error: str | None = None

    @property
    def is_failure(self) -> bool:
        return bool(FAILURES & set(self.reasons))


def judged_values(item: Measured, judgement: Judgement, domain_decoys: np.ndarray) -> dict[str, Any]:
    """The measured fields of a finding.

    Args:
        domain_decoys: utterance scores of all decoys of the domain, [num_decoys].
    """
    pair = item.pairs[ORIGINAL]
    decoy = item.pairs.get(DECOY)
    score = pair.alignment.score
    return {
        "low_quality": bool(judgement.reasons),
        "reasons": judgement.reasons,
        "alignment_coverage": judgement.measures.alignment_coverage,
        "speech_coverage": judgement.measures.speech_coverage,
        "alignment_confidence": judgement.confidence,
        "model_confidence": _model_confidence(pair),
        "score": score,
        "decoy_score": decoy.alignment.score if decoy else None,
        "mismatch_p": float((1 + np.sum(domain_decoys >= score)) / (len(domain_decoys) + 1)),
        "letters_per_second": pair.letters_per_second,
        "longest_untranscribed_s": judgement.measures.longest_untranscribed_seconds,
        "length_mismatch": judgement.is_length_mismatch,
    }


def _model_confidence(pair: Pair) -> float | None:
    """Mean confidence of the words, weighted by letters."""
    confidences = pair.alignment.word_confidences
    return None if confidences is None else float(np.average(confidences, weights=pair.letters))


def strata_of(findings: Sequence[Finding], population: Mapping[str, int]) -> dict[str, Stratum]:
    """Low quality by domain, for domains of which anything was audited."""
    strata = {}
    for domain in sorted({finding.domain for finding in findings}):
        own = [finding for finding in findings if finding.domain == domain]
        hits = np.array([finding.low_quality for finding in own])
        strata[domain] = Stratum(population[domain], hits, tuple(f.group_id or f.sample_id for f in own))
    return strata


def decoy_wins(findings: Sequence[Finding], population: Mapping[str, int]) -> dict[str, Stratum]:
    """Utterances whose decoy scores at least as high, by domain; those without a decoy score are left out."""
    compared = [f for f in findings if f.score is not None and f.decoy_score is not None]
    strata = {}
    for domain in sorted({finding.domain for finding in compared}):
        own = [finding for finding in compared if finding.domain == domain]
        hits = np.array([(f.decoy_score or 0.0) >= (f.score or 0.0) for f in own])
        strata[domain] = Stratum(population[domain], hits, tuple(f.group_id or f.sample_id for f in own))
    return strata


def distribution(
    findings: Sequence[Finding], value: Callable[[Finding], float | None], *, weighted: bool
) -> dict[str, float | None]:
    """Quantiles and mean of what could be measured; all None when nothing could."""
    measured = [(v, f.weight if weighted else 1.0) for f in findings if (v := value(f)) is not None]
    if not measured:
        return dict.fromkeys([*QUANTILES, "mean"])
    values, weights = np.array(measured).T
    result: dict[str, float | None] = {n: weighted_quantile(values, weights, q) for n, q in QUANTILES.items()}
    return result | {"mean": float(np.average(values, weights=weights))}


def weighted_quantile(values: np.ndarray, weights: np.ndarray, fraction: float) -> float:
    """Quantile by linear interpolation; with equal weights the same as numpy's default."""
    order = np.argsort(values, kind="stable")
    values, weights = values[order], weights[order]
    if len(values) == 1:
        return float(values[0])
    position = np.concatenate(([0.0], np.cumsum((weights[1:] + weights[:-1]) / 2)))
    return float(np.interp(fraction * position[-1], position, values))


def reason_counts(findings: Sequence[Finding]) -> dict[str, dict[str, int]]:
    """Per reason: how many utterances have it, and how many have no other."""
    total = Counter(reason for finding in findings for reason in finding.reasons)
    unique = Counter(finding.reasons[0] for finding in findings if len(finding.reasons) == 1)
    return {reason: {"count": count, "unique": unique[reason]} for reason, count in sorted(total.items())}


def domain_statistics(
    findings: Sequence[Finding], population: Mapping[str, int], statuses: Mapping[str, str], settings: Audit
) -> dict[str, dict[str, Any]]:
    """The guide's breakdown by domain, with interval and alert."""
    total = sum(population.values())
    rows = {}
    for domain, stratum in strata_of(findings, population).items():
        own = [finding for finding in findings if finding.domain == domain]
        share_pct = round(100 * float(stratum.hits.mean()), 6)
        interval = domain_interval(stratum, settings)
        rows[domain] = {
            "count": len(own),
            "population": stratum.population,
            "weight": stratum.population / total,
            "low_quality_count": int(stratum.hits.sum()),
            "low_quality_pct": share_pct,
            "ci": interval,
            "mean_coverage": _mean([f.alignment_coverage for f in own]),
            "median_coverage": _median([f.alignment_coverage for f in own]),
            "mean_speech_coverage": _mean([f.speech_coverage for f in own]),
            "mean_confidence": _mean([f.alignment_confidence for f in own]),
            "length_mismatch_pct": 100 * sum(f.length_mismatch for f in own) / len(own),
            "small_stratum": len(own) < settings.validity.min_domain_utterances,
            "status": statuses.get(domain, "too_small"),
            "alert": _alert(share_pct, settings),
        }
    return rows


def domain_interval(stratum: Stratum, settings: Audit) -> dict[str, Any]:
    """Share of low quality in one domain, in percent."""
    lower, upper, method = stratum_limits(stratum, settings.estimation)
    return {
        "point": round(100 * float(stratum.hits.mean()), 6),
        "lower": round(100 * lower, 6),
        "upper": round(100 * upper, 6),
        "level": settings.estimation.confidence_fraction,
        "method": method,
        "n_eff": float(len(stratum.hits)),
        "deff": 1.0,
    }


def _alert(share_pct: float, settings: Audit) -> str | None:
    if share_pct > settings.domain_alert_pct:
        return "over_20"
    return "high_risk_15" if share_pct > settings.stop_above_pct else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None
