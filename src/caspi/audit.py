"""Phase 0: does the transcript match the audio?

Sample by domain, align every utterance with its own transcript and with a decoy, set the thresholds on the decoys,
judge, estimate the share of bad pairs in the manifest, decide.
"""

import gzip
import os
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.progress import track

from caspi.config import Recipe
from caspi.model.aligners import Aligner, build_aligner
from caspi.model.aligners.battery import Task, run_tasks
from caspi.model.aligners.self_test import self_test
from caspi.ops.audit.alignment_report import console_block, log_to_wandb
from caspi.ops.audit.report_content import mean_detection, provenance_of, report_of, without_review
from caspi.records import ExitCode, Utterance, dump_json, read_manifest, write_atomically, write_jsonl
from caspi.speech.alignment.audit_files import REPORT, SAMPLES, WORDS, read_audit
from caspi.speech.alignment.controls import Transcript, plan_pairs
from caspi.speech.alignment.estimate import cross_check, estimate_population, estimate_reviewed, rounded
from caspi.speech.alignment.figures import figures_of
from caspi.speech.alignment.review import GOLD_FORMAT, REVIEW_FORMAT, read_labels, require_known, review_plan, seal
from caspi.speech.alignment.sampling import draw_sample
from caspi.speech.alignment.study import Outcome, Study, study_of, transcript_of

EXIT_CODES = {"PROCEED": ExitCode.DONE, "CAUTION": ExitCode.DONE, "STOP": ExitCode.NO}


def run(recipe: Recipe) -> int:
    """Audit a manifest, or decide again once clips were reviewed; write the report and print it.

    Exit code: 0 proceed or caution, 1 stop, 3 audit invalid.

    Raises:
        ValueError: the manifest or the labels cannot be read, or the backend cannot be loaded.
    """
    settings = recipe.audit
    report = review(recipe) if settings.labels or settings.gold_labels else measure(recipe)
    path = settings.output / REPORT
    write_atomically(path, dump_json(report, indent=1) + "\n")
    print(console_block(report, path))
    if os.environ.get("WANDB_PHASE0_LOGGING", "").lower() == "true":
        log_to_wandb(report, path)
    return ExitCode.NOT_MEASURED if not report["audit_valid"] else EXIT_CODES[report["decision"]]


def measure(recipe: Recipe) -> dict[str, Any]:
    """Align a sample and report; writes samples.jsonl and word_spans.jsonl.gz."""
    started = time.monotonic()
    settings = recipe.audit
    utterances = read_manifest(settings.manifest)
    model = describe(build_aligner(recipe))
    study = examine(utterances, recipe)
    report = build_report(study, model, recipe)
    report["provenance"] |= {
        "created_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "wall_seconds": round(time.monotonic() - started, 1),
    }
    write_jsonl(settings.output / SAMPLES, study.findings)
    spans = "".join(f"{dump_json(rounded(line))}\n" for line in study.words)
    write_atomically(settings.output / WORDS, gzip.compress(spans.encode(), mtime=0))
    return report


def review(recipe: Recipe) -> dict[str, Any]:
    """The report of an earlier audit with the estimate from what people heard; nothing is aligned."""
    settings = recipe.audit
    files = read_audit(settings.output, settings.manifest)
    settings = settings.model_copy(update={"seed": files.report["sampling"]["seed"]})
    hashes = files.report["provenance"]["manifest_sha256"], files.samples_sha256
    figures = without_review(files.report)
    if settings.labels:
        labels = read_labels(settings.labels, REVIEW_FORMAT, *hashes)
        plan = review_plan(files.findings, files.population, settings.review, settings.seed)
        require_known(settings.labels, labels, plan, "in the review sample of this audit")
        figures |= estimate_reviewed(files.findings, figures, files.population, labels, settings)
        figures["review"]["labels_sha256"] = seal(labels)
    if settings.gold_labels:
        gold = read_labels(settings.gold_labels, GOLD_FORMAT, *hashes)
        require_known(settings.gold_labels, gold, {f.sample_id: f for f in files.findings}, "audited")
        detection = mean_detection(figures["calibration"])
        figures["estimate"] = cross_check(files.findings, figures["estimate"], gold, detection, settings)
    return report_of(rounded(figures), settings)


def examine(utterances: Sequence[Utterance], recipe: Recipe) -> Study:
    """Draw the sample, align, calibrate and judge."""
    settings = recipe.audit
    num_samples = settings.num_samples or max(1, round(settings.sample_rate * len(utterances)))
    sample = draw_sample(
        [u.id for u in utterances], [u.domain for u in utterances], num_samples, settings.domain_shares, settings.seed
    )
    audited = [utterances[index] for index in sample.indices]
    transcripts = {u.id: transcript_of(u) for u in utterances}
    outcomes = align(audited, transcripts, recipe)
    return study_of(audited, transcripts, outcomes, sample, settings)


def describe(aligner: Aligner) -> dict[str, str]:
    return {"model_id": aligner.model_id, "device": aligner.device, "dtype": aligner.dtype}


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


def build_report(study: Study, model: Mapping[str, str], recipe: Recipe) -> dict[str, Any]:
    """alignment_report.json without the times of the run.

    Args:
        model: model, device and precision of the aligner.
    """
    settings = recipe.audit
    statuses = {domain: row["status"] for domain, row in study.validity.by_domain.items()}
    figures = figures_of(study, settings)
    figures["calibration"]["self_test"] = self_test(recipe)
    figures |= estimate_population(study.findings, study.sample.population, statuses, settings)
    figures |= {"review": None, "provenance": provenance_of(recipe, model)}
    return report_of(rounded(figures), settings)
