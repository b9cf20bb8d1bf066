"""The guide's success criteria, each met, missed or `cannot tell`, with the file that says so.

A criterion about an error rate is met or missed only if the whole bootstrap interval lies on that side of the bound. A
criterion without evidence is `cannot tell`, never met.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from caspi import files
from caspi.config import Compare, CriteriaThresholds
from caspi.records import ComparedControl, ComparedSet, Criterion

Level = Literal["must", "should", "nice"]
Outcome = Literal["met", "missed", "cannot tell"]


class TrainingEvidence(NamedTuple):
    """What a training run left behind; empty where there is nothing."""

    folder: Path
    run: dict[str, Any]
    """run.json"""
    state: dict[str, Any]
    """trainer_state.json"""

    @property
    def run_file(self) -> str:
        return str(self.folder / "run.json")

    @property
    def state_file(self) -> str:
        return str(self.folder / "trainer_state.json")

    def logged(self, key: str) -> list[tuple[float, float]]:
        """(completed epochs, value) of each log entry that has the key."""
        return [(entry["epoch"], entry[key]) for entry in self.state.get("log_history", []) if key in entry]

    def manifest(self) -> Path | None:
        """What it was trained on, where that still is."""
        recipe = self.run.get("recipe", {})
        path = recipe.get("train", recipe).get("manifest")
        return Path(path) if isinstance(path, str) and Path(path).is_file() else None

    def stages(self) -> list[dict[str, Any]]:
        recipe = self.run.get("recipe", {})
        return list(recipe.get("train", recipe).get("stages", []))


def read_training_evidence(folder: Path) -> TrainingEvidence:
    """
    Raises:
        ValueError: the folder is missing, or one of its files is damaged.
    """
    if not folder.is_dir():
        raise ValueError(f"training run {folder} does not exist")
    return TrainingEvidence(folder, read_object(folder / "run.json"), read_object(folder / "trainer_state.json"))


def read_object(path: Path) -> dict[str, Any]:
    try:
        return files.read_object(path)
    except FileNotFoundError:
        return {}


def judge(
    rows: Sequence[ComparedSet],
    section: Compare,
    comparison_file: str,
    audit_report: Path,
    proceed_below_pct: float,
    training: TrainingEvidence | None,
    controls: Sequence[ComparedControl],
    beams: ComparedSet | None,
    beams_evidence: str,
) -> list[Criterion]:
    """All criteria of the guide in its order, and that the control sets are not spoilt."""
    criteria = [judge_audit(audit_report, proceed_below_pct)]
    criteria += judge_completion(training)
    criteria += judge_rates(rows, section, comparison_file)
    criteria += judge_controls(controls, comparison_file)
    criteria += judge_training(section.criteria, training)
    criteria.append(judge_beams(beams, section, beams_evidence))
    levels = ("must", "should", "nice")
    return sorted(criteria, key=lambda criterion: levels.index(criterion.level))


def judge_audit(path: Path, proceed_below_pct: float) -> Criterion:
    name = f"Phase 0 finds less than {proceed_below_pct:g} % of low quality"
    report = read_object(path)
    share = report.get("low_quality_percentage")
    if not isinstance(share, int | float) or report.get("decision") is None:
        return Criterion(level="must", name=name, outcome="cannot tell", finding="no audit report", evidence=None)
    finding = f"{share:.2f} %, decision {report['decision']}"
    if report["decision"] == "AUDIT_INVALID":
        return Criterion(level="must", name=name, outcome="cannot tell", finding=finding, evidence=str(path))
    return Criterion(
        level="must", name=name, outcome=met_if(share < proceed_below_pct), finding=finding, evidence=str(path)
    )


def judge_completion(training: TrainingEvidence | None) -> Iterator[Criterion]:
    """Whether the run went through and left what it should."""
    trained, pushed = "training completes all epochs", "the model is saved and pushed to the Hub"
    intact = "no checkpoint is damaged or lost"
    if training is None:
        for name in (trained, pushed, intact):
            yield unknown("must", name)
        return
    done, planned = training.state.get("epoch"), sum(stage["num_epochs"] for stage in training.stages())
    if done is None or not planned:
        yield unknown("must", trained, "trainer_state.json or run.json says nothing about epochs")
    else:
        complete = met_if(done >= planned - 1e-6)
        finding = f"{done:g} of {planned} epochs"
        yield Criterion(level="must", name=trained, outcome=complete, finding=finding, evidence=training.state_file)
    saved = (training.folder / "config.json").is_file() and any(training.folder.glob("*.safetensors"))
    hub = training.run.get("hub_url")
    outcome: Outcome = "missed" if not saved else "met" if hub else "cannot tell"
    finding = f"{'saved' if saved else 'not saved'}; {f'pushed to {hub}' if hub else 'run.json names no upload'}"
    yield Criterion(level="must", name=pushed, outcome=outcome, finding=finding, evidence=training.run_file)
    torn = sorted(path.name for path in training.folder.glob("torn-*"))
    finding = f"set aside as damaged: {', '.join(torn)}" if torn else "no checkpoint had to be set aside"
    yield Criterion(level="must", name=intact, outcome=met_if(not torn), finding=finding, evidence=str(training.folder))


def judge_rates(rows: Sequence[ComparedSet], section: Compare, evidence: str) -> Iterator[Criterion]:
    """What the comparison says; sets that are too small for a verdict are too small for these as well."""
    thresholds = section.criteria
    rows = [row if row.num_utterances >= section.min_utterances else without_intervals(row) for row in rows]
    sets = {row.test_set: row for row in rows if row.bucket == "all"}
    mean = sets["mean_wer"]
    low, high = mean.round2_low, mean.round2_high
    levels: tuple[tuple[Level, float], ...] = (
        ("must", thresholds.must_wer),
        ("should", thresholds.should_wer),
        ("nice", thresholds.nice_wer),
    )
    for level, bound in levels:
        yield Criterion(
            level=level,
            name=f"mean WER below {bound:.1%}",
            outcome=side_of(low, high, bound),
            finding=f"{mean.round2_wer:.2%} {in_words(low, high)}",
            evidence=evidence,
        )
    yield improvement("must", mean, thresholds.must_improvement, evidence)
    noisy = sets.get(thresholds.noisy_test_set)
    if noisy is None:
        yield unknown("should", f"{thresholds.noisy_test_set} improves", f"no test set {thresholds.noisy_test_set}")
    else:
        yield improvement("should", noisy, thresholds.should_noisy_improvement, evidence)
    each = [row for row in sets.values() if row.test_set not in ("mean_wer", "pooled_wer")]
    outcomes = [improvement("nice", row, thresholds.nice_improvement_everywhere, evidence).outcome for row in each]
    yield Criterion(
        level="nice",
        name=f"every test set improves by at least {thresholds.nice_improvement_everywhere:.1%}",
        outcome="missed" if "missed" in outcomes else "cannot tell" if "cannot tell" in outcomes else "met",
        finding=", ".join(f"{row.test_set} {row.difference:+.2%}" for row in each),
        evidence=evidence,
    )
    yield Criterion(
        level="nice",
        name=f"mean CER below {thresholds.nice_cer:.1%}",
        outcome=met_if(mean.round2_cer < thresholds.nice_cer),
        finding=f"{mean.round2_cer:.2%} (point estimate)",
        evidence=evidence,
    )


def judge_controls(controls: Sequence[ComparedControl], evidence: str) -> Iterator[Criterion]:
    for one in controls:
        spread = "(no interval)" if one.low is None or one.high is None else f"[{one.low:+.4f}, {one.high:+.4f}]"
        yield Criterion(
            level="must",
            name=f"control {one.test_set}: {one.measure} rises by at most {one.bound:g}",
            outcome=one.outcome,
            finding=f"{one.round1:.4f} to {one.round2:.4f}, difference {one.difference:+.4f} {spread}",
            evidence=evidence,
        )


def judge_beams(beams: ComparedSet | None, section: Compare, evidence: str) -> Criterion:
    """Round 2 against itself with beam search."""
    least = section.criteria.nice_beam_improvement
    name = f"beam search improves the mean WER by at least {least:.1%}"
    if beams is None:
        return unknown("nice", name, "needs a second evaluation of Round 2 with --num-beams 5 (--round2-beams)")
    row = beams if beams.num_utterances >= section.min_utterances else without_intervals(beams)
    return improvement("nice", row, least, evidence).model_copy(update={"name": name})


def without_intervals(row: ComparedSet) -> ComparedSet:
    return row.model_copy(update={"low": None, "high": None, "round2_low": None, "round2_high": None})


def improvement(level: Level, row: ComparedSet, least: float, evidence: str) -> Criterion:
    subject = "mean WER" if row.test_set == "mean_wer" else row.test_set
    return Criterion(
        level=level,
        name=f"{subject} improves by at least {least:.1%}",
        outcome=side_of(row.low, row.high, -least),
        finding=f"{row.difference:+.2%} {in_words(row.low, row.high)}",
        evidence=evidence,
    )


def judge_training(thresholds: CriteriaThresholds, training: TrainingEvidence | None) -> Iterator[Criterion]:
    """Duration, memory, logging, and what the last stage added."""
    last_stage = f"the last stage lowers WER by another {thresholds.should_last_stage_improvement:.1%}"
    memory = f"GPU memory stays below {thresholds.should_max_gpu_gib:g} GiB"
    limits: tuple[tuple[Level, float], ...] = (
        ("should", thresholds.should_max_hours),
        ("nice", thresholds.nice_max_hours),
    )
    durations = [(level, f"training takes at most {hours:g} hours", hours) for level, hours in limits]
    wandb = "all metrics are logged to W&B"
    if training is None:
        yield from (unknown("should", name) for name in (last_stage, memory, wandb))
        yield from (unknown(level, name) for level, name, _ in durations)
        return
    yield judge_last_stage(last_stage, thresholds, training)
    seconds = training.run.get("train_seconds")
    for level, name, hours in durations:
        if seconds is None:
            yield unknown(level, name, "run.json has no train_seconds")
        else:
            outcome, finding = met_if(seconds / 3600 <= hours), f"{seconds / 3600:.2f} hours"
            yield Criterion(level=level, name=name, outcome=outcome, finding=finding, evidence=training.run_file)
    peaks = [value for _, value in training.logged("gpu_memory_gib")]
    if not peaks:
        yield unknown("should", memory, "no GPU memory in the log: trained without a GPU")
    else:
        outcome, finding = met_if(max(peaks) < thresholds.should_max_gpu_gib), f"peak {max(peaks):.1f} GiB"
        yield Criterion(level="should", name=memory, outcome=outcome, finding=finding, evidence=training.state_file)
    url = training.run.get("wandb_url")
    if url:
        yield Criterion(level="should", name=wandb, outcome="met", finding=url, evidence=training.run_file)
    else:
        yield unknown("should", wandb, "run.json names no W&B run")


def judge_last_stage(name: str, thresholds: CriteriaThresholds, training: TrainingEvidence) -> Criterion:
    """Best `eval_wer` of the last stage against the best before it; on the same fixed subset of clips."""
    stages = training.stages()
    start = sum(stage["num_epochs"] for stage in stages[:-1])
    rates = training.logged("eval_wer")
    before = [rate for epoch, rate in rates if epoch <= start + 1e-6]
    after = [rate for epoch, rate in rates if epoch > start + 1e-6]
    if not before or not after:
        return unknown("should", name, "no eval_wer before and after the last stage began")
    fall = min(before) - min(after)
    return Criterion(
        level="should",
        name=name,
        outcome=met_if(fall >= thresholds.should_last_stage_improvement),
        finding=f"best eval_wer {min(before):.2%} before, {min(after):.2%} in it (point estimates)",
        evidence=training.state_file,
    )


def side_of(low: float | None, high: float | None, bound: float) -> Outcome:
    """Is the interval wholly below the bound?"""
    if low is None or high is None or low < bound <= high:
        return "cannot tell"
    return met_if(high < bound)


def met_if(condition: bool) -> Outcome:
    return "met" if condition else "missed"


def in_words(low: float | None, high: float | None) -> str:
    return "(no interval)" if low is None or high is None else f"[{low:.2%}, {high:.2%}]"


def unknown(level: Level, name: str, finding: str = "no training run was given (--train-run)") -> Criterion:
    return Criterion(level=level, name=name, outcome="cannot tell", finding=finding, evidence=None)
