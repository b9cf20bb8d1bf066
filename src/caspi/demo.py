"""The whole flow on synthetic Hebrew speech and tiny real models: no network, no GPU.

Every step is the one a user calls; what the demo adds is the corpora and, for each answer, what it must be.
"""

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from caspi import rehearsal
from caspi.config import Demo, PlantedAudit, Recipe, load_recipe
from caspi.records import ExitCode, RunFailed

Section = TypeVar("Section")

MARKER = ".caspi-demo"
"""Says that a folder is the demo's, so that the next demo may clear it."""
REVIEWER = "caspi demo"
NUM_AUDITS_AT_ONCE = 2
"""Beside the training, which ends first and leaves them both cores."""
PLANNED_FOLDER = Path("demo")
"""Where the recipe's paths lie; `--output` moves them."""


def run(recipe: Recipe) -> int:
    """Run every step and check every answer.

    Raises:
        RunFailed: a step gave another answer than the planted data demand.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # two threads are several times slower on models this small
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if recipe.demo.rehearse:
        folder = recipe.demo.output / "rehearsal"
        clear_folder(folder)
        return rehearsal.run(shipped("rehearsal.toml"), folder)
    recipe = demo_recipe(recipe)
    clear_folder(recipe.demo.output)
    watch = StopWatch()
    with watch.step("tiny Round 1 model"):
        provide_base(recipe)
    with watch.step("synthetic speech"):
        render_corpora(recipe)
    with watch.step("prepare"):
        prepare_corpora(recipe)
    with watch.step("Phase 0 of the training corpus, sign-off"):
        expect("audit", recipe, ExitCode.DONE)
        expect("gate", with_section(recipe, "gate", signoff=REVIEWER), ExitCode.DONE)
    with ProcessPoolExecutor(NUM_AUDITS_AT_ONCE, get_context("spawn")) as beside:
        audits = [(audit, beside.submit(audit_planted, recipe, audit)) for audit in recipe.demo.audits]
        with watch.step("training, strategies B and A; planted audits beside it"):
            expect("train", recipe, ExitCode.DONE)
            answers = {audit.name: answer(audit, future) for audit, future in audits}
    with watch.step("evaluation and comparison"):
        expect("compare", recipe, ExitCode.DONE, *(() if recipe.demo.round2_must_win else (ExitCode.NO,)))
    return finish(recipe, answers, watch)


def clear_folder(folder: Path) -> None:
    """Start anew where an earlier demo ran; touch nothing else.

    Raises:
        ValueError: the folder holds something that no demo wrote.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / MARKER).exists():
        raise ValueError(f"{folder} is not empty and was not written by caspi demo; choose another --output")
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / MARKER).touch()


class StopWatch:
    """Prints what happens and how long it took."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        begin = time.monotonic()
        print(f"\n=== {name} ===", flush=True)
        yield
        self.seconds[name] = time.monotonic() - begin
        print(f"=== {name}: {self.seconds[name]:.0f} s", flush=True)

    def total(self) -> float:
        return time.monotonic() - self.start


def demo_recipe(recipe: Recipe) -> Recipe:
    """The demo's recipe with all paths in the output folder; a recipe the user gave is taken as it is."""
    if recipe.model_copy(update={"demo": Demo()}) == Recipe():
        planned = load_recipe(shipped("demo.toml"))
        changed = {name: getattr(recipe.demo, name) for name in recipe.demo.model_fields_set}
        recipe = planned.model_copy(update={"demo": planned.demo.model_copy(update=changed)})
    output = recipe.demo.output
    moved = move_paths(recipe.model_dump(mode="json"), str(output))
    return Recipe.model_validate(moved)


def shipped(name: str) -> Path:
    """A recipe of the package, or of the working copy that it runs from."""
    path = Path(__file__).parent / "recipes" / name
    return path if path.exists() else Path(__file__).parents[2] / "recipes" / name


def move_paths(value: Any, output: str) -> Any:
    """Replace the leading `demo` of every path in a dumped recipe."""
    if isinstance(value, dict):
        return {key: move_paths(item, output) for key, item in value.items()}
    if isinstance(value, list):
        return [move_paths(item, output) for item in value]
    if isinstance(value, str):
        name, separator, path = value.rpartition("=")
        if path == str(PLANNED_FOLDER) or path.startswith(f"{PLANNED_FOLDER}/"):
            return f"{name}{separator}{output}{path.removeprefix(str(PLANNED_FOLDER))}"
    return value


def with_section(recipe: Recipe, section: str, **changes: Any) -> Recipe:
    """The recipe with some fields of one section changed; the changes are validated."""
    values = getattr(recipe, section).model_dump(mode="json") | changes
    return recipe.model_copy(update={section: type(getattr(recipe, section)).model_validate(values)})


def provide_base(recipe: Recipe) -> None:
    """The checkpoint that stands for Round 1: good on clean speech, poor on noisy speech."""
    from caspi.model.assets import TINY_BASE

    folder = Path(recipe.compare.round1_model)
    if recipe.demo.rebuild_base:
        from caspi.model import tiny  # torch: seconds that a copy does not need

        tiny.rebuild_base(folder)
    else:
        shutil.copytree(TINY_BASE, folder)
    print(f"{folder} holds the tiny Round 1 model")


