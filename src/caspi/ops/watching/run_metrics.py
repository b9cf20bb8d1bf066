"""metrics.jsonl and run.json of a training run, read while it writes them."""

import json
import sys
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from caspi.config import Count, Positive, one_line
from caspi.ops.comparison.criteria import read_object

METRICS_FILE = "metrics.jsonl"
RUN_FILE = "run.json"
RATE_KEY = "learning_rate_"
DOMAIN_KEY = "eval_wer_"
NUMBERS = frozenset(
    {"time", "epoch", "loss", "grad_norm", "grad_norm_max", "samples_per_second", "data_wait_fraction"}
) | {
    "gpu_memory_gib",
    "gpu_memory_fraction",
}

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


class Recorded(BaseModel):
    """Part of run.json; what is not needed here may be there, also from other versions of caspi."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)


class RecordedStage(Recorded):
    name: str
    num_epochs: Count


class RecordedTrain(Recorded):
    stages: list[RecordedStage] = []
    price: Positive | None = None
    max_budget_usd: Positive | None = None


class RecordedPlan(Recorded):
    price: Positive | None = None


class RecordedRecipe(Recorded):
    train: RecordedTrain = RecordedTrain()
    plan: RecordedPlan = RecordedPlan()


class RecordedGate(Recorded):
    decision: str | None = None
    low_quality_percentage: float | None = None
    accepted_risk: str | None = None


class RecordedGpu(Recorded):
    name: str


class RecordedHardware(Recorded):
    gpus: list[RecordedGpu] = []


class RunRecord(Recorded):
    """run.json as far as it is needed to watch; all defaults while the run has not written it."""

    state: str | None = None
    stage: str | None = None
    exit_code: int | None = None
    host: str | None = None
    """Of the training process, as `provenance.host_id` has it."""
    updated: AwareDatetime | None = None
    starts: list[AwareDatetime] = []
    steps_done: int = 0
    """At the newest save since the last start."""
    train_seconds: float = 0.0
    """Up to there, all starts together."""
    paid_seconds: float | None = None
    """Up to `updated`, all starts together, loading included; None: an older run, which has only `train_seconds`."""
    num_processes: Count = 1
    hardware: RecordedHardware = RecordedHardware()
    gflop_per_sample: dict[str, Positive] = {}
    """Of a mean utterance, by stage."""
    wandb_url: str | None = None
    wandb_run_id: str | None = None
    commit: str | None = None
    versions: dict[str, str] = {}
    gate: RecordedGate = RecordedGate()
    recipe: RecordedRecipe = RecordedRecipe()

    def last_start(self) -> float:
        """Seconds since 1970; 0 while it is not known."""
        return self.starts[-1].timestamp() if self.starts else 0.0


class RunFiles(NamedTuple):
    folder: Path
    record: RunRecord
    raw_recipe: Any
    """The resolved recipe as run.json has it."""
    metrics: Metrics


def read_run(folder: Path) -> RunFiles:
    """
    Raises:
        ValueError: there is no training run, or its run.json is damaged.
    """
    if not any((folder / name).is_file() for name in (RUN_FILE, METRICS_FILE, "training.log")):
        raise ValueError(f"{folder} holds no training run: expected run.json, as caspi train --output-dir writes it")
    content = read_object(folder / RUN_FILE)
    try:
        record = RunRecord.model_validate(content)
    except ValidationError as error:
        raise ValueError(f"{folder / RUN_FILE}: {one_line(error)}") from None
    return RunFiles(folder, record, content.get("recipe"), read_metrics(folder / METRICS_FILE))


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
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) and is_sound(entry) else None


def is_sound(entry: Entry) -> bool:
    """A step, and numbers where the views expect numbers."""
    numbers = [value for key, value in entry.items() if key in NUMBERS or key.startswith(("eval_", RATE_KEY))]
    sound = all(isinstance(value, int | float) and abs(value) < sys.float_info.max for value in numbers)
    return sound and isinstance(entry.get("step"), int) and isinstance(entry.get("alert", ""), str)


def refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number of JSON")


def course_of(run: RunFiles) -> Course | None:
    """From the recipe and the newest entry; None until both say how long an epoch is."""
    stages = run.record.recipe.train.stages
    dated = [entry for entry in run.metrics.entries if entry["step"] > 0 and entry.get("epoch")]
    if not stages or not dated:
        return None
    steps_per_epoch = round(dated[-1]["step"] / dated[-1]["epoch"])
    ends = list(accumulate(stage.num_epochs for stage in stages))
    bands = [
        Band(stage.name, (end - stage.num_epochs) * steps_per_epoch, end * steps_per_epoch)
        for stage, end in zip(stages, ends, strict=True)
    ]
    return Course(steps_per_epoch, ends[-1], bands)


def last_write(run: RunFiles) -> float:
    """Time of the newest thing that the run wrote, in seconds since 1970, as the files say: copying keeps that."""
    said = [entry["time"] for entry in run.metrics.entries[-1:] if "time" in entry]
    said += [moment.timestamp() for moment in (run.record.updated, *run.record.starts) if moment is not None]
    return max(said) if said else max(path.stat().st_mtime for path in run.folder.iterdir())


def learning_rates(entry: Entry) -> dict[str, float]:
    """By layer group."""
    return {key.removeprefix(RATE_KEY): value for key, value in entry.items() if key.startswith(RATE_KEY)}


def domain_rates(entry: Entry) -> dict[str, float]:
    """eval_wer by domain, as fractions."""
    return {key.removeprefix(DOMAIN_KEY): value for key, value in entry.items() if key.startswith(DOMAIN_KEY)}


def best_evaluation(evaluations: list[Entry]) -> Entry | None:
    """As training chooses: lowest eval_wer, then lowest eval_loss."""
    return min(evaluations, key=lambda entry: (entry["eval_wer"], entry.get("eval_loss", 0.0)), default=None)
