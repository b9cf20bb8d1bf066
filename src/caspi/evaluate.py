"""One model over the test sets: transcribe, keep raw predictions, score.

Writes to the output folder run.json (what decides the texts), progress.jsonl (each batch as it was finished),
predictions.jsonl (raw, in the order of the test sets), scores.json and benchmark_results_PROFILE.csv. The same command
again continues after the last finished batch; clips that failed are tried again.
"""

import json
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from caspi import prepare
from caspi.config import Evaluate, Prepare, Recipe
from caspi.model.transcribers import Transcriber, Transcription, plan_batches
from caspi.ops.artifacts import differing_keys
from caspi.ops.progress import track
from caspi.ops.provenance import commit, versions
from caspi.records import (
    ExitCode,
    Prediction,
    Rejected,
    Score,
    Utterance,
    dump_json,
    read_manifest,
    sha256_of_file,
    write_atomically,
    write_json,
    write_jsonl,
)
from caspi.speech.audio import AudioError, load_audio
from caspi.speech.clips import ClipFacts, Finding
from caspi.speech.corpus import open_sources
from caspi.speech.predictions import PROGRESS, FinishedBatch, collect, finished
from caspi.speech.score import PROFILES
from caspi.speech.scoreboard import averages_of, benchmark_csv, scores_of, summary
from caspi.speech.test_sets import TestSets, holds_utterances, named_sources, sample, sha256_of_set

WEIGHT_FILES = ("*.safetensors", "config.json", "tokenizer.json", "vocab.json", "merges.txt", "*processor_config.json")
"""Files of a checkpoint that decide its texts; a run folder holds logs besides."""


WITHOUT_REFERENCE = frozenset({"EMPTY_TRANSCRIPT", "NO_LETTERS"})
"""Reasons for which prepare rejects a row that has nothing to be compared with."""
MIN_CLIP_SECONDS, MAX_CLIP_SECONDS = 1e-3, 86_400.0
"""Test sets are evaluated as they are: prepare's limits are for training."""


def run(recipe: Recipe) -> int:
    """Evaluate `evaluate.model`; exit code 3 when a clip failed, since the error rates are then not the model's.

    Raises:
        ValueError: a test set or the model cannot be read, or the output folder holds results of other settings.
    """
    section = recipe.evaluate
    test_sets = read_test_sets(section)
    transcriber = load_transcriber(recipe)
    check_settings(section.output, settings_of(recipe, transcriber, test_sets), recipe)
    transcribe_pending(transcriber, test_sets, section)
    predictions, seconds = collect(section.output, test_sets)
    write_jsonl(section.output / "predictions.jsonl", predictions)
    scores = [score for profile in PROFILES for score in scores_of(predictions, profile, section)]
    write_scores(section.output, scores, seconds)
    print(summary(scores), f"written to {section.output}", sep="\n")
    return ExitCode.NOT_MEASURED if any(score.num_failed for score in scores) else ExitCode.DONE


def read_test_sets(section: Evaluate) -> TestSets:
    """Utterances by test set, after sampling.

    Raises:
        ValueError: a source cannot be read whole.
    """
    sources = named_sources(section.test_sets)
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


def load_transcriber(recipe: Recipe) -> Transcriber:
    """The model in process, on the GPU where there is one."""
    import torch

    from caspi.model.checkpoint import load_asr
    from caspi.model.transcribers.local import LocalTranscriber

    section = recipe.evaluate
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = section.dtype if section.dtype != "auto" else {"cuda": "bfloat16", "cpu": "float32"}[device]
    model, processor = load_asr(section.model, dtype=getattr(torch, name))
    model.to(torch.device(device))  # type: ignore[arg-type]  # transformers' wrapper hides the signature
    return LocalTranscriber(
        model,
        processor,
        language=recipe.language.name,
        batch_size=section.batch_size,
        num_beams=section.num_beams,
        max_new_tokens=section.max_new_tokens,
        max_batch_seconds=section.max_batch_seconds,
    )