def render_corpora(recipe: Recipe) -> None:
    """Training corpus, test sets and the small audit corpora, each with the truth beside it."""
    from caspi.speech.synthetic import synth_corpus as corpora
    from caspi.speech.synthetic.defects import plant_defects

    demo = recipe.demo
    how = {"language": recipe.language, "settings": demo.speech}
    words: dict[str, Any] = how | {"vocabulary_size": demo.vocabulary_size}
    training = corpora.plan_training_corpus(
        demo.num_train_utterances,
        demo.num_validation_utterances,
        demo.seed,
        num_words=demo.num_words,
        domain_shares=demo.train_domain_shares,  # type: ignore[arg-type]
        **words,
    )
    plans = {"train": plant_defects(training, demo.audits[0].defect_fraction, demo.seed)}
    plans |= corpora.plan_test_sets(demo.num_test_utterances, demo.seed, **words)
    for fraction in {audit.defect_fraction for audit in demo.audits}:
        plans[corpus_name(fraction)] = corpora.plan_audit_corpus(
            demo.num_audit_utterances,
            fraction,
            demo.seed,
            domain_shares=demo.audit_domain_shares,  # type: ignore[arg-type]
            **how,  # type: ignore[arg-type]
        )
    for name, planned in plans.items():
        corpora.write_corpus(demo.output / "corpora" / name, planned, demo.speech, progress=progress_lines(name))


def progress_lines(name: str) -> Callable[[int, int], None]:
    """A callback that prints a line now and then, and one at the end."""
    from caspi.ops.progress import SECONDS_BETWEEN_LINES, progress_text

    start = last = time.monotonic()

    def advance(num_done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if num_done == total or now - last >= SECONDS_BETWEEN_LINES:
            last = now
            print(f"rendering {name}: {progress_text(num_done, total, now - start)}", flush=True)

    return advance


def corpus_name(defect_fraction: float) -> str:
    return f"audit-{100 * defect_fraction:g}-percent"


def prepare_corpora(recipe: Recipe) -> None:
    """Each corpus becomes a manifest; corrupt files end in its quarantine."""
    output = recipe.demo.output
    expect("prepare", recipe, ExitCode.DONE)
    for corpus in sorted((output / "corpora").iterdir()):
        if corpus.name != "train":
            changes = {"manifest": [str(corpus / "corpus.jsonl")], "output": str(output / "data" / corpus.name)}
            expect("prepare", with_section(recipe, "prepare", **changes), ExitCode.DONE)


def audit_planted(recipe: Recipe, audit: PlantedAudit) -> tuple[str, str]:
    """Audit one planted corpus in a process of its own; returns the decision and what was printed."""
    output = recipe.demo.output
    manifest = output / "data" / corpus_name(audit.defect_fraction) / "manifest.jsonl"
    changes = {"manifest": str(manifest), "output": str(output / "audits" / audit.name), "backend": audit.backend}
    printed = StringIO()
    with redirect_stdout(printed):
        run_step("audit", with_section(recipe, "audit", **changes, sample_rate=1.0, num_samples=None, num_processes=1))
    report = read_report(output / "audits" / audit.name)
    invalid = report["decision_code"] == "AUDIT_INVALID"
    return ("AUDIT_INVALID" if invalid else str(report["decision"])), printed.getvalue()


def read_report(folder: Path) -> dict[str, Any]:
    import json

    report: dict[str, Any] = json.loads((folder / "alignment_report.json").read_text(encoding="utf-8"))
    return report


def answer(audit: PlantedAudit, future: "Future[tuple[str, str]]") -> str:
    """Print what an audit said and hold it against what was planted."""
    decision, printed = future.result()
    print(f"\n--- audit {audit.name}: {audit.defect_fraction:.0%} planted, backend {audit.backend} ---\n{printed}")
    if decision != audit.expected:
        raise RunFailed(f"audit {audit.name} came out {decision}; the planted data demand {audit.expected}")
    return decision


def expect(step: str, recipe: Recipe, *codes: int) -> None:
    found = run_step(step, recipe)
    if found not in codes:
        raise RunFailed(f"step {step} ended with exit code {found}; the demo's data demand {min(codes)}")


def run_step(step: str, recipe: Recipe) -> int:
    import importlib

    module_run: Callable[[Recipe], int] = importlib.import_module(f"caspi.{step}").run
    code = int(module_run(recipe))
    sys.stdout.flush()
    return code


def finish(recipe: Recipe, answers: Mapping[str, str], watch: StopWatch) -> int:
    from caspi.report import write_index
    from caspi.watch import write_page

    write_page(recipe.train.output_dir, recipe.watch)
    page = write_index(recipe)
    print("\nAudits with known answers:")
    for audit in recipe.demo.audits:
        planted = f"{audit.defect_fraction:.0%} planted, {audit.backend}"
        print(f"  {audit.name:16} {planted:24} {answers[audit.name]}")
    print("\nTime:")
    for name, seconds in watch.seconds.items():
        print(f"  {seconds:5.0f} s  {name}")
    total = watch.total()
    print(f"  {total:5.0f} s  in all")
    if total > recipe.demo.seconds_budget:
        print(f"WARNING: that is more than the budget of {recipe.demo.seconds_budget:.0f} s; is the machine busy?")
    print(f"\nOpen {page} in a browser; everything else lies in {recipe.demo.output}/")
    return ExitCode.DONE
