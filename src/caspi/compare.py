"""Round 1 against Round 2 on the same clips: error rates with intervals, verdicts, and the success criteria.

Takes two models, which are evaluated first, or two folders of predictions. Writes round2_comparison.csv (rates are
fractions) and comparison.json beside it. Exit code 0: the pooled verdict is `better` and no test set is `worse`; 1: the
comparison was made but does not say so; 3: clips failed, so that the rates are not the models'.
"""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from caspi.config import Recipe
from caspi.ops.criteria import judge, read_object, read_training_evidence
from caspi.records import (
    ComparedSet,
    Criterion,
    ExitCode,
    Prediction,
    RunFailed,
    read_jsonl,
    sha256_of_file,
    write_atomically,
    write_json,
)

PREDICTIONS = "predictions.jsonl"
COLUMNS = (
    *("Dataset", "Round 1 WER", "Round 2 WER", "Improvement", "Low", "High", "Verdict", "p", "MAPSSWE p"),
    *("Utterances", "Words", "Blocks", "Utterances needed", "Round 1 CER", "Round 2 CER", "Note"),
)
MAX_NAMED = 3
"""Ids that an error message names."""


class Round(NamedTuple):
    source: str
    path: Path
    """predictions.jsonl"""
    predictions: list[Prediction]
    run: dict[str, Any]
    """run.json beside it; empty when there is none."""


def run(recipe: Recipe) -> int:
    """Compare and judge.

    Raises:
        ValueError: a round cannot be read, or the rounds are not of the same clips, references and prompt.
        RunFailed: a model could not be evaluated.
    """
    from caspi.speech.contrast import compare_rounds

    section = recipe.compare
    round1 = load_round("round1", section.round1_model, recipe)
    round2 = in_order_of(round1, load_round("round2", section.round2_model, recipe))
    check_same_clips(round1, round2)
    check_same_settings(round1, round2)
    rows = compare_rounds(round1.predictions, round2.predictions, section, recipe.evaluate)
    json_path = section.output.with_name("comparison.json")
    training = read_training_evidence(section.train_run) if section.train_run else None
    criteria = judge(rows, section, str(json_path), recipe.gate.report, recipe.audit.proceed_below_pct, training)
    cautions = cautions_about(round1, round2)
    write_atomically(section.output, comparison_csv(rows))
    write_json(json_path, report(recipe, (round1, round2), rows, criteria, cautions))
    print(
        table(rows, section.confidence_fraction),
        criteria_table(criteria),
        *(f"WARNING: {caution}" for caution in cautions),
        sep="\n",
    )
    print(f"written to {section.output} and {json_path}")
    return exit_code(rows, (round1, round2))


def load_round(name: str, source: str, recipe: Recipe) -> Round:
    """Predictions of a folder or file, or of a model, which is evaluated on the test sets of the recipe."""
    path = Path(source)
    if path.is_dir() and (path / PREDICTIONS).is_file():
        path = path / PREDICTIONS
    elif path.is_dir() and (path / "progress.jsonl").is_file():
        raise ValueError(f"{source} holds an evaluation that has not finished: run caspi evaluate again")
    elif not path.is_file():
        path = evaluate_model(recipe.compare.predictions / name, source, recipe) / PREDICTIONS
    predictions = list(read_jsonl(path, Prediction))
    if not predictions:
        raise ValueError(f"{path} holds no prediction")
    return Round(source, path, predictions, read_object(path.with_name("run.json")))


def evaluate_model(output: Path, model: str, recipe: Recipe) -> Path:
    from caspi import evaluate

    print(f"evaluating {model} into {output}")
    section = recipe.evaluate.model_copy(update={"model": model, "output": output})
    code = evaluate.run(recipe.model_copy(update={"evaluate": section}))
    if code not in (ExitCode.DONE, ExitCode.NOT_MEASURED):
        raise RunFailed(f"evaluating {model} ended with exit code {code}")
    return output


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


def exit_code(rows: Sequence[ComparedSet], rounds: Sequence[Round]) -> ExitCode:
    if any(row.finish_reason == "error" for one in rounds for row in one.predictions):
        return ExitCode.NOT_MEASURED
    return ExitCode.DONE if is_better(rows) else ExitCode.NO


def is_better(rows: Sequence[ComparedSet]) -> bool:
    whole = {row.test_set: row.verdict for row in rows if row.bucket == "all"}
    return whole["pooled_wer"] == "better" and "worse" not in whole.values()


def report(
    recipe: Recipe,
    rounds: Sequence[Round],
    rows: Sequence[ComparedSet],
    criteria: Sequence[Criterion],
    cautions: Sequence[str],
) -> dict[str, Any]:
    """comparison.json: everything in the table and where it comes from."""
    section = recipe.compare
    names = ("round1", "round2")
    return {
        "is_better": is_better(rows),
        "profile": section.profile,
        "settings": json.loads(
            section.model_dump_json(exclude={"round1_model", "round2_model", "output", "predictions"})
        ),
        "rounds": {name: provenance(one) for name, one in zip(names, rounds, strict=True)},
        "rows": [row.model_dump(mode="json") for row in rows],
        "criteria": [criterion.model_dump(mode="json") for criterion in criteria],
        "warnings": list(cautions),
    }


def provenance(one: Round) -> dict[str, Any]:
    model = one.run.get("model")
    return {"source": one.source, "predictions_sha256": sha256_of_file(one.path), "model": model}


def comparison_csv(rows: Sequence[ComparedSet]) -> str:
    """The guide's table: whole test sets, their mean, and all pooled."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        if row.bucket == "all":
            numbers = [row.round1_wer, row.round2_wer, row.difference, row.low, row.high]
            tests = [row.verdict, row.p_value, row.mapsswe_p_value]
            sizes = [row.num_utterances, row.num_words, row.num_blocks, row.num_utterances_needed]
            writer.writerow([row.test_set, *numbers, *tests, *sizes, row.round1_cer, row.round2_cer, row.note])
    return text.getvalue()


def table(rows: Sequence[ComparedSet], confidence_fraction: float) -> str:
    """The guide's table on the terminal, in percent, with buckets below their test sets."""
    interval = f"{confidence_fraction:.0%} interval"
    lines = [f"{'Dataset':26} {'Round 1':>8} {'Round 2':>8} {'Improvement':>12}  {interval:20} Verdict"]
    for row in rows:
        name = row.test_set if row.bucket == "all" else f"  {row.bucket}"
        spread = "-" if row.low is None or row.high is None else f"[{row.low:+.2%}, {row.high:+.2%}]"
        needed = f" ({row.num_utterances_needed:,} utterances needed)" if row.num_utterances_needed else ""
        note = f"; {row.note}" if row.note else ""
        rates = f"{row.round1_wer:8.2%} {row.round2_wer:8.2%} {row.difference:+12.2%}"
        lines.append(f"{name:26} {rates}  {spread:20} {row.verdict}{needed}{note}")
    return "\n".join(lines)


def criteria_table(criteria: Sequence[Criterion]) -> str:
    lines = ["", "Success criteria"]
    for one in criteria:
        source = f" ({one.evidence})" if one.evidence else ""
        lines.append(f"  {one.level:6} {one.outcome:11} {one.name}: {one.finding}{source}")
    return "\n".join(lines)
