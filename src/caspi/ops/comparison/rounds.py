"""Two rounds of predictions: are they of the same clips, audio and prompt, and what must a reader know about them?"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from caspi.records import Clip, Prediction, read_jsonl, sha256_of_file

MAX_NAMED = 3
"""Ids that an error message names."""


class Round(NamedTuple):
    source: str
    path: Path
    """predictions.jsonl"""
    predictions: list[Prediction]
    run: dict[str, Any]
    """run.json beside it; empty when there is none."""


def in_order_of(first: Round, second: Round) -> Round:
    """The second round's predictions in the order of the first.

    Raises:
        ValueError: ids occur twice or in one of the rounds only.
    """
    sides = []
    for one in (first, second):
        by_key = {(row.test_set, row.id): row for row in one.predictions}
        if len(by_key) < len(one.predictions):
            raise ValueError(f"{one.path}: the same id occurs twice in a test set")
        sides.append(by_key)
    only = [f"{named(sides[i].keys() - sides[1 - i].keys())} only in {(first, second)[i].path}" for i in (0, 1)]
    if sides[0].keys() != sides[1].keys():
        raise ValueError(
            f"the rounds are not of the same clips: {'; '.join(only)}; evaluate both on the same test sets"
        )
    return second._replace(predictions=[sides[1][key] for key in sides[0]])


def check_same_clips(first: Round, second: Round) -> None:
    """
    Raises:
        ValueError: a reference, duration or group differs.
    """
    for field in ("reference", "duration", "group_id"):
        pairs = zip(first.predictions, second.predictions, strict=True)
        differing = [(a.test_set, a.id) for a, b in pairs if getattr(a, field) != getattr(b, field)]
        if differing:
            raise ValueError(
                f"the rounds are not of the same clips: {field} differs for {named(differing)} between {first.path} "
                f"and {second.path}"
            )


def named(keys: Iterable[tuple[str, str]]) -> str:
    ids = [f"{test_set}/{utterance_id}" for test_set, utterance_id in sorted(keys)]
    shown = ", ".join(ids[:MAX_NAMED]) + (", ..." if len(ids) > MAX_NAMED else "")
    return f"{len(ids)} utterances ({shown})" if ids else "none"


def check_same_settings(first: Round, second: Round) -> None:
    """
    Raises:
        ValueError: prompts or audio are known to differ.
    """
    prompts = [prompt_of(one) for one in (first, second)]
    if None not in prompts and prompts[0] != prompts[1]:
        raise ValueError(f"the prompts differ: {prompts[0]!r} in {first.path}, {prompts[1]!r} in {second.path}")
    hashes = [one.run.get("settings", {}).get("test_sets", {}) for one in (first, second)]
    differing = sorted(name for name in hashes[0].keys() & hashes[1].keys() if hashes[0][name] != hashes[1][name])
    if differing:
        raise ValueError(f"the audio of {', '.join(differing)} differs between {first.path} and {second.path}")


def prompt_of(one: Round) -> str | None:
    prompt = one.run.get("settings", {}).get("transcriber", {}).get("prompt")
    return None if prompt is None else str(prompt)


def cautions_about(first: Round, second: Round) -> list[str]:
    """What a reader of the comparison must know, though it does not forbid it."""
    cautions = []
    rounds = {"Round 1": first, "Round 2": second}
    for name, one in rounds.items():
        if prompt_of(one) is None:
            cautions.append(
                f"{name}: {one.path.with_name('run.json')} does not say with which prompt it was transcribed"
            )
        if one.run.get("settings", {}).get("transcriber", {}).get("route") == "transcription":
            cautions.append(
                f"{name}: transcribed through the transcription route, whose prompt is not that of training"
            )
        for reason, consequence in (("error", "failed: all their words count as deleted"), ("length", "were cut off")):
            if count := sum(row.finish_reason == reason for row in one.predictions):
                cautions.append(f"{name}: {count} clips {consequence}")
    settings = [one.run.get("settings", {}) for one in (first, second)]
    decoding = [{k: v for k, v in one.get("transcriber", {}).items() if k != "prompt"} for one in settings]
    if decoding[0] and decoding[1] and decoding[0] != decoding[1]:
        keys = sorted(
            key for key in decoding[0].keys() | decoding[1].keys() if decoding[0].get(key) != decoding[1].get(key)
        )
        cautions.append(f"the rounds were transcribed with different {', '.join(keys)}")
    models = [one.get("model_files_sha256") for one in settings]
    if models[0] and models[0] == models[1]:
        cautions.append("both rounds are the same model")
    return cautions


def provenance(one: Round) -> dict[str, Any]:
    model = one.run.get("model")
    return {"source": one.source, "predictions_sha256": sha256_of_file(one.path), "model": model}


def clips_of(one: Round) -> list[Clip]:
    """Where the audio of the round's clips is; empty for predictions that came without clips.jsonl."""
    path = one.path.with_name("clips.jsonl")
    return list(read_jsonl(path, Clip)) if path.is_file() else []
