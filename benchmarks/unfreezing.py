"""Does unfreezing the audio layers in stage A help? B then A against B alone, with equal optimizer steps.

    python -m benchmarks.unfreezing --seeds 1 2 3 4 5 --output unfreezing

For every seed a corpus of its own is drawn (training speakers, sentences, noise), both arms train on it with the real
`caspi train` from the tiny model that ships, with the demo's recipe, the same order of the data and the same number of
steps; the last checkpoint of each is scored on test sets without any sentence or speaker of the training. The arms
differ in one thing: whether stage A also trains the top audio layers. What is finished is not done again.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from scipy.special import stdtrit

from benchmarks.measure import markdown_table, write_result
from caspi.config import Recipe, load_recipe
from caspi.model.assets import TINY_BASE
from caspi.model.checkpoints.checkpoint import load_asr
from caspi.model.transcribers.local import transcribe
from caspi.ops.progress import track
from caspi.records import RunFailed, dump_json, read_manifest, write_atomically
from caspi.speech.corpora.audio import load_audio
from caspi.speech.scoring.score import wer
from caspi.speech.synthetic import synth_corpus as corpora

RECIPE = Path(__file__).parents[1] / "recipes" / "demo.toml"
ARMS = ("B then A", "B alone")
NOISY, CLEAN = "eval-whatsapp", "eval-d1"
NUM_TEST_UTTERANCES = 300
"""Of each test set."""
CONFIDENCE_FRACTION = 0.95
ON_STOCK_MODEL = ("--step", "padded")
"""The step is the stock class's; the question is not about speed."""
WITHOUT_NEWS = ("--eval-steps", "100000", "--max-wer-utterances", "8", "--final-model", "last", "--logging-steps", "50")
"""No checkpoint is chosen by its score: both arms end at the same step."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.unfreezing", description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--output", type=Path, default=Path("unfreezing"))
    given = parser.parse_args(arguments)
    recipe = load_recipe(RECIPE)
    arms = [(seed, arm) for seed in given.seeds for arm in ARMS]
    rows = [
        measure(recipe, seed, arm, given.output / f"seed-{seed}") for seed, arm in track(arms, len(arms), "unfreezing")
    ]
    result = {"rows": rows, "differences": [difference(rows, name) for name in (NOISY, CLEAN)]}
    write_result(given.output / "unfreezing.json", result)
    print("\n".join(report(result)))
    return 0


def measure(recipe: Recipe, seed: int, arm: str, folder: Path) -> dict[str, Any]:
    """Error rates (fractions) of one arm on one seed's corpus."""
    output = folder / arm.replace(" ", "-")
    done = output / "scores.json"
    if not done.exists():
        manifests = make_corpora(recipe, seed, folder)
        train(recipe, seed, arm, manifests["train"], output)
        scores = {name: error_rate(recipe, output, manifests[name]) for name in (NOISY, CLEAN)}
        steps = json.loads((output / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]
        write_atomically(done, dump_json({"seed": seed, "arm": arm, "steps": steps, **scores}) + "\n")
    scores = json.loads(done.read_text(encoding="utf-8"))
    return dict(scores)


def make_corpora(recipe: Recipe, seed: int, folder: Path) -> dict[str, Path]:
    """Manifests of the training corpus and the test sets, by name."""
    demo = recipe.demo
    training = corpora.plan_training_corpus(
        demo.num_train_utterances,
        demo.num_validation_utterances,
        seed,
        vocabulary_size=demo.vocabulary_size,
        num_words=demo.num_words,
        domain_shares=demo.train_domain_shares,  # type: ignore[arg-type]
    )
    tests = corpora.plan_test_sets(NUM_TEST_UTTERANCES, seed, vocabulary_size=demo.vocabulary_size)
    plans = {"train": training, NOISY: tests[NOISY], CLEAN: tests[CLEAN]}
    manifests = {name: folder / "data" / name / "manifest.jsonl" for name in plans}
    for name, planned in plans.items():
        if not manifests[name].exists():
            rendered = corpora.write_corpus(folder / "corpora" / name, planned, demo.speech, num_processes=1)
            caspi("prepare", "--manifest", str(rendered), "--output", str(manifests[name].parent))
    return manifests


def train(recipe: Recipe, seed: int, arm: str, manifest: Path, output: Path) -> None:
    """`caspi train` with the demo's recipe; in the arm `B alone` stage A trains what stage B does, at A's own rates."""
    stages = {"stages": [stage.model_dump(mode="json") for stage in recipe.train.stages]}
    if arm == "B alone":
        for stage in stages["stages"]:
            stage["learning_rates"].pop("audio_top", None)
    config = recipe.train.model_copy(
        update={"manifest": manifest, "base_model": str(TINY_BASE), "accept_risk": "an experiment", "yes": True}
    )
    changed = type(config).model_validate(config.model_dump(mode="json") | stages)
    path = output.parent / f"{output.name}.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(as_toml(changed.model_dump(mode="json", exclude_defaults=True)), encoding="utf-8")
    flags = ("--recipe", str(path), "--output-dir", str(output), "--seed", str(seed))
    caspi("train", *flags, "--gate-report", str(output.parent / "none"), *ON_STOCK_MODEL, *WITHOUT_NEWS)


def as_toml(train: dict[str, Any]) -> str:
    """The section `train` of a recipe, from plain values and stages."""
    lines = ["[train]", *(f"{key} = {json.dumps(value)}" for key, value in train.items() if key != "stages")]
    for stage in train["stages"]:
        rates = ", ".join(f"{group} = {rate}" for group, rate in stage["learning_rates"].items())
        lines += ["[[train.stages]]", f'name = "{stage["name"]}"', f"num_epochs = {stage['num_epochs']}"]
        lines.append(f"learning_rates = {{ {rates} }}")
    return "\n".join(lines) + "\n"


def caspi(*arguments: str) -> None:
    """
    Raises:
        RunFailed: the step did not end with 0.
    """
    done = subprocess.run([sys.executable, "-m", "caspi", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RunFailed(f"caspi {' '.join(arguments)} ended with {done.returncode}: {done.stderr.strip()[-500:]}")


def error_rate(recipe: Recipe, model_folder: Path, manifest: Path) -> float:
    """WER (fraction, profile `ivrit`) of a model on a whole manifest, decoded as `caspi train` evaluates."""
    model, processor = load_asr(str(model_folder), torch.float32)
    utterances = read_manifest(manifest)
    audios = [load_audio(item.audio_filepath, item.offset, item.duration) for item in utterances]
    found = transcribe(
        model,
        processor,
        audios,
        language=recipe.language.name,
        batch_size=recipe.train.eval_batch_size,
        max_new_tokens=recipe.train.max_new_tokens,
    )
    return wer([item.text for item in utterances], [one.text for one in found], "ivrit")


def difference(rows: Sequence[dict[str, Any]], test_set: str) -> dict[str, Any]:
    """Mean over seeds of WER(B then A) - WER(B alone), with Student's interval of the mean."""
    by_seed = {(row["seed"], row["arm"]): row[test_set] for row in rows}
    seeds = sorted({row["seed"] for row in rows})
    values = [by_seed[seed, ARMS[0]] - by_seed[seed, ARMS[1]] for seed in seeds]
    mean = statistics.mean(values)
    half = math.nan
    if len(values) > 1:
        quantile = float(stdtrit(len(values) - 1, 0.5 + CONFIDENCE_FRACTION / 2))
        half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    interval = None if math.isnan(half) else [mean - half, mean + half]
    return {"test_set": test_set, "mean": mean, "interval": interval, "num_lower": sum(value < 0 for value in values)}


def report(result: dict[str, Any]) -> Iterator[str]:
    header = ("seed", "arm", "steps", f"WER {NOISY}", f"WER {CLEAN}")
    rows = [[row["seed"], row["arm"], row["steps"], f"{row[NOISY]:.2%}", f"{row[CLEAN]:.2%}"] for row in result["rows"]]
    yield markdown_table(header, rows)
    num_seeds = len(result["rows"]) // len(ARMS)
    for one in result["differences"]:
        low_high = one["interval"]
        interval = f", 95 % interval {100 * low_high[0]:+.2f} to {100 * low_high[1]:+.2f}" if low_high else ""
        yield (
            f"{one['test_set']}: B then A minus B alone {100 * one['mean']:+.2f} points{interval}; "
            f"lower in {one['num_lower']} of {num_seeds} seeds"
        )


if __name__ == "__main__":
    sys.exit(main())
