"""One model over the test sets: transcribe, keep raw predictions, score.

The model runs in process, behind a server that is there (`--server`), or behind one that is started for the purpose
(`serve_command`). Writes to the output folder run.json (what decides the texts), progress.jsonl (each batch as it was
finished), predictions.jsonl (raw, in the order of the test sets), clips.jsonl (where their audio is), scores.json,
benchmark_results_PROFILE.csv, and leakage.json when the training manifest is given. The same command again continues
after the last finished batch; clips that failed are tried again.
"""

import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from caspi import prepare
from caspi.config import Evaluate, Prepare, Recipe
from caspi.model.transcribers import Transcriber, Transcription, plan_batches
from caspi.model.transcribers.choose import cautions_about, connect, has_gpu, load_transcriber, weights_sha256
from caspi.ops.comparison.in_flight import results_as_completed
from caspi.ops.comparison.settings_record import keep_settings
from caspi.ops.progress import track
from caspi.ops.provenance import commit, versions
from caspi.ops.release.server import check_can_start, free_port, require_loopback, running_server, server_command
from caspi.records import (
    ExitCode,
    Prediction,
    Rejected,
    Score,
    Utterance,
    dump_json,
    read_manifest,
    write_atomically,
    write_json,
    write_jsonl,
)
from caspi.speech.corpora.audio import AudioError, load_audio
from caspi.speech.corpora.clips import ClipFacts, Finding
from caspi.speech.corpora.corpus import open_sources
from caspi.speech.corpora.leakage import KnownClip, leakage_report, leakage_summary
from caspi.speech.corpora.test_sets import TestSets, clips_of, holds_utterances, named_sources, sample, sha256_of_set
from caspi.speech.scoring.behaviour import Behaviour, behaviour_of, language_lines
from caspi.speech.scoring.predictions import PROGRESS, FinishedBatch, Timing, collect, finished, missing
from caspi.speech.scoring.score import PROFILES
from caspi.speech.scoring.scoreboard import averages_of, benchmark_csv, scores_of, summary

WITHOUT_REFERENCE = frozenset({"EMPTY_TRANSCRIPT", "NO_LETTERS"})
"""Reasons for which prepare rejects a row that has nothing to be compared with."""
MIN_CLIP_SECONDS, MAX_CLIP_SECONDS = 1e-3, 86_400.0
"""Test sets are evaluated as they are: prepare's limits are for training."""


def run(recipe: Recipe) -> int:
    """Evaluate `evaluate.model`; exit code 3 when a clip failed, since the error rates are then not the model's.

    Raises:
        ValueError: a test set or the model cannot be read, or the output folder holds results of other settings.
        RunFailed: there is no server to ask.
    """
    section = recipe.evaluate
    test_sets = read_test_sets(section)
    if section.train_manifest:
        write_leakage(section, test_sets)
    with open_transcriber(recipe) as transcriber:
        settings = settings_of(recipe, transcriber, test_sets)
        keep_settings(section.output / "run.json", settings, facts_of(recipe), section.output / PROGRESS)
        for line in cautions_about(settings["transcriber"]):
            print(f"WARNING: {line}")
        write_jsonl(section.output / "clips.jsonl", clips_of(test_sets))
        transcribe_pending(transcriber, test_sets, section)
    predictions, timings = collect(section.output, test_sets)
    write_jsonl(section.output / "predictions.jsonl", predictions)
    scores = [score for profile in PROFILES for score in scores_of(predictions, profile, section)]
    behaviour = behaviour_of(predictions, section.min_loop_repeats, recipe.language.name, section.languages)
    write_scores(section.output, scores, behaviour, timings, settings["transcriber"].get("route", "in process"))
    print(summary(scores), *language_lines(behaviour), f"written to {section.output}", *missing(predictions), sep="\n")
    return ExitCode.NOT_MEASURED if any(score.num_failed for score in scores) else ExitCode.DONE


def read_test_sets(section: Evaluate) -> TestSets:
    """Utterances by test set, after sampling.

    Raises:
        ValueError: a source cannot be read whole.
    """
    sources = named_sources(section.test_sets)
    if strangers := sorted(section.languages.keys() - sources.keys()):
        raise ValueError(f"evaluate.languages names {strangers[0]}, which is no test set")
    return {name: sample(name, read_test_set(name, source, section), section) for name, source in sources.items()}


