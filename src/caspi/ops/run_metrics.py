"""metrics.jsonl and run.json of a training run, read while it writes them."""

import json
from collections.abc import Mapping
from datetime import datetime
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from caspi.ops.criteria import read_object

METRICS_FILE = "metrics.jsonl"
RUN_FILE = "run.json"
RATE_KEY = "learning_rate_"
DOMAIN_KEY = "eval_wer_"

Entry = dict[str, Any]


class Metrics(NamedTuple):
    entries: list[Entry]
    """In the order they were written; each has a `step`."""
    num_damaged_lines: int
    """Whole lines that are no entry."""
    has_torn_line: bool
    """The last line has no end: it is being written, or the run was killed while writing it."""

    def training(self) -> list[Entry]:
        return [entry for entry in self.entries if "loss" in entry]

    def evaluations(self) -> list[Entry]:
        """One for each step, the last one: a resumed run may evaluate a step again."""
        return list({entry["step"]: entry for entry in self.entries if "eval_wer" in entry}.values())

    def alerts(self) -> list[Entry]:
        return [entry for entry in self.entries if "alert" in entry]


class Band(NamedTuple):
    """The optimizer steps of a stage."""

    name: str
    first_step: int
    """Steps done when it begins."""
    last_step: int


class Course(NamedTuple):
    """What the whole run is going to be."""

    steps_per_epoch: int
    num_epochs: int
    bands: list[Band]

    @property
    def num_steps(self) -> int:
        return self.steps_per_epoch * self.num_epochs


class RunFiles(NamedTuple):
    folder: Path
    record: Mapping[str, Any]
    """run.json; empty while the run has not written it."""
    metrics: Metrics


def read_run(folder: Path) -> RunFiles:
    """
    Raises:
        ValueError: there is no training run, or its run.json is damaged.
    """
    if not any((folder / name).is_file() for name in (RUN_FILE, METRICS_FILE, "training.log")):
        raise ValueError(f"{folder} holds no training run: expected run.json, as caspi train --output-dir writes it")
    return RunFiles(folder, read_object(folder / RUN_FILE), read_metrics(folder / METRICS_FILE))


def read_metrics(path: Path) -> Metrics:
    """Every line that is an entry; what is not is counted."""
    if not path.is_file():
        return Metrics([], 0, False)
    *lines, rest = path.read_bytes().split(b"\n")
    found = [parse_entry(line) for line in lines if line.strip()]
    entries = [entry for entry in found if entry is not None]
    return Metrics(entries, len(found) - len(entries), bool(rest))


def parse_entry(line: bytes) -> Entry | None:
    """None: not a JSON object with a step, or a number in it is not finite."""
    try:
        entry = json.loads(line, parse_constant=refuse_constant)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and isinstance(entry.get("step"), int) else None


def refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number of JSON")


def course_of(run: RunFiles) -> Course | None:
    """From the recipe and the newest entry; None until both say how long an epoch is."""
    stages = run.record.get("recipe", {}).get("train", {}).get("stages", [])
    dated = [entry for entry in run.metrics.entries if entry.get("epoch")]
    if not stages or not dated:
        return None
    steps_per_epoch = round(dated[-1]["step"] / dated[-1]["epoch"])
    ends = list(accumulate(stage["num_epochs"] for stage in stages))
    bands = [
        Band(stage["name"], (end - stage["num_epochs"]) * steps_per_epoch, end * steps_per_epoch)
        for stage, end in zip(stages, ends, strict=True)
    ]
    return Course(steps_per_epoch, ends[-1], bands)


def last_write(run: RunFiles) -> float:
    """Time of the newest thing the run wrote, in seconds since 1970: what the files say, which copying does not change."""
    said = [entry["time"] for entry in run.metrics.entries[-1:] if "time" in entry]
    said += [seconds_since_1970(text) for text in (run.record.get("updated"), *run.record.get("starts", [])) if text]
    return max(said) if said else max(path.stat().st_mtime for path in run.folder.iterdir())


def seconds_since_1970(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def learning_rates(entry: Entry) -> dict[str, float]:
    """By layer group."""
    return {key.removeprefix(RATE_KEY): value for key, value in entry.items() if key.startswith(RATE_KEY)}


def domain_rates(entry: Entry) -> dict[str, float]:
    """eval_wer by domain, as fractions."""
    return {key.removeprefix(DOMAIN_KEY): value for key, value in entry.items() if key.startswith(DOMAIN_KEY)}


def best_evaluation(evaluations: list[Entry]) -> Entry | None:
    """As training chooses: lowest eval_wer, then lowest eval_loss."""
    return min(evaluations, key=lambda entry: (entry["eval_wer"], entry.get("eval_loss", 0.0)), default=None)
