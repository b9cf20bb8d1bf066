"""Phase 0: does the transcript match the audio?

Sample by domain, align every utterance with its own transcript and with a decoy, set the thresholds on the decoys,
judge, estimate the share of bad pairs in the manifest, decide.
"""

import gzip
import os
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from caspi.config import Audit, Recipe
from caspi.model.aligners import Description, Workers, start_workers
from caspi.model.aligners.battery import Task, plan_groups
from caspi.model.aligners.identity import aligner_sha256
from caspi.model.aligners.outcome_record import outcome_json, outcome_of, request_json
from caspi.model.aligners.self_test import self_test
from caspi.ops.audit.alignment_cache import AlignmentCache, alignment_key, open_cache
from caspi.ops.audit.alignment_report import console_block, log_to_wandb
from caspi.ops.audit.audit_page import Shown, audit_page
from caspi.ops.audit.cleaned_manifest import SummaryView, read_cleaning
from caspi.ops.audit.report_content import (
    look_line,
    look_of,
    mean_detection,
    provenance_of,
    report_of,
    with_residual,
    without_review,
)
from caspi.ops.progress import track
from caspi.ops.training.signals import exit_on_sigterm
from caspi.records import (
    ExitCode,
    Utterance,
    dump_json,
    read_manifest,
    sha256_of_file,
    write_atomically,
    write_jsonl,
)
from caspi.speech.alignment.audit_files import (
    PAGE,
    REPORT,
    SAMPLES,
    WORDS,
    read_audit,
    read_utterances,
    read_word_spans,
)
from caspi.speech.alignment.clip_details import as_json, choose_clips, details_of, slack, worst_first
from caspi.speech.alignment.controls import Transcript, plan_pairs
from caspi.speech.alignment.estimate import cross_check, estimate_population, estimate_reviewed, rounded
from caspi.speech.alignment.figures import figures_of
from caspi.speech.alignment.gold import GoldClip, gold_figures, plan_gold, read_gold
from caspi.speech.alignment.looks import at_level_of_look, look_sizes, without_controls
from caspi.speech.alignment.quality import Outcome
from caspi.speech.alignment.review import (
    GOLD_FORMAT,
    REVIEW_FORMAT,
    TAGS,
    read_labels,
    require_known,
    review_plan,
    seal,
)
from caspi.speech.alignment.sampling import draw_sample
from caspi.speech.alignment.study import Study, study_of, transcript_of

CACHE_NAME = "alignment_cache.jsonl"
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
    voices = "" if settings.embed_audio == "none" else " (carries voices; --embed-audio none leaves them out)"
    print(f"✓ To look, listen and review: {write_page(settings)}{voices}")
    if os.environ.get("WANDB_PHASE0_LOGGING", "").lower() == "true":
        log_to_wandb(report, path)
    return ExitCode.NOT_MEASURED if not report["audit_valid"] else EXIT_CODES[report["decision"]]


def measure(recipe: Recipe) -> dict[str, Any]:
    """Align a sample and report; writes samples.jsonl and word_spans.jsonl.gz."""
    started = time.monotonic()
    settings = recipe.audit
    utterances = read_manifest(settings.manifest)
    gold = read_gold(settings.gold) if settings.gold else []
    cleaning = read_cleaning(settings.manifest)
    with exit_on_sigterm(), start_workers(recipe) as workers:
        study, report = examine(utterances, workers, cleaning, recipe)
        if gold:
            report["calibration"]["gold"] = rounded(compare_with_gold(gold, study, workers, recipe))
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
    level = files.report["estimate"]["raw"]["level"]  # after several looks higher than the recipe's
    estimation = settings.estimation.model_copy(update={"confidence_fraction": level})
    settings = settings.model_copy(update={"seed": files.report["sampling"]["seed"], "estimation": estimation})
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


def write_page(settings: Audit) -> Path:
    """Write audit.html from the files of an audit, beside them.

    Raises:
        ValueError: a file is missing or damaged, or they are not of one audit.
    """
    files = read_audit(settings.output, settings.manifest)
    utterances = read_utterances(settings.manifest, files)
    choice = choose_clips(files, settings)
    words = read_word_spans(settings.output, set(choice.shown()))
    details = details_of(choice.shown(), files, utterances, words, settings)
    shown = Shown(
        details={id_: as_json(detail) for id_, detail in details.items()},
        lists=choice._asdict(),
        slack=[slack(finding, settings.quality) for finding in files.findings],
        worst_first=[finding.sample_id for finding in worst_first(files.findings, settings.quality)],
        review={
            "format": REVIEW_FORMAT,
            "tags": TAGS,
            "manifest_sha256": files.report["provenance"]["manifest_sha256"],
            "samples_sha256": files.samples_sha256,
        },
        embed_audio=settings.embed_audio,
    )
    places = shlex.join(["--manifest", str(settings.manifest), "--output", str(settings.output)])
    page = audit_page(files.report, shown, f"{files.report['provenance']['command']} {places}")
    write_atomically(settings.output / PAGE, page)
    return settings.output / PAGE


