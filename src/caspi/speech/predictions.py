"""Predictions on disk while they are made: one line per finished batch, so that a killed run loses no batch."""

from collections.abc import Mapping
from pathlib import Path

from caspi.records import Prediction, Record, Utterance, read_jsonl, write_atomically

PROGRESS = "progress.jsonl"


class FinishedBatch(Record):
    """One line of progress.jsonl."""

    predictions: list[Prediction]
    seconds: float
    """Time it took to load and transcribe the clips."""


def finished(output: Path) -> dict[tuple[str, str], Prediction]:
    """Predictions in progress.jsonl by test set and id; failed clips are not finished."""
    rows = (row for batch in read_progress(output) for row in batch.predictions)
    return {(row.test_set, row.id): row for row in rows if row.finish_reason != "error"}


def read_progress(output: Path) -> list[FinishedBatch]:
    """The finished batches; the torn last line of a run that was killed while writing is cut off.

    Raises:
        ValueError: another line is damaged.
    """
    path = output / PROGRESS
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        write_atomically(path, whole)
    return list(read_jsonl(path, FinishedBatch))


def collect(output: Path, test_sets: Mapping[str, list[Utterance]]) -> tuple[list[Prediction], dict[str, float]]:
    """All predictions in the order of the test sets, and the seconds that each set took."""
    batches = read_progress(output)
    latest = {(row.test_set, row.id): row for batch in batches for row in batch.predictions}
    seconds = dict.fromkeys(test_sets, 0.0)
    for batch in batches:
        seconds[batch.predictions[0].test_set] += batch.seconds
    keys = [(name, utterance.id) for name, utterances in test_sets.items() for utterance in utterances]
    return [latest[key] for key in keys], seconds
