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
from caspi.ops.audit.report_content import provenance_of, report_of
from caspi.records import ExitCode, Utterance, dump_json, read_manifest, write_atomically, write_jsonl
from caspi.speech.alignment.controls import Transcript, plan_pairs
from caspi.speech.alignment.estimate import estimate_population, rounded
from caspi.speech.alignment.figures import figures_of
from caspi.speech.alignment.sampling import draw_sample
from caspi.speech.alignment.study import Outcome, Study, study_of, transcript_of

EXIT_CODES = {"PROCEED": ExitCode.DONE, "CAUTION": ExitCode.DONE, "STOP": ExitCode.NO}


def run(recipe: Recipe) -> int:
    """Audit a manifest, write the report, print it. Exit code: 0 proceed or caution, 1 stop, 3 audit invalid.

    Raises:
        ValueError: the manifest cannot be read or the backend cannot be loaded.
    """
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