def examine(
    utterances: Sequence[Utterance], workers: Workers, cleaning: SummaryView | None, recipe: Recipe
) -> tuple[Study, dict[str, Any]]:
    """Draw the sample, align, calibrate and judge, look by look; the last study, and its report without the times."""
    settings = recipe.audit
    full_size = settings.num_samples or max(1, round(sample_rate(workers.model, settings) * len(utterances)))
    sizes = look_sizes(full_size, len(utterances), settings)
    settings = at_level_of_look(settings, len(sizes))
    transcripts = {u.id: transcript_of(u) for u in utterances}
    tested = self_test(workers, recipe)
    model = workers.model | {"model_sha256": aligner_sha256(recipe, workers.model)}
    outcomes: dict[str, Outcome] = {}
    looks: list[dict[str, Any]] = []
    ids, domains = [u.id for u in utterances], [u.domain for u in utterances]
    for number, size in enumerate(sizes, start=1):
        sample = draw_sample(ids, domains, size, settings.domain_shares, settings.seed)
        audited = [utterances[index] for index in sample.indices]
        fresh = [utterance for utterance in audited if utterance.id not in outcomes]
        tasks = plan(fresh, transcripts, settings if number == 1 else without_controls(settings))
        outcomes |= align(tasks, workers, recipe)
        study = study_of(audited, transcripts, outcomes, sample, settings)
        report = build_report(study, tested, model, cleaning, recipe, settings)
        looks.append(look_of(report, settings))
        if len(sizes) > 1:
            print(look_line(looks[-1], number, len(sizes)), file=sys.stderr, flush=True)
            report["estimate"]["looks"] = looks
        if looks[-1]["is_settled"]:
            break
    return study, report


def sample_rate(model: Description, settings: Audit) -> float:
    """A GPU aligns everything in less time than a CPU takes for a sample."""
    if settings.sample_rate is not None:
        return settings.sample_rate
    return 1.0 if model["device"] == "cuda" else settings.sample_rate_without_gpu


def plan(audited: Sequence[Utterance], transcripts: Mapping[str, Transcript], settings: Audit) -> list[Task]:
    """What to align, of utterances that have words and are not too long."""
    possible = [u for u in audited if transcripts[u.id].words and u.duration <= settings.quality.max_duration_seconds]
    planned = plan_pairs(
        [transcripts[u.id] for u in possible], list(transcripts.values()), settings.calibration, settings.seed
    )
    return [Task(u.id, u.audio_filepath, u.offset, u.duration, planned[u.id]) for u in possible]


def align(tasks: Sequence[Task], workers: Workers, recipe: Recipe) -> dict[str, Outcome]:
    """Outcomes by id; those that an earlier run has left in the output folder are not made again.

    A clip that crashed its worker is tried again by the next run, everything else is remembered.
    """
    path = recipe.audit.output / CACHE_NAME
    with open_cache(path) as cache:
        keys = task_keys(tasks, aligner_sha256(recipe, workers.model))
        done = {id_: outcome_of(id_, cache[key]) for id_, key in keys.items() if key in cache}
        missing = [[task for task in group if task.id not in done] for group in plan_groups(tasks, recipe.audit)]
        groups = [group for group in missing if group]
        if done:
            print(f"{len(done)} of {len(tasks)} clips are known from an earlier run ({path})", file=sys.stderr)
        try:
            aligned = remembering(workers.run(groups), keys, cache)
            done |= {outcome.id: outcome for outcome in track(aligned, sum(map(len, groups)), "aligning")}
        except (KeyboardInterrupt, SystemExit):
            print(f"\n{len(cache)} aligned clips are kept in {path}; the same command goes on", file=sys.stderr)
            raise
    return done


def task_keys(tasks: Sequence[Task], model_sha256: str) -> dict[str, str]:
    """Keys for the cache by id; a file that cannot be read has none."""
    hashes: dict[str, str | None] = {}
    for path in {task.audio_filepath for task in tasks}:
        try:
            hashes[path] = sha256_of_file(Path(path))
        except OSError:
            hashes[path] = None
    return {
        task.id: alignment_key(audio, request_json(task), model_sha256)
        for task in tasks
        if (audio := hashes[task.audio_filepath]) is not None
    }


def remembering(groups: Iterable[list[Outcome]], keys: Mapping[str, str], cache: AlignmentCache) -> Iterator[Outcome]:
    """Outcomes as the cache will give them back, so that an interrupted audit ends like any other."""
    for outcomes in groups:
        values = {o.id: outcome_json(o) for o in outcomes}
        cache.add_all({keys[o.id]: values[o.id] for o in outcomes if o.id in keys and not o.is_crash})
        yield from (outcome_of(id_, value) for id_, value in values.items())


def compare_with_gold(clips: Sequence[GoldClip], study: Study, workers: Workers, recipe: Recipe) -> dict[str, Any]:
    planned = plan_gold(clips, recipe.audit)
    tasks = [Task(clip.id, clip.audio_filepath, clip.offset, clip.seconds, planned[clip.id]) for clip in clips]
    outcomes = align(tasks, workers, recipe)
    return gold_figures(clips, outcomes, study.score_model, study.thresholds, recipe.audit)


def build_report(
    study: Study,
    self_test: dict[str, Any] | None,
    model: Description,
    cleaning: SummaryView | None,
    recipe: Recipe,
    settings: Audit,
) -> dict[str, Any]:
    """alignment_report.json without the times of the run.

    Args:
        model: model, device and precision of the aligner, and their hash.
        cleaning: how the manifest was cleaned, if it was.
        settings: the recipe's, at the level of confidence that a look needs.
    """
    statuses = {domain: row["status"] for domain, row in study.validity.by_domain.items()}
    figures = figures_of(study, settings)
    figures["calibration"]["self_test"] = self_test
    figures |= estimate_population(study.findings, study.sample.population, statuses, settings)
    figures |= {"review": None, "provenance": provenance_of(recipe, model)}
    return report_of(rounded(with_residual(figures, cleaning, settings.backend)), settings)
