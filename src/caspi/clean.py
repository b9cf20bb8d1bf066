"""After the audit: judge every utterance with the audit's thresholds; keep, cut, show to a person, or leave out.

The pass can be killed at any time: what was aligned is remembered, and the same command goes on and ends with the same
bytes. What was cut is aligned and judged again, and enters only if it passes.
"""

import hashlib
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from caspi.audit import CACHE_NAME, remembering
from caspi.config import Clean, Recipe
from caspi.model.aligners import Description, Workers, start_workers
from caspi.model.aligners.battery import Task, plan_groups
from caspi.model.aligners.identity import aligner_sha256
from caspi.model.aligners.outcome_record import outcome_of, request_json
from caspi.ops.audit.alignment_cache import AlignmentCache, alignment_key, open_cache
from caspi.ops.audit.cleaned_manifest import CLEANED, DROPPED, REVIEW, SUMMARY
from caspi.ops.audit.cleaning_summary import Account, console_block, microseconds, summary_of
from caspi.ops.progress import track
from caspi.ops.training.signals import exit_on_sigterm
from caspi.prepare import manifest_path
from caspi.records import (
    Action,
    CleanedUtterance,
    ExitCode,
    Utterance,
    dump_json,
    is_cleaned,
    read_manifest,
    sha256_of_file,
    write_atomically,
    write_json,
)
from caspi.speech.alignment.actions import Choice, Clip, Lengths, choose, not_alignable
from caspi.speech.alignment.calibration import Measured, fold_of, judge
from caspi.speech.alignment.cleaned_lines import cut_out, lines_of
from caspi.speech.alignment.controls import ORIGINAL, Transcript, plan_pairs
from caspi.speech.alignment.estimate import rounded
from caspi.speech.alignment.frozen_audit import FrozenAudit, read_frozen
from caspi.speech.alignment.learned_score import rescored
from caspi.speech.alignment.quality import Outcome
from caspi.speech.alignment.residual import estimate_residual
from caspi.speech.alignment.study import transcript_of
from caspi.speech.corpora.audio import load_audio
from caspi.speech.corpora.audio_hashes import hash_audio

FILES = {"drop": DROPPED, "review": REVIEW}
"""Where a line goes by its action; all others are kept."""
PLACES = {"manifest", "report", "output", "num_processes"}
"""Settings that change where and how fast, not what comes out."""


class Planned(NamedTuple):
    """An utterance of the manifest after the full pass."""

    clip: Clip
    """Without its pair, which is large."""
    choice: Choice


class Aligned(NamedTuple):
    """Outcomes by utterance id, read from the cache one at a time: a large manifest does not fit into memory."""

    cache: AlignmentCache
    keys: dict[str, str]
    others: dict[str, Outcome]
    """What the cache does not keep: crashes, and audio that cannot be read."""

    def outcome(self, utterance_id: str) -> Outcome | None:
        """None: it was not aligned."""
        if utterance_id in self.others:
            return self.others[utterance_id]
        key = self.keys.get(utterance_id)
        return None if key is None else outcome_of(utterance_id, self.cache[key])


class Cleaning(NamedTuple):
    """What all parts of a cleaning share."""

    recipe: Recipe
    """With the language and the audit settings of the report."""
    frozen: FrozenAudit
    workers: Workers
    model_sha256: str
    cache: AlignmentCache
    hashes: dict[str, str]
    """Hash of the bytes by path of an audio file; files that cannot be read are not in it."""

    @property
    def settings(self) -> Clean:
        return self.recipe.clean

    @property
    def lengths(self) -> Lengths:
        return Lengths(self.recipe.prepare.min_duration_seconds, self.recipe.prepare.max_duration_seconds)


def run(recipe: Recipe) -> int:
    """Write cleaned.jsonl, dropped.jsonl, review.jsonl and cleaning_summary.json; print the hours.

    Returns:
        0, or 1 if no utterance passed (then there is no cleaned.jsonl).

    Raises:
        ValueError: manifest or report cannot be used, or do not belong together.
        RunFailed: an alignment worker died.
    """
    settings = recipe.clean
    refuse_wrong_manifest(settings)
    frozen = read_frozen(settings.report, settings.manifest)
    recipe = frozen_recipe(recipe, frozen)
    utterances = read_manifest(settings.manifest)
    hashes = hash_audio(track(utterances, len(utterances), "hashing audio"))
    with exit_on_sigterm(), start_workers(recipe) as workers, open_cache(settings.report.parent / CACHE_NAME) as cache:
        model_sha256 = aligner_sha256(recipe, workers.model)
        refuse_other_model(model_sha256, workers.model, frozen)
        cleaning = Cleaning(recipe, frozen, workers, model_sha256, cache, hashes)
        planned = plan_all(utterances, cleaning)
        lines, accounts = carry_out(planned, cleaning)
    summary = write_outputs(lines, accounts, planned, cleaning)
    print(console_block(summary))
    print(what_next(summary, settings))
    return ExitCode.DONE if lines[CLEANED] else ExitCode.NO


