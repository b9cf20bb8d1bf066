"""Round 1 against Round 2 on the same clips: error rates with intervals, verdicts, and the success criteria.

Takes two models, which are evaluated first, or two folders of predictions. Writes round2_comparison.csv (rates are
fractions), and beside it comparison.json with the source of every number, and comparison.html. Exit code 0: the pooled
verdict is `better`, no test set is `worse`, no control set is spoilt, and no clip was trained on; 1: the comparison was
made but does not say so; 3: clips failed, so that the rates are not the models'.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from caspi.config import Recipe
from caspi.ops.comparison.comparison_page import comparison_page
from caspi.ops.comparison.comparison_tables import comparison_csv, controls_table, criteria_table, table, words_table
from caspi.ops.comparison.criteria import TrainingEvidence, judge, read_object, read_training_evidence
from caspi.ops.comparison.ledger import build_ledger, claims_of, criterion_claims
from caspi.ops.comparison.rounds import (
    Round,
    cautions_about,
    check_same_clips,
    check_same_settings,
    clips_of,
    in_order_of,
    provenance,
)
from caspi.records import (
    Clip,
    ComparedControl,
    ComparedSet,
    ComparedWords,
    Criterion,
    ExitCode,
    Prediction,
    RunFailed,
    read_jsonl,
    write_atomically,
    write_json,
)

PREDICTIONS = "predictions.jsonl"
BEAMS_EVIDENCE = "predictions with beams"


class Rounds(NamedTuple):
    """All rounds hold the same clips in the same order."""

    round1: Round
    round2: Round
    beams: Round | None
    """Round 2 with beam search."""


class Findings(NamedTuple):
    rows: list[ComparedSet]
    words: list[ComparedWords]
    controls: list[ComparedControl]
    behaviour: dict[str, list[Any]]
    leakage: dict[str, Any] | None
    """None without a training manifest."""
    criteria: list[Criterion]
    cautions: list[str]

    @property
    def is_better(self) -> bool:
        whole = {row.test_set: row.verdict for row in self.rows if row.bucket == "all"}
        is_spoilt = any(control.outcome == "missed" for control in self.controls)
        leaked = self.leakage and any(row["audio"] for row in self.leakage["test_sets"].values())
        return whole["pooled_wer"] == "better" and "worse" not in whole.values() and not is_spoilt and not leaked


def run(recipe: Recipe) -> int:
    """Compare and judge.

    Raises:
        ValueError: a round cannot be read, or the rounds are not of the same clips, references and prompt.
        RunFailed: a model could not be evaluated.
    """
    section = recipe.compare
    rounds = load_rounds(recipe)
    clips = clips_of(rounds.round1) or clips_of(rounds.round2)
    findings = find(recipe, rounds, clips)
    json_path, html_path = (section.output.with_name(f"comparison.{suffix}") for suffix in ("json", "html"))
    content = report(recipe, rounds, findings, json_path)
    write_atomically(section.output, comparison_csv(findings.rows))
    write_json(json_path, content)
    write_atomically(html_path, page(recipe, rounds, clips, content))
    print(table(findings.rows, section.confidence_fraction), *words_table(findings.words), sep="\n")
    print(*controls_table(findings.controls), criteria_table(findings.criteria), sep="\n")
    for caution in findings.cautions:
        print(f"WARNING: {caution}")
    print(f"written to {section.output}, {json_path} and {html_path}")
    return exit_code(findings, rounds)


def load_rounds(recipe: Recipe) -> Rounds:
    """Read or evaluate the rounds and see that they can be compared."""
    section = recipe.compare
    round1 = load_round("round1", section.round1_model, recipe)
    others = [load_round("round2", section.round2_model, recipe)]
    if section.round2_beams:
        others.append(load_round("round2_beams", str(section.round2_beams), recipe))
    others = [in_order_of(round1, one) for one in others]
    for one in others:
        check_same_clips(round1, one)
        check_same_settings(round1, one)
    return Rounds(round1, others[0], others[1] if len(others) > 1 else None)


def find(recipe: Recipe, rounds: Rounds, clips: Sequence[Clip]) -> Findings:
    """Everything that the comparison has to say."""
    from caspi.speech.corpora.leakage import leakage_summary
    from caspi.speech.scoring.behaviour import behaviour_of, worsened
    from caspi.speech.scoring.contrast import compare_rounds
    from caspi.speech.scoring.veto import compare_controls
    from caspi.speech.scoring.word_classes import compare_word_classes

    section = recipe.compare
    rows = compare_rounds(*spoken(rounds.round1, rounds.round2, recipe), section, recipe.evaluate)
    controls = compare_controls(rounds.round1.predictions, rounds.round2.predictions, section)
    training = read_training_evidence(section.train_run) if section.train_run else None
    leakage = find_leakage(recipe, rounds.round1.predictions, clips, training)
    behaviour = {
        name: behaviour_of(one.predictions, recipe.evaluate.min_loop_repeats, *languages_of(one, recipe))
        for name, one in (("round1", rounds.round1), ("round2", rounds.round2))
    }
    cautions = [
        *cautions_about(rounds.round1, rounds.round2),
        *worsened(behaviour["round1"], behaviour["round2"], section.max_oddity_increase),
        *(leakage_summary(leakage) if leakage else ()),
    ]
    criteria = judge(
        rows,
        section,
        str(section.output.with_name("comparison.json")),
        recipe.gate.report,
        recipe.audit.proceed_below_pct,
        training,
        controls,
        beam_row(recipe, rounds),
        BEAMS_EVIDENCE,
    )
    words = compare_word_classes(*spoken(rounds.round1, rounds.round2, recipe), section)
    return Findings(rows, words, controls, behaviour, leakage, criteria, cautions)


def languages_of(one: Round, recipe: Recipe) -> tuple[str, dict[str, str]]:
    """The language of a round and those of its test sets that are in another, as it was evaluated."""
    settings = {"language": recipe.language.name, "languages": recipe.evaluate.languages, **one.run.get("settings", {})}
    return settings["language"], settings["languages"]


def spoken(first: Round, second: Round, recipe: Recipe) -> tuple[list[Prediction], list[Prediction]]:
    """Predictions of two rounds without the control sets."""
    controls = recipe.compare.control_sets
    sides = [[row for row in one.predictions if row.test_set not in controls] for one in (first, second)]
    return sides[0], sides[1]


def beam_row(recipe: Recipe, rounds: Rounds) -> ComparedSet | None:
    """Round 2 against itself with beam search, on average over the test sets.

    Raises:
        ValueError: the predictions are known to be of another model, or without beams.
    """
    from caspi.speech.scoring.contrast import AVERAGE, compare_rounds

    if rounds.beams is None:
        return None
    settings, beams = (one.run.get("settings", {}) for one in (rounds.round2, rounds.beams))
    num_beams = beams.get("transcriber", {}).get("num_beams")
    if num_beams == 1:
        raise ValueError(f"{rounds.beams.path}: num_beams is 1; evaluate Round 2 with --num-beams 5")
    models = [one.get("model_files_sha256") for one in (settings, beams)]
    if all(models) and models[0] != models[1]:
        raise ValueError(f"{rounds.beams.path} is of another model than {rounds.round2.path}")
    rows = compare_rounds(*spoken(rounds.round2, rounds.beams, recipe), recipe.compare, recipe.evaluate)
    return next(row for row in rows if row.test_set == AVERAGE)


def find_leakage(
    recipe: Recipe, predictions: Sequence[Prediction], clips: Sequence[Clip], training: TrainingEvidence | None
) -> dict[str, Any] | None:
    """Which clips Round 2 was trained on."""
    from caspi.speech.corpora.leakage import KnownClip, leakage_report

    manifest = recipe.compare.train_manifest or (training.manifest() if training else None)
    if manifest is None:
        return None
    by_key = {(clip.test_set, clip.id): clip for clip in clips}
    known = [KnownClip.of_prediction(row, by_key.get((row.test_set, row.id))) for row in predictions]
    return leakage_report(manifest, known, recipe.evaluate)


def load_round(name: str, source: str, recipe: Recipe) -> Round:
    """Predictions of a folder or file, or of a model, which is evaluated on the test sets of the recipe."""
    path = Path(source)
    if path.is_dir() and (path / PREDICTIONS).is_file():
        path = path / PREDICTIONS
    elif path.is_dir() and (path / "progress.jsonl").is_file():
        raise ValueError(f"{source} holds an evaluation that has not finished: run caspi evaluate again")
    elif not path.is_file():
        if recipe.evaluate.server:
            raise ValueError(
                f"{source} holds no predictions, and evaluate.server serves one model: run caspi evaluate for each "
                "round and give compare their folders"
            )
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


def exit_code(findings: Findings, rounds: Rounds) -> ExitCode:
    if any(row.finish_reason == "error" for one in rounds if one for row in one.predictions):
        return ExitCode.NOT_MEASURED
    return ExitCode.DONE if findings.is_better else ExitCode.NO


def report(recipe: Recipe, rounds: Rounds, findings: Findings, json_path: Path) -> dict[str, Any]:
    """comparison.json: everything in the tables and where it comes from."""
    section = recipe.compare
    named = {name: one for name, one in zip(("round1", "round2", "round2_beams"), rounds, strict=True) if one}
    evidence = {str(json_path): ("round1", "round2"), BEAMS_EVIDENCE: ("round2", "round2_beams")}
    files, claims = criterion_claims(findings.criteria, evidence)
    files |= {name: one.path for name, one in named.items()}
    claims = [*claims_of(findings.rows, findings.words, findings.controls), *claims]
    return {
        "is_better": findings.is_better,
        "profile": section.profile,
        "settings": json.loads(
            section.model_dump_json(exclude={"round1_model", "round2_model", "output", "predictions"})
        ),
        "rounds": {name: provenance(one) for name, one in named.items()},
        "rows": as_json(findings.rows),
        "word_classes": as_json(findings.words),
        "controls": as_json(findings.controls),
        "behaviour": {name: as_json(rows) for name, rows in findings.behaviour.items()},
        "leakage": findings.leakage,
        "criteria": as_json(findings.criteria),
        "warnings": findings.cautions,
        "ledger": build_ledger(files, claims),
    }


def as_json(records: Sequence[Any]) -> list[dict[str, Any]]:
    return [record.model_dump(mode="json") for record in records]


def page(recipe: Recipe, rounds: Rounds, clips: Sequence[Clip], content: dict[str, Any]) -> str:
    from caspi.speech.scoring.examples import choose_examples

    section = recipe.compare
    wins, losses = choose_examples(rounds.round1.predictions, rounds.round2.predictions, clips, section)
    return comparison_page(content, wins, losses, section.confidence_fraction)