def settings_of(recipe: Recipe, transcriber: Transcriber, test_sets: TestSets) -> dict[str, Any]:
    """Everything that decides the predictions; results may be continued only under the same."""
    from caspi.model.checkpoint import local_folder

    return {
        "model_files_sha256": weights_sha256(local_folder(recipe.evaluate.model)),
        "transcriber": transcriber.describe(),
        "language": recipe.language.name,
        "test_sets": {name: sha256_of_set(utterances) for name, utterances in test_sets.items()},
        "versions": {name: found for name, found in versions().items() if name in ("torch", "transformers")},
    }


def weights_sha256(folder: Path) -> dict[str, str]:
    files = sorted({path for pattern in WEIGHT_FILES for path in folder.glob(pattern)})
    return {path.name: sha256_of_file(path) for path in files}


def check_settings(output: Path, settings: dict[str, Any], recipe: Recipe) -> None:
    """Write run.json, or refuse to mix results of two settings in one folder."""
    path = output / "run.json"
    if path.exists():
        differences = differing_keys(read_json(path).get("settings"), settings)
        if differences:
            raise ValueError(
                f"{output} holds results of other settings ({'; '.join(differences)}): choose another --output, or "
                "delete the folder"
            )
        return
    if (output / PROGRESS).exists():
        raise ValueError(
            f"{output} holds predictions without {path.name}: choose another --output, or delete the folder"
        )
    record = {
        "step": "evaluate",
        "model": recipe.evaluate.model,
        "settings": settings,
        "recipe": recipe.evaluate.model_dump(mode="json"),
        "python": platform.python_version(),
        "versions": versions(),
        "commit": commit(),
    }
    write_json(path, record)


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged: expected a JSON object, found {type(value).__name__}")
    return value


def transcribe_pending(transcriber: Transcriber, test_sets: TestSets, section: Evaluate) -> None:
    """Transcribe what progress.jsonl does not hold yet, batch by batch.

    Batches are planned over the whole test set, finished or not, so that a run that was interrupted has the batches,
    and thus the texts, of one that was not.
    """
    done = finished(section.output)
    batches = [batch for name in test_sets for batch in batches_of(name, test_sets[name], done, section)]
    with (section.output / PROGRESS).open("a", encoding="utf-8") as progress:
        for name, batch in track(batches, total=len(batches), description="transcribing"):
            line = transcribe_batch(transcriber, name, batch)
            progress.write(dump_json(line.model_dump(mode="json")) + "\n")
            progress.flush()
            os.fsync(progress.fileno())


def batches_of(
    name: str, utterances: list[Utterance], done: Mapping[tuple[str, str], Prediction], section: Evaluate
) -> Iterator[tuple[str, list[Utterance]]]:
    durations = [utterance.duration for utterance in utterances]
    for indices in plan_batches(durations, section.batch_size, section.max_batch_seconds / section.num_beams):
        if batch := [utterances[index] for index in indices if (name, utterances[index].id) not in done]:
            yield name, batch


def transcribe_batch(transcriber: Transcriber, test_set: str, batch: list[Utterance]) -> FinishedBatch:
    start = time.perf_counter()
    results: dict[str, Transcription] = {}
    audios = {}
    for utterance in batch:
        try:
            audios[utterance.id] = load_audio(utterance.audio_filepath, utterance.offset, utterance.duration)
        except AudioError as error:
            results[utterance.id] = Transcription("", "error", f"{error.reason}: {error}")
    if audios:
        results |= zip(audios, transcriber.transcribe(list(audios.values())), strict=True)
    predictions = [predict(test_set, utterance, results[utterance.id]) for utterance in batch]
    return FinishedBatch(predictions=predictions, seconds=round(time.perf_counter() - start, 3))


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
    )


def write_scores(output: Path, scores: Sequence[Score], seconds: Mapping[str, float]) -> None:
    """scores.json with everything, and the guide's table per profile."""
    averages = {name: averages_of(one for one in scores if one.profile == name)._asdict() for name in PROFILES}
    rows = [score.model_dump(mode="json") for score in scores]
    write_json(output / "scores.json", {"averages": averages, "scores": rows})
    for profile in PROFILES:
        whole = [score for score in scores if score.profile == profile and score.bucket == "all"]
        write_atomically(output / f"benchmark_results_{profile}.csv", benchmark_csv(whole, seconds))
