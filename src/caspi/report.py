"""HTML pages: self-contained, no network, open from disk. Every figure is read from the files of the steps."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from caspi.config import Audit, Recipe
from caspi.files import read_object
from caspi.ops.charts import comparison_svg, training_svg
from caspi.ops.pages import environment, style
from caspi.records import Prediction, read_jsonl, write_atomically

NUM_EXAMPLES = 12
DOMAIN_KEY = "eval_wer_"
AUDIT_PAGE = "audit.html"


def run(recipe: Recipe) -> int:
    """`caspi report`: write a page again from the files of its step."""
    if recipe.report.page == "audit":
        from caspi.audit import write_page

        print(write_page(audit_settings(recipe)))
    else:
        print(write_index(recipe))
    return 0


def audit_settings(recipe: Recipe) -> Audit:
    """The recipe's audit with what the flags say about files and audio."""
    flags = recipe.report
    given = {"output": flags.folder, "manifest": flags.manifest, "embed_audio": flags.embed_audio}
    return recipe.audit.model_copy(update={name: value for name, value in given.items() if value is not None})


def write_index(recipe: Recipe) -> Path:
    """Write DIR/index.html of a demo.

    Raises:
        ValueError: a file of an earlier step is missing.
    """
    folder = recipe.demo.output
    comparison = read_json(recipe.compare.output.with_name("comparison.json"))
    state = read_json(recipe.train.output_dir / "trainer_state.json")
    evaluations = unique_steps(entry for entry in state["log_history"] if "eval_wer" in entry)
    rows = [row for row in comparison["rows"] if row["bucket"] == "all"]
    page = environment().get_template("index.html").render(
        style=style(),
        comparison=comparison,
        rows=rows,
        confidence=recipe.compare.confidence_fraction,
        gate_report=read_json(recipe.train.gate_report),
        audits=[audit_row(folder / "audits" / one.name, one.name, one.defect_fraction) for one in recipe.demo.audits],
        evaluations=evaluations,
        domains=domains_of(evaluations),
        examples=examples(recipe),
        comparison_svg=comparison_svg(rows),
        training_svg=training_svg(state["log_history"], evaluations, switch_steps(recipe, state)),
        files=files(recipe, folder),
    )  # fmt: skip
    write_atomically(folder / "index.html", page)
    return folder / "index.html"


def read_json(path: Path) -> Any:
    try:
        return read_object(path)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; run the step that writes it first") from None


def unique_steps(entries: Any) -> list[dict[str, Any]]:
    """One entry per step, the last one: a resumed run may have evaluated a step twice."""
    return list({entry["step"]: entry for entry in entries}.values())


def domains_of(evaluations: list[dict[str, Any]]) -> list[str]:
    return sorted({key.removeprefix(DOMAIN_KEY) for one in evaluations for key in one if key.startswith(DOMAIN_KEY)})


def audit_row(folder: Path, name: str, planted: float) -> dict[str, Any]:
    report = read_json(folder / "alignment_report.json")
    estimate = report["estimate"]["raw"]
    invalid = report["decision_code"] == "AUDIT_INVALID"
    return {
        "name": name,
        "page": f"audits/{name}/{AUDIT_PAGE}",
        "planted": planted,
        "found": estimate["point"],
        "lower": estimate["lower"],
        "upper": estimate["upper"],
        "samples": report["total_samples"],
        "backend": report["provenance"]["backend"],
        "answer": "AUDIT_INVALID" if invalid else report["decision"],
    }


def examples(recipe: Recipe) -> list[dict[str, str]]:
    """Utterances of the noisy test set on which the rounds differ most, in either direction."""
    from caspi.speech.scoring.score import wer

    rounds = [
        {(row.test_set, row.id): row for row in read_jsonl(folder / "predictions.jsonl", Prediction)}
        for folder in (recipe.compare.predictions / "round1", recipe.compare.predictions / "round2")
    ]
    noisy = [key for key in rounds[0] if key[0] == recipe.compare.criteria.noisy_test_set]

    def gain(key: tuple[str, str]) -> float:
        first, second = (one[key] for one in rounds)
        rates = [wer([row.reference], [row.hypothesis], recipe.compare.profile) or 0.0 for row in (first, second)]
        return rates[0] - rates[1]

    chosen = sorted(noisy, key=lambda key: (-abs(gain(key)), key))[:NUM_EXAMPLES]
    return [
        {
            "id": key[1],
            "reference": rounds[0][key].reference,
            "round1": rounds[0][key].hypothesis,
            "round2": rounds[1][key].hypothesis,
        }
        for key in chosen
    ]


def switch_steps(recipe: Recipe, state: Mapping[str, Any]) -> list[int]:
    """Steps at which a later stage begins."""
    steps_per_epoch = state["global_step"] / recipe.train.num_epochs()
    first_epochs = [recipe.train.first_epoch_number(index) - 1 for index in range(1, len(recipe.train.stages))]
    return [round(epochs * steps_per_epoch) for epochs in first_epochs]


def files(recipe: Recipe, folder: Path) -> list[tuple[str, str]]:
    named = {
        "Audit of the training corpus, as a page": recipe.audit.output / AUDIT_PAGE,
        "Audit report of the training corpus": recipe.train.gate_report,
        "Sign-off": recipe.train.signoff_file,
        "Training run, as a page": recipe.train.output_dir / "run.html",
        "Training log": recipe.train.output_dir / "training.log",
        "Training metrics": recipe.train.output_dir / "metrics.jsonl",
        "Comparison (page with audio)": recipe.compare.output.with_name("comparison.html"),
        "Comparison (CSV)": recipe.compare.output,
        "Comparison (JSON)": recipe.compare.output.with_name("comparison.json"),
    }
    return [(name, path.relative_to(folder).as_posix()) for name, path in named.items()]
