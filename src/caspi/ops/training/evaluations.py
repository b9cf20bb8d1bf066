"""Checkpoints of a training run by what they scored while training.

The same question as the deployment guide's line: `cat RUN/checkpoint-*/trainer_state.json | jq -r '.log_history[] |
select(.eval_wer) | "\\(.eval_wer) \\(.step)"' | sort -n | head -1`; and, since its answer may name a checkpoint that
rotation has deleted or a crash has torn, the best one that can be used.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from caspi.files import read_object
from caspi.ops.training.artifacts import Marker, checkpoint_folders, newest_checkpoint, read_marker, step_of

STATE_FILE = "trainer_state.json"


class Evaluation(NamedTuple):
    """One line of the guide's command."""

    eval_wer: float
    """Fraction."""
    eval_loss: float
    """Decides between equal rates, as in training; infinite where it was not logged."""
    step: int


class EvaluatedCheckpoint(NamedTuple):
    """A complete checkpoint and what it scored."""

    folder: Path
    step: int
    eval_wer: float | None
    """Fraction; None: it was not evaluated."""
    marker: Marker


class Ranking(NamedTuple):
    best: list[EvaluatedCheckpoint]
    """The asked number of them, best first; fewer if there are no more."""
    passed_over: list[str]
    """Better evaluations whose checkpoint cannot be used, with the reason."""


def evaluations(run_folder: Path) -> list[Evaluation]:
    """Every evaluation that any checkpoint of the run remembers, once, best first.

    Raises:
        ValueError: a state file is damaged, or an error rate is not a number.
    """
    found = {entry for folder in checkpoint_folders(run_folder) for entry in evaluations_in(folder / STATE_FILE)}
    return sorted(found)


def evaluations_in(path: Path) -> Iterator[Evaluation]:
    if not path.is_file():
        return
    try:
        state = read_object(path)
        entries = [entry for entry in state["log_history"] if entry.get("eval_wer") is not None]
        rows = [(float(entry["eval_wer"]), float(entry.get("eval_loss", math.inf)), entry["step"]) for entry in entries]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}): no checkpoint can be chosen") from None
    for wer, loss, step in rows:
        if not math.isfinite(wer):
            raise ValueError(f"{path}: eval_wer at step {step} is {wer}, expected a number")
        yield Evaluation(wer, loss, int(step))


def rank_checkpoints(run_folder: Path, num_wanted: int = 1) -> Ranking:
    """The complete checkpoints with the lowest eval_wer.

    Raises:
        ValueError: the run has no evaluated checkpoint that is complete.
    """
    best: list[EvaluatedCheckpoint] = []
    passed_over: list[str] = []
    for entry in evaluations(run_folder):
        folder = run_folder / f"checkpoint-{entry.step}"
        if len(best) == num_wanted:
            break
        if any(one.step == entry.step for one in best):
            continue
        try:
            best.append(EvaluatedCheckpoint(folder, entry.step, entry.eval_wer, read_marker(folder)))
        except ValueError as error:
            passed_over.append(f"step {entry.step} (eval_wer {entry.eval_wer:.2%}): {why_not(folder, error)}")
    if not best:
        raise ValueError(no_checkpoint(run_folder, passed_over))
    return Ranking(best, passed_over)


def why_not(folder: Path, error: ValueError) -> str:
    return str(error) if folder.is_dir() else f"{folder.name} was deleted by rotation"


def no_checkpoint(run_folder: Path, passed_over: list[str]) -> str:
    if not run_folder.is_dir():
        return f"run folder {run_folder} does not exist"
    if passed_over:
        return f"{run_folder} has no usable checkpoint: {'; '.join(passed_over)}"
    return f"{run_folder} has no evaluated checkpoint: expected checkpoint-STEP/{STATE_FILE} with eval_wer"


def checkpoint_at(run_folder: Path, step: int) -> EvaluatedCheckpoint:
    """
    Raises:
        ValueError: there is no such checkpoint, or it is not complete.
    """
    folder = run_folder / f"checkpoint-{step}"
    if not folder.is_dir():
        steps = ", ".join(str(step_of(one)) for one in checkpoint_folders(run_folder)) or "none"
        raise ValueError(f"{run_folder} has no checkpoint of step {step}; steps there: {steps}")
    try:
        return with_score(run_folder, folder, read_marker(folder))
    except ValueError as error:
        raise ValueError(f"{folder} cannot be used: {error}") from None


def last_checkpoint(run_folder: Path) -> EvaluatedCheckpoint:
    """
    Raises:
        ValueError: the run has no complete checkpoint.
    """
    newest, torn = newest_checkpoint(run_folder)
    if newest is None:
        raise ValueError(no_checkpoint(run_folder, [f"{folder.name}: {problem}" for folder, problem in torn]))
    return with_score(run_folder, newest.folder, newest.marker)


def with_score(run_folder: Path, folder: Path, marker: Marker) -> EvaluatedCheckpoint:
    scores = [entry.eval_wer for entry in evaluations(run_folder) if entry.step == marker.step]
    return EvaluatedCheckpoint(folder, marker.step, scores[0] if scores else None, marker)
