"""Predictions on disk while they are made: one line per finished batch, so that a killed run loses no batch."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from caspi.records import Prediction, Record, Utterance, read_jsonl, write_atomically

PROGRESS = "progress.jsonl"
MAX_NAMED = 5
"""Failed clips that the last lines of a run name."""


class FinishedBatch(Record):
    """One line of progress.jsonl."""

    predictions: list[Prediction]
    seconds: float
    """Time it took to load and transcribe the clips."""
    elapsed_seconds: float
    """Time since the line before; less than `seconds` where batches are on their way at the same time."""


class Timing(NamedTuple):
    """Of a test set, in seconds, over all runs that it took."""

    transcribing: float
    """Sum over the batches."""
    elapsed: float


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


def collect(output: Path, test_sets: Mapping[str, list[Utterance]]) -> tuple[list[Prediction], dict[str, Timing]]:
    """All predictions in the order of the test sets, and the time that each set took."""
    batches = read_progress(output)
    latest = {(row.test_set, row.id): row for batch in batches for row in batch.predictions}
    timings = dict.fromkeys(test_sets, Timing(0.0, 0.0))
    for batch in batches:
        name = batch.predictions[0].test_set
        before = timings[name]
        timings[name] = Timing(before.transcribing + batch.seconds, before.elapsed + batch.elapsed_seconds)
    keys = [(name, utterance.id) for name, utterances in test_sets.items() for utterance in utterances]
    return [latest[key] for key in keys], timings


def missing(predictions: Sequence[Prediction]) -> Iterator[str]:
    """What has no text, why, and what to do about it."""
    failed = [row for row in predictions if row.finish_reason == "error"]
    if not failed:
        return
    reasons = Counter((row.error or "").partition(":")[0] for row in failed)
    yield (
        f"MISSING: {len(failed)} of {len(predictions)} clips have no text "
        f"({', '.join(f'{count} {reason}' for reason, count in reasons.most_common())}); all their words count as "
        "deleted. The same command again tries only these."
    )
    for row in failed[:MAX_NAMED]:
        yield f"  {row.test_set}/{row.id}: {row.error}"
    if len(failed) > MAX_NAMED:
        yield f"  and {len(failed) - MAX_NAMED} more in predictions.jsonl"
