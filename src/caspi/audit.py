"""Phase 0: does the transcript match the audio?

Sample by domain, align every utterance with its own transcript and with a decoy, set the thresholds on the decoys,
judge, estimate the share of bad pairs in the manifest, decide.
"""

import gzip
import hashlib
import logging
import os
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import track

from caspi.config import Audit, Recipe
from caspi.model.aligners import Aligner, build_aligner
from caspi.model.aligners.battery import Outcome, Task, run_tasks
from caspi.model.aligners.self_test import self_test
from caspi.ops.audit.alignment_report import SCHEMA_VERSION, console_block, log_to_wandb, recommendation
from caspi.ops.audit.decision import Evidence, Verdict, decide
from caspi.records import ExitCode, Utterance, dump_json, read_manifest, sha256_of_file, write_atomically, write_jsonl
from caspi.speech.alignment import findings as found
from caspi.speech.alignment.calibration import (
    Judgement,
    Measured,
    Thresholds,
    control_scores,
    fit_thresholds,
    fold_of,
    judge,
)
from caspi.speech.alignment.controls import DECOY, ORIGINAL, Transcript, plan_pairs
from caspi.speech.alignment.estimate import ROUND_DIGITS, estimate_population, rounded
from caspi.speech.alignment.findings import Finding
from caspi.speech.alignment.sampling import Sample, draw_sample
from caspi.speech.alignment.validity import Validity, assess
from caspi.speech.text import alignment_words, num_letters

EXIT_CODES = {"PROCEED": ExitCode.DONE, "CAUTION": ExitCode.DONE, "STOP": ExitCode.NO}

log = logging.getLogger(__name__)


class Study(NamedTuple):
    """Everything the report is made of."""

    model: dict[str, str]
    """Model, device and precision of the aligner."""
    sample: Sample
    thresholds: Thresholds | None
    validity: Validity
    findings: list[Finding]
    self_test: dict[str, Any] | None
    words: list[dict[str, Any]]
    """Lines of word_spans.jsonl.gz."""


def run(recipe: Recipe) -> int:
    """Audit a manifest, write the report, print it. Exit code: 0 proceed or caution, 1 stop, 3 audit invalid.

    Raises:
        ValueError: the manifest cannot be read or the backend cannot be loaded.
    """
    started = time.monotonic()
    settings = recipe.audit
    utterances = read_manifest(settings.manifest)
    study = examine(utterances, recipe)
    report = build_report(study, recipe)
    report["provenance"] |= {
        "created_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "wall_seconds": round(time.monotonic() - started, 1),
    }
    path = settings.output / "alignment_report.json"
    write_jsonl(settings.output / "samples.jsonl", study.findings)
    spans = "".join(f"{dump_json(rounded(line))}\n" for line in study.words)
    write_atomically(settings.output / "word_spans.jsonl.gz", gzip.compress(spans.encode(), mtime=0))
    write_atomically(path, dump_json(report, indent=1) + "\n")
    print(console_block(report, path))
    if os.environ.get("WANDB_PHASE0_LOGGING", "").lower() == "true":
        log_to_wandb(report, path)
    return ExitCode.NOT_MEASURED if not report["audit_valid"] else EXIT_CODES[report["decision"]]


def examine(utterances: Sequence[Utterance], recipe: Recipe) -> Study:
    """Draw the sample, align, calibrate and judge."""
    settings = recipe.audit
    model = describe(build_aligner(recipe))
    num_samples = settings.num_samples or max(1, round(settings.sample_rate * len(utterances)))
    sample = draw_sample(
        [u.id for u in utterances], [u.domain for u in utterances], num_samples, settings.domain_shares, settings.seed
    )
    audited = [utterances[index] for index in sample.indices]
    transcripts = {u.id: transcript_of(u) for u in utterances}
    outcomes = align(audited, transcripts, recipe)
    measured = [
        Measured(u.id, u.domain, fold_of(u.group_id or u.id, settings.seed), outcomes[u.id].pairs)
        for u in audited
        if u.id in outcomes and ORIGINAL in outcomes[u.id].pairs
    ]
    thresholds = fit_thresholds(measured, settings) if any(item.is_paired for item in measured) else None
    judged = {i.id: judge(i, ORIGINAL, thresholds, settings) for i in measured} if thresholds else {}
    values = judged_by_id(measured, judged)
    findings = [
        finding_of(u, len(transcripts[u.id].words), outcomes.get(u.id), values.get(u.id), sample, settings)
        for u in audited
    ]
    num_failed = sum(finding.is_failure for finding in findings)
    validity = assess(measured, thresholds, num_failed, len(findings), settings)
    if validity.status == "invalid":
        findings = [finding.model_copy(update={"alignment_confidence": None}) for finding in findings]
    words = [word_line(u, outcomes[u.id], judged[u.id]) for u in audited if u.id in judged]
    return Study(model, sample, thresholds, validity, findings, self_test(recipe), words)