def refuse_wrong_manifest(settings: Clean) -> None:
    if (settings.output / CLEANED).resolve() == settings.manifest.resolve():
        raise ValueError(f"{settings.manifest} would be overwritten by its own result; give another --output")
    if is_cleaned(settings.manifest):
        raise ValueError(f"{settings.manifest} was written by caspi clean: name the manifest it was made from")


def frozen_recipe(recipe: Recipe, frozen: FrozenAudit) -> Recipe:
    """The recipe with the report's language and audit settings.

    Raises:
        ValueError: the recipe asks for another backend than the report has.
    """
    wanted = recipe.audit.backend
    if "backend" in recipe.audit.model_fields_set and wanted != frozen.settings.backend:
        raise ValueError(
            f"the recipe's audit.backend is {wanted}, but {recipe.clean.report} was made with "
            f"{frozen.settings.backend}, and its thresholds hold for that one only; audit again, or change the recipe"
        )
    places = {name: getattr(recipe.audit, name) for name in ("engine", "ray_address")}
    places |= {"manifest": recipe.clean.manifest, "num_processes": recipe.clean.num_processes}
    audit = frozen.settings.model_copy(update=places)
    return recipe.model_copy(update={"language": frozen.language, "audit": audit})


def refuse_other_model(model_sha256: str, model: Description, frozen: FrozenAudit) -> None:
    if model_sha256 != frozen.model_sha256:
        raise ValueError(
            f"the aligner is not the one of the audit ({frozen.model_id}, hash {frozen.model_sha256[:12]}; found "
            f"{model['model_id']} on {model['device']} in {model['dtype']}, hash {model_sha256[:12]}): other weights, "
            "precision or versions; its thresholds do not hold here, run caspi audit again on this machine"
        )


def plan_all(utterances: Sequence[Utterance], cleaning: Cleaning) -> list[Planned]:
    """Align and judge every utterance and choose its action; in the order of the manifest."""
    transcripts = {utterance.id: transcript_of(utterance) for utterance in utterances}
    aligned = align(utterances, transcripts, list(transcripts.values()), cleaning, "aligning")
    planned = []
    for utterance in track(utterances, len(utterances), "choosing actions"):
        clip = examine(utterance, utterance, aligned, cleaning)
        load = partial(load_audio, utterance.audio_filepath, utterance.offset, utterance.duration)
        choice = choose(clip, load, cleaning.lengths, cleaning.recipe.audit.quality, cleaning.settings)
        planned.append(Planned(clip._replace(pair=None), choice))
    return planned


def align(
    utterances: Sequence[Utterance],
    transcripts: Mapping[str, Transcript],
    everything: Sequence[Transcript],
    cleaning: Cleaning,
    description: str,
) -> Aligned:
    """Align what can be aligned and is not remembered, each utterance with its decoy and nothing else.

    Args:
        transcripts: of the utterances, by id.
        everything: where decoys come from.
    """
    audit = cleaning.recipe.audit
    no_controls = audit.calibration.model_copy(update={"num_control_utterances": 0, "num_dose_utterances": 0})
    possible = [u for u in utterances if transcripts[u.id].words and u.duration <= audit.quality.max_duration_seconds]
    pairs = plan_pairs([transcripts[u.id] for u in possible], everything, no_controls, audit.seed)
    tasks = [Task(u.id, u.audio_filepath, u.offset, u.duration, pairs[u.id]) for u in possible]
    keys = {
        task.id: alignment_key(cleaning.hashes[task.audio_filepath], request_json(task), cleaning.model_sha256)
        for task in tasks
        if task.audio_filepath in cleaning.hashes
    }
    cache = cleaning.cache
    missing = [[one for one in group if keys.get(one.id, "") not in cache] for group in plan_groups(tasks, audit)]
    groups = [group for group in missing if group]
    num_missing = sum(map(len, groups))
    if num_missing < len(tasks):
        known = len(tasks) - num_missing
        print(f"{description}: {known:,} of {len(tasks):,} clips are known from before ({cache.path})", file=sys.stderr)
    outcomes = track(remembering(cleaning.workers.run(groups), keys, cache), num_missing, description)
    return Aligned(cache, keys, {one.id: one for one in outcomes if keys.get(one.id, "") not in cache})


def examine(utterance: Utterance, parent: Utterance, aligned: Aligned, cleaning: Cleaning) -> Clip:
    """Judge one utterance or segment by the thresholds of its parent's domain and fold."""
    frozen, audit = cleaning.frozen, cleaning.recipe.audit
    outcome = aligned.outcome(utterance.id)
    if outcome is None:
        return not_alignable(utterance, audit.quality.max_duration_seconds)
    if outcome.audio_error is not None:
        return Clip(utterance, ["AUDIO_ERROR"], outcome.audio_error)
    if ORIGINAL not in outcome.pairs:
        return Clip(utterance, ["ALIGN_ERROR"], outcome.failures[ORIGINAL])
    group = parent.group_id if frozen.folds_by_recording else None
    item = Measured(utterance.id, parent.domain, fold_of(group or parent.id, audit.seed), outcome.pairs)
    if frozen.score_model is not None:
        (item,) = rescored([item], frozen.score_model)
    judgement = judge(item, ORIGINAL, frozen.thresholds, audit)
    return Clip(utterance, judgement.reasons, None, item.pairs[ORIGINAL], judgement)


