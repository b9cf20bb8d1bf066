"""The figures of alignment_report.json that follow from a study alone (AUDIT section 8)."""

from typing import Any

from caspi.config import Audit
from caspi.speech.alignment import findings as found
from caspi.speech.alignment.references import quality_score_correlation
from caspi.speech.alignment.study import Study


def figures_of(study: Study, settings: Audit) -> dict[str, Any]:
    """Counts, distributions, calibration and sampling; no estimate and no decision."""
    rows = study.findings
    num_low = sum(finding.low_quality for finding in rows)
    seconds = sum(f.weight * f.audio_duration for f in rows)
    low_seconds = sum(f.weight * f.audio_duration for f in rows if f.low_quality)
    return {
        "audit_valid": study.validity.status != "invalid",
        "audit_status": study.validity.status,
        "sample_low_quality_percentage": 100 * num_low / len(rows),
        "low_quality_duration_percentage": 100 * low_seconds / seconds,
        "total_samples": len(rows),
        "low_quality_count": num_low,
        "failed_count": sum(finding.is_failure for finding in rows),
        "coverage_distribution": found.distribution(rows, lambda f: f.alignment_coverage, weighted=True),
        "sample_coverage_distribution": found.distribution(rows, lambda f: f.alignment_coverage, weighted=False),
        "speech_coverage_distribution": found.distribution(rows, lambda f: f.speech_coverage, weighted=True),
        "confidence_distribution": found.distribution(rows, lambda f: f.alignment_confidence, weighted=True),
        "reasons": found.reason_counts(rows),
        "calibration": _calibration(study, settings),
        "sampling": _sampling(study, settings),
        "detailed_metrics": [finding.model_dump(mode="json") for finding in rows],
    }


def _calibration(study: Study, settings: Audit) -> dict[str, Any]:
    validity, thresholds, apart = study.validity, study.thresholds, study.validity.separation
    return {
        "status": validity.status,
        "checks": [check._asdict() for check in validity.checks],
        "separable_mass": apart.separable_mass if apart else None,
        "auc": {"point": apart.auc, "lower": apart.auc_lower, "upper": apart.auc_upper} if apart else None,
        "far": {
            "accepted": validity.num_accepted_decoys,
            "n": validity.num_decoys,
            "upper95": validity.false_acceptance_upper,
        },
        "alpha_word": thresholds.alpha_word if thresholds else None,
        "thresholds": thresholds.as_json() if thresholds else {},
        "folds_by": "recording" if study.folds_by_recording else "utterance",
        "limits": settings.quality.model_dump(mode="json"),
        "controls": validity.controls,
        "dose_response": validity.dose_response,
        "feature_auc": study.feature_auc,
        "score_model": study.score_model.as_json() if study.score_model else None,
        "segment_times": study.segment_times,
        "dataset_quality_score": quality_score_correlation(study.findings),
        "gold": None,
        "by_domain": validity.by_domain,
    }


def _sampling(study: Study, settings: Audit) -> dict[str, Any]:
    sample = study.sample
    return {
        "seed": settings.seed,
        "rate": len(study.findings) / sum(sample.population.values()),
        "target": sample.target,
        "strata": {d: {"population": size, "drawn": sample.drawn[d]} for d, size in sample.population.items()},
        "redistributed": sample.redistributed,
    }