def describe(aligner: Aligner) -> dict[str, str]:
    return {"model_id": aligner.model_id, "device": aligner.device, "dtype": aligner.dtype}


def transcript_of(utterance: Utterance) -> Transcript:
    words = tuple(word.text for word in alignment_words(utterance.text))
    letters = sum(num_letters(word) for word in words)
    return Transcript(utterance.id, utterance.domain, utterance.source, words, letters)


def align(audited: Sequence[Utterance], transcripts: Mapping[str, Transcript], recipe: Recipe) -> dict[str, Outcome]:
    """Outcomes by id, for utterances that have words and are not too long."""
    settings = recipe.audit
    possible = [u for u in audited if transcripts[u.id].words and u.duration <= settings.quality.max_duration_seconds]
    planned = plan_pairs(
        [transcripts[u.id] for u in possible], list(transcripts.values()), settings.calibration, settings.seed
    )
    tasks = [Task(u.id, u.audio_filepath, u.offset, u.duration, planned[u.id]) for u in possible]
    progress = Console(stderr=True)
    outcomes = track(
        run_tasks(tasks, recipe), "aligning", len(tasks), console=progress, disable=not progress.is_terminal
    )
    return {outcome.id: outcome for outcome in outcomes}


def judged_by_id(measured: Sequence[Measured], judged: Mapping[str, Judgement]) -> dict[str, dict[str, Any]]:
    """Measured fields of the findings."""
    domains = {item.domain for item in measured}
    decoys = {d: control_scores([item for item in measured if item.domain == d], DECOY) for d in domains}
    return {i.id: found.judged_values(i, judged[i.id], decoys[i.domain]) for i in measured if i.id in judged}


def finding_of(
    utterance: Utterance,
    num_words: int,
    outcome: Outcome | None,
    values: dict[str, Any] | None,
    sample: Sample,
    settings: Audit,
) -> Finding:
    """One audited utterance; whatever could not be measured is low quality for a reason that says so."""
    reason, error = None, None
    if num_words == 0:
        reason, error = "EMPTY_TRANSCRIPT", "the transcript has no word"
    elif utterance.duration > settings.quality.max_duration_seconds:
        limit = settings.quality.max_duration_seconds
        reason, error = "TOO_LONG", f"{utterance.duration:.1f} s, the aligner takes at most {limit:g} s"
    elif outcome is None or outcome.audio_error is not None:
        reason, error = "AUDIO_ERROR", outcome.audio_error if outcome else "not reached"
    elif values is None:
        reason, error = "ALIGN_ERROR", outcome.failures.get(ORIGINAL, "there is no decoy to calibrate against")
    failed = {"low_quality": True, "reasons": [reason], "error": error}
    domain = utterance.domain
    return Finding(
        sample_id=utterance.id,
        group_id=utterance.group_id,
        domain=domain,
        audio_duration=round(utterance.duration, ROUND_DIGITS),
        transcript_length=len(utterance.text),
        words=num_words,
        weight=round(sample.population[domain] / sample.drawn[domain], ROUND_DIGITS),
        speech_seconds=rounded(outcome.speech_seconds) if outcome else None,
        snr_db=rounded(outcome.snr_db) if outcome else None,
        **(failed if values is None else rounded(values)),
    )


def word_line(utterance: Utterance, outcome: Outcome, judgement: Judgement) -> dict[str, Any]:
    alignment = outcome.pairs[ORIGINAL].alignment
    words = [
        {
            "w": word.text,
            "char": [word.start, word.end],
            "s": span[0] if span else None,
            "e": span[1] if span else None,
            "score": score,
            "aligned": bool(accepted),
        }
        for word, span, score, accepted in zip(
            alignment_words(utterance.text),
            alignment.spans,
            alignment.word_scores,
            judgement.measures.accepted,
            strict=True,
        )
    ]
    return {"id": utterance.id, "words": words}