def carry_out(
    planned: Sequence[Planned], cleaning: Cleaning
) -> tuple[dict[str, list[CleanedUtterance]], list[Account]]:
    """The lines of the three files by name, and where the seconds of each utterance went."""
    taken = {one.clip.utterance.id for one in planned}
    cut = [cut_out(one.clip.utterance, one.choice, taken) for one in planned]
    segments = [segment for own in cut for segment in own]
    transcripts = {segment.id: transcript_of(segment) for segment in segments}
    everything = [transcript_of(one.clip.utterance) for one in planned] + list(transcripts.values())
    aligned = align(segments, transcripts, everything, cleaning, "aligning what was cut")
    lines: dict[str, list[CleanedUtterance]] = {CLEANED: [], DROPPED: [], REVIEW: []}
    accounts = []
    for one, own in zip(planned, cut, strict=True):
        parent = one.clip.utterance
        clips = [examine(segment, parent, aligned, cleaning) for segment in own]
        made = lines_of(one.clip, one.choice, clips, cleaning.settings)
        for line in made:
            lines[FILES.get(line.action, CLEANED)].append(line)
        accounts.append(account_of(parent, one.choice.action, made))
    return lines, accounts


def account_of(parent: Utterance, action: Action, made: Sequence[CleanedUtterance]) -> Account:
    sums: Counter[str] = Counter()
    for line in made:
        sums[FILES.get(line.action, CLEANED)] += microseconds(line.duration)
    num_kept = sum(line.action not in FILES for line in made)
    whole = microseconds(parent.duration)
    return Account(parent.domain, action, whole, sums[CLEANED], sums[DROPPED], sums[REVIEW], num_kept)


def write_outputs(
    lines: Mapping[str, Sequence[CleanedUtterance]],
    accounts: Sequence[Account],
    planned: Sequence[Planned],
    cleaning: Cleaning,
) -> dict[str, Any]:
    """Write the four files, the manifest last; returns the summary. No times: a repetition gives the same bytes."""
    settings, frozen = cleaning.settings, cleaning.frozen
    texts = {name: jsonl(rows, settings.output) for name, rows in lines.items()}
    num_flagged = sum(bool(one.clip.reasons) for one in planned)
    residual = estimate_residual(num_flagged, len(planned), frozen.controls)
    summary = summary_of(
        accounts,
        {name: Counter(reason for row in lines[name] for reason in row.reasons) for name in (DROPPED, REVIEW)},
        Counter(str(row.tier) for row in lines[CLEANED]),
        residual._asdict() if residual else None,
        settings.max_domain_loss_fraction,
    )
    summary["provenance"] = {
        "cleaned_sha256": hashlib.sha256(texts[CLEANED].encode()).hexdigest(),
        "manifest_sha256": sha256_of_file(settings.manifest),
        "report_sha256": frozen.report_sha256,
        "backend": frozen.settings.backend,
        "model_id": frozen.model_id,
        "model_sha256": cleaning.model_sha256,
        "audit_config_sha256": frozen.config_sha256,
        "clean": settings.model_dump(mode="json", exclude=PLACES),
        "lengths_seconds": cleaning.lengths._asdict(),
    }
    summary = rounded(summary)
    cleaned = settings.output / CLEANED
    cleaned.unlink(missing_ok=True)
    for name in (DROPPED, REVIEW):
        write_atomically(settings.output / name, texts[name])
    write_json(settings.output / SUMMARY, summary)
    if lines[CLEANED]:
        write_atomically(cleaned, texts[CLEANED])
    return dict(summary)


def jsonl(rows: Sequence[CleanedUtterance], folder: Path) -> str:
    """One line each, audio below the folder by relative path."""
    placed = (
        row.model_copy(update={"audio_filepath": manifest_path(Path(row.audio_filepath), folder.resolve())})
        for row in rows
    )
    return "".join(f"{dump_json(row.model_dump(mode='json'))}\n" for row in placed)


def what_next(summary: Mapping[str, Any], settings: Clean) -> str:
    if not summary["num_kept"]:
        return f"Not one utterance passed; there is no {settings.output / CLEANED}. See {settings.output / DROPPED}."
    cleaned = settings.output / CLEANED
    return (
        f"Written: {cleaned} ({summary['num_kept']:,} utterances), {DROPPED}, {REVIEW}, {SUMMARY}\n"
        f"Next: caspi audit --manifest {cleaned} --output FOLDER, then caspi gate and caspi train on that report. "
        "The same aligner finds nothing there by construction, so the residual estimate decides; another --backend or "
        "60 blind reviews (--labels) are proof."
    )