def read_test_set(name: str, source: str, section: Evaluate) -> list[Utterance]:
    """A manifest of `caspi prepare`, or its folder, as it is; any other source through prepare's reader."""
    path = Path(source)
    if path.is_dir() and (path / "manifest.jsonl").is_file():
        path = path / "manifest.jsonl"
    if path.is_file() and holds_utterances(path):
        return read_manifest(path)
    return read_raw_source(name, str(path) if path.exists() else source, section)


def read_raw_source(name: str, source: str, section: Evaluate) -> list[Utterance]:
    """Every row must become an utterance: a row left out would change the error rate without a trace.

    Clips whose audio is broken but whose length is stated stay in, to be counted as failed. Rows without a transcript
    carry no reference and are left out, with a line that says so.
    """
    location, _, split = source.partition(":") if not Path(source).exists() else (source, "", "")
    settings = Prepare(
        datasets=(location,),
        output=section.output / "test_sets" / name,
        split=split or section.split,
        min_duration_seconds=MIN_CLIP_SECONDS,
        max_duration_seconds=MAX_CLIP_SECONDS,
    )
    entries = prepare.read_sources(open_sources(settings), settings)
    findings = prepare.inspect_audio(entries, settings)
    results = [admit(entry, findings.get(index), settings) for index, entry in enumerate(entries)]
    rejected = [result for result in results if isinstance(result, Rejected)]
    silent = [one for one in rejected if one.reason in WITHOUT_REFERENCE]
    broken = [one for one in rejected if one.reason not in WITHOUT_REFERENCE]
    if broken:
        raise ValueError(
            f"test set {name}: {len(broken)} of {len(results)} rows of {source} cannot be evaluated; the first is "
            f"{broken[0].id}: {broken[0].reason}, {broken[0].detail}"
        )
    if silent:
        print(f"WARNING: {name}: {len(silent)} of {len(results)} rows have no transcript and are left out")
    utterances = [result for result in results if isinstance(result, Utterance)]
    if not utterances:
        raise ValueError(f"test set {name}: {source} holds no row with a transcript")
    folder = settings.output.resolve()
    return [one.model_copy(update={"audio_filepath": str(folder / one.audio_filepath)}) for one in utterances]


def admit(entry: prepare.Entry, finding: Finding | None, settings: Prepare) -> Utterance | Rejected:
    if isinstance(entry, Rejected):
        return entry
    assert finding is not None, "every candidate has been looked at"
    stated = entry.item.duration
    if isinstance(finding, AudioError) and stated:
        finding = ClipFacts(stated, None, "")
    return prepare.judge(entry, finding, settings)


@contextmanager
def open_transcriber(recipe: Recipe) -> Iterator[Transcriber]:
    """The model in process, behind the server that was named, or behind one that lives as long as this block."""
    section = recipe.evaluate
    if section.server:
        with connect(section.server, section, recipe.language) as transcriber:
            yield transcriber
    elif section.serve_command and has_gpu():
        port = free_port()
        command = server_command(section.serve_command, section.model, port, "evaluate.serve_command")
        require_loopback(command, "evaluate.serve_command")
        check_can_start(command, port)
        log = section.output / "server.log"
        print(f"starting {command[0]} for {section.model}; its log is {log}", flush=True)
        with (
            running_server(command, port, log, section.health_timeout_seconds) as server,
            connect(f"{server.url}/v1", section, recipe.language) as transcriber,
        ):
            yield transcriber
    else:
        yield load_transcriber(section, recipe.language)


def settings_of(recipe: Recipe, transcriber: Transcriber, test_sets: TestSets) -> dict[str, Any]:
    """Everything that decides the predictions; results may be continued only under the same."""
    return {
        "model_files_sha256": weights_sha256(transcriber.folder),
        "transcriber": transcriber.describe(),
        "language": recipe.language.name,
        "languages": recipe.evaluate.languages,
        "test_sets": {name: sha256_of_set(utterances) for name, utterances in test_sets.items()},
        "versions": {name: found for name, found in versions().items() if name in transcriber.packages},
    }


def facts_of(recipe: Recipe) -> dict[str, Any]:
    """What is worth knowing about a run and does not decide its texts."""
    return {
        "step": "evaluate",
        "model": recipe.evaluate.model,
        "recipe": recipe.evaluate.model_dump(mode="json"),
        "python": platform.python_version(),
        "versions": versions(),
        "commit": commit(),
    }