def decide_on(study: Study, estimated: Mapping[str, Any], settings: Audit) -> Verdict:
    estimates, rows = estimated["estimate"], estimated["domain_statistics"]
    gross = estimates["gross_mismatch"]
    evidence = Evidence(
        status=study.validity.status,
        low_quality_pct=estimates["raw"]["point"],
        lower_pct=estimates["raw"]["lower"],
        upper_pct=estimates["upper_with_unjudged_domains"],
        gross_mismatch_upper_pct=gross["upper"] if gross else 100.0,
        alarming_domains=tuple(d for d, row in rows.items() if row["ci"]["lower"] > settings.domain_alert_pct),
        samples_needed=estimates["samples_needed_for_decision"],
    )
    return decide(evidence, settings)


def build_report(study: Study, recipe: Recipe) -> dict[str, Any]:
    """alignment_report.json without the times of the run."""
    settings = recipe.audit
    rows = study.findings
    statuses = {domain: row["status"] for domain, row in study.validity.by_domain.items()}
    estimated = rounded(estimate_population(rows, study.sample.population, statuses, settings))
    verdict = decide_on(study, estimated, settings)
    num_low = sum(finding.low_quality for finding in rows)
    seconds = sum(f.weight * f.audio_duration for f in rows)
    low_seconds = sum(f.weight * f.audio_duration for f in rows if f.low_quality)
    report = {
        "schema_version": SCHEMA_VERSION,
        "decision": verdict.decision,
        "decision_code": verdict.code,
        "decision_notes": verdict.notes,
        "certainty": verdict.certainty,
        "audit_valid": study.validity.status != "invalid",
        "audit_status": study.validity.status,
        "low_quality_percentage": estimated["estimate"]["raw"]["point"],
        "sample_low_quality_percentage": 100 * num_low / len(rows),
        "low_quality_duration_percentage": 100 * low_seconds / seconds,
        "total_samples": len(rows),
        "low_quality_count": num_low,
        "failed_count": sum(finding.is_failure for finding in rows),
        **estimated,
        "coverage_distribution": found.distribution(rows, lambda f: f.alignment_coverage, weighted=True),
        "sample_coverage_distribution": found.distribution(rows, lambda f: f.alignment_coverage, weighted=False),
        "speech_coverage_distribution": found.distribution(rows, lambda f: f.speech_coverage, weighted=True),
        "confidence_distribution": found.distribution(rows, lambda f: f.alignment_confidence, weighted=True),
        "reasons": found.reason_counts(rows),
        "calibration": calibration_of(study, settings),
        "sampling": {
            "seed": settings.seed,
            "rate": len(rows) / sum(study.sample.population.values()),
            "target": study.sample.target,
            "strata": {
                domain: {"population": size, "drawn": study.sample.drawn[domain]}
                for domain, size in study.sample.population.items()
            },
            "redistributed": study.sample.redistributed,
        },
        "review": None,
        "provenance": provenance_of(study, recipe),
        "detailed_metrics": [finding.model_dump(mode="json") for finding in rows],
    }
    report = rounded(report)
    text = recommendation(report, settings.proceed_below_pct, settings.stop_above_pct)
    return {**report, "recommendation": text}


def calibration_of(study: Study, settings: Audit) -> dict[str, Any]:
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
        "limits": settings.quality.model_dump(mode="json"),
        "controls": validity.controls,
        "dose_response": validity.dose_response,
        "feature_auc": {},
        "gold": None,
        "self_test": study.self_test,
        "by_domain": validity.by_domain,
    }


def provenance_of(study: Study, recipe: Recipe) -> dict[str, Any]:
    """What went in. Paths and the number of processes do not change the result and are not part of the hash."""
    settings = recipe.audit
    decisive = {
        "language": recipe.language.model_dump(mode="json"),
        "audit": settings.model_dump(mode="json", exclude={"manifest", "output", "num_processes"}),
    }
    return {
        "caspi_version": version("caspi"),
        "manifest_sha256": sha256_of_file(settings.manifest),
        "config_sha256": hashlib.sha256(dump_json(decisive).encode()).hexdigest(),
        "backend": settings.backend,
        **study.model,
        "model_revision": None,
    }