def write_leakage(section: Evaluate, test_sets: TestSets) -> None:
    """Before scoring: which test clips the model has seen."""
    assert section.train_manifest is not None
    clips = [KnownClip.of(name, one) for name, utterances in test_sets.items() for one in utterances]
    report = leakage_report(section.train_manifest, clips, section)
    write_json(section.output / "leakage.json", report)
    for line in leakage_summary(report):
        print(f"WARNING: {line}")


def transcribe_pending(transcriber: Transcriber, test_sets: TestSets, section: Evaluate) -> None:
    """Transcribe what progress.jsonl does not hold yet, batch by batch.

    Batches are planned over the whole test set, finished or not, so that a run that was interrupted has the batches,
    and thus the texts, of one that was not.
    """
    done = finished(section.output)
    batches = [batch for name in test_sets for batch in batches_of(name, test_sets[name], done, section, transcriber)]
    work = partial(transcribe_batch, transcriber, section.languages)
    last = time.perf_counter()
    with (section.output / PROGRESS).open("a", encoding="utf-8") as progress:
        results = results_as_completed(work, batches, transcriber.num_concurrent)
        for batch in track(results, total=len(batches), description="transcribing"):
            now = time.perf_counter()
            line = batch.model_copy(update={"elapsed_seconds": round(now - last, 3)})
            last = now
            progress.write(dump_json(line.model_dump(mode="json")) + "\n")
            progress.flush()
            os.fsync(progress.fileno())


def batches_of(
    name: str,
    utterances: list[Utterance],
    done: Mapping[tuple[str, str], Prediction],
    section: Evaluate,
    transcriber: Transcriber,
) -> Iterator[tuple[str, list[Utterance]]]:
    durations = [utterance.duration for utterance in utterances]
    for indices in plan_batches(durations, transcriber.batch_size, section.max_batch_seconds / section.num_beams):
        if batch := [utterances[index] for index in indices if (name, utterances[index].id) not in done]:
            yield name, batch


def transcribe_batch(
    transcriber: Transcriber, languages: Mapping[str, str], item: tuple[str, list[Utterance]]
) -> FinishedBatch:
    test_set, batch = item
    start = time.perf_counter()
    results: dict[str, Transcription] = {}
    audios = {}
    for utterance in batch:
        try:
            audios[utterance.id] = load_audio(utterance.audio_filepath, utterance.offset, utterance.duration)
        except AudioError as error:
            results[utterance.id] = Transcription("", "error", f"{error.reason}: {error}")
    if audios:
        texts = transcriber.transcribe(list(audios.values()), languages.get(test_set))
        results |= zip(audios, texts, strict=True)
    predictions = [predict(test_set, utterance, results[utterance.id]) for utterance in batch]
    seconds = round(time.perf_counter() - start, 3)
    return FinishedBatch(predictions=predictions, seconds=seconds, elapsed_seconds=seconds)


def predict(test_set: str, utterance: Utterance, transcription: Transcription) -> Prediction:
    return Prediction(
        id=utterance.id,
        test_set=test_set,
        reference=utterance.text,
        hypothesis=transcription.text,
        domain=utterance.domain,
        group_id=utterance.group_id,
        duration=utterance.duration,
        finish_reason=transcription.finish_reason,
        error=transcription.error,
        language_tag=transcription.language_tag,
    )


def write_scores(
    output: Path,
    scores: Sequence[Score],
    behaviour: Sequence[Behaviour],
    timings: Mapping[str, Timing],
    route: str,
) -> None:
    """scores.json with everything, and the guide's table per profile."""
    averages = {name: averages_of(one for one in scores if one.profile == name)._asdict() for name in PROFILES}
    rows = [score.model_dump(mode="json") for score in scores]
    oddities = [row.model_dump(mode="json") for row in behaviour]
    content = {"route": route, "averages": averages, "scores": rows, "behaviour": oddities}
    write_json(output / "scores.json", content)
    for profile in PROFILES:
        whole = [score for score in scores if score.profile == profile and score.bucket == "all"]
        write_atomically(output / f"benchmark_results_{profile}.csv", benchmark_csv(whole, timings, route))
