"""A training run at one moment: every figure that `caspi watch` shows, from the run's files and this machine's GPUs."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from caspi.config import Watch
from caspi.ops.cost import HourlyPrice, find_gpu, hourly_price, recognise_gpu
from caspi.ops.training.artifacts import MARKER, checkpoint_folders, step_of
from caspi.ops.watching.gpus_now import GpuNow, NoGpus, read_gpus
from caspi.ops.watching.run_alerts import RunAlert, find_alerts
from caspi.ops.watching.run_metrics import (
    Course,
    Entry,
    RunFiles,
    RunRecord,
    best_evaluation,
    course_of,
    domain_rates,
    last_write,
    learning_rates,
    read_run,
)
from caspi.ops.watching.run_state import ALIVE, State, judge_state, last_error
from caspi.records import Record


class Evaluation(Record):
    step: int
    wer: float
    """Fraction, as here all rates."""
    cer: float | None
    loss: float | None
    domain_wer: dict[str, float]


class RunView(Record):
    """None: the run has not written it (yet), or it cannot be known."""

    run_dir: str
    time: str
    """Of the look, UTC."""
    state: State
    decided_by: str
    process: int | None
    silence_seconds: float
    """Since the run's last write."""
    error: str | None
    """The last message of training.log, if it is an error."""
    stage: str | None
    epoch: float | None
    """Epochs done."""
    num_epochs: int | None
    step: int
    """Of the newest entry of metrics.jsonl."""
    num_steps: int | None
    loss: float | None
    grad_norm: float | None
    grad_norm_max: float | None
    """Largest since the entry before."""
    learning_rates: dict[str, float]
    """By layer group."""
    samples_per_second: float | None
    data_wait_fraction: float | None
    mfu_fraction: float | None
    """Model FLOPs of the utterances per second over the cards' peak; None: not on cards that are known."""
    gpu_memory_gib: float | None
    """Peak of the fullest GPU, as the run measured it."""
    gpu_memory_fraction: float | None
    last_evaluation: Evaluation | None
    best_evaluation: Evaluation | None
    newest_checkpoint_step: int | None
    """Of the complete ones."""
    gpus: list[GpuNow]
    """Of this machine, now."""
    gpus_note: str
    seconds_spent: float
    """By the run, all starts together, loading, evaluating and saving included."""
    seconds_left: float | None
    usd_per_hour: float | None
    price_source: str
    usd_spent: float | None
    usd_left: float | None
    """To spend until the end, at the present pace."""
    max_budget_usd: float | None
    num_starts: int
    wandb_url: str | None
    num_damaged_lines: int
    has_torn_line: bool
    alerts: list[RunAlert]


def look(folder: Path, settings: Watch, now: float) -> RunView:
    """`now` in seconds since 1970.

    Raises:
        ValueError: there is no training run, or its run.json is damaged.
    """
    return view_of(read_run(folder), settings, now)


def view_of(run: RunFiles, settings: Watch, now: float) -> RunView:
    silence = max(0.0, now - last_write(run))
    verdict = judge_state(run.folder, run.record, silence, settings.max_silence_seconds)
    gpus, gpus_note = gpus_of(settings)
    course = course_of(run)
    training, evaluations = run.metrics.training(), run.metrics.evaluations()
    newest: Entry = training[-1] if training else {}
    step = max((entry["step"] for entry in run.metrics.entries), default=0)
    spent = seconds_spent(run, now if verdict.state in ALIVE else last_write(run))
    left = seconds_left(run, course, verdict.state, settings.rate_window_entries, now)
    price = price_of(run, settings, gpus)
    view = RunView(
        run_dir=str(run.folder),
        time=datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds"),
        state=verdict.state,
        decided_by=verdict.decided_by,
        process=verdict.process,
        silence_seconds=silence,
        error=last_error(run.folder),
        stage=run.record.stage,
        epoch=next((entry["epoch"] for entry in reversed(run.metrics.entries) if "epoch" in entry), None),
        num_epochs=course.num_epochs if course else None,
        step=step,
        num_steps=course.num_steps if course else None,
        loss=newest.get("loss"),
        grad_norm=newest.get("grad_norm"),
        grad_norm_max=newest.get("grad_norm_max"),
        learning_rates=learning_rates(newest),
        samples_per_second=newest.get("samples_per_second"),
        data_wait_fraction=newest.get("data_wait_fraction"),
        mfu_fraction=mfu_fraction(run.record, newest.get("samples_per_second")),
        gpu_memory_gib=newest.get("gpu_memory_gib"),
        gpu_memory_fraction=newest.get("gpu_memory_fraction"),
        last_evaluation=evaluation_of(evaluations[-1] if evaluations else None),
        best_evaluation=evaluation_of(best_evaluation(evaluations)),
        newest_checkpoint_step=newest_checkpoint_step(run.folder),
        gpus=gpus,
        gpus_note=gpus_note,
        seconds_spent=spent,
        seconds_left=left,
        usd_per_hour=price.usd_per_hour,
        price_source=price.source,
        usd_spent=price.usd_for(spent),
        usd_left=price.usd_for(left),
        max_budget_usd=settings.max_budget_usd or run.record.recipe.train.max_budget_usd,
        num_starts=len(run.record.starts),
        wandb_url=run.record.wandb_url,
        num_damaged_lines=run.metrics.num_damaged_lines,
        has_torn_line=run.metrics.has_torn_line,
        alerts=[],
    )
    return view.model_copy(update={"alerts": find_alerts(view, run.metrics.alerts(), settings)})


def evaluation_of(entry: Entry | None) -> Evaluation | None:
    if entry is None:
        return None
    return Evaluation(
        step=entry["step"],
        wer=entry["eval_wer"],
        cer=entry.get("eval_cer"),
        loss=entry.get("eval_loss"),
        domain_wer=domain_rates(entry),
    )


def gpus_of(settings: Watch) -> tuple[list[GpuNow], str]:
    try:
        return read_gpus(settings.nvidia_smi_timeout_seconds), "nvidia-smi of this machine"
    except NoGpus as error:
        return [], str(error)


def newest_checkpoint_step(folder: Path) -> int | None:
    return max((step_of(one) for one in checkpoint_folders(folder) if (one / MARKER).is_file()), default=None)


def seconds_spent(run: RunFiles, until: float) -> float:
    """run.json knows the time up to its newest entry; what came since is added."""
    record = run.record
    if record.paid_seconds is not None and record.updated is not None:
        return record.paid_seconds + max(0.0, until - max(record.updated.timestamp(), record.last_start()))
    dated = [entry for entry in run.metrics.entries if "time" in entry]
    saved = [entry["time"] for entry in dated if entry["step"] <= run.record.steps_done]
    since = max([*saved[-1:], run.record.last_start()]) or (dated[0]["time"] if dated else until)
    return run.record.train_seconds + max(0.0, until - since)


def seconds_left(run: RunFiles, course: Course | None, state: State, window: int, now: float) -> float | None:
    """At the pace of the newest entries, evaluations and saving included; None while there are not two of them."""
    if state == "finished":
        return 0.0
    if course is None or state not in ALIVE:
        return None
    began = run.record.last_start()
    recent = [entry for entry in run.metrics.training() if entry.get("time", 0.0) >= began]
    newest_step = recent[-1]["step"] if recent else 0
    band = next((band for band in course.bands if band.first_step < newest_step <= band.last_step), None)
    in_stage = [entry for entry in recent if band is None or entry["step"] > band.first_step]
    used = (in_stage if len(in_stage) > 1 else recent)[-window:]
    if len(used) < 2 or used[-1]["step"] == used[0]["step"]:
        return None
    pace = (used[-1]["time"] - used[0]["time"]) / (used[-1]["step"] - used[0]["step"])
    return float(max(0.0, pace * (course.num_steps - newest_step) - max(0.0, now - used[-1]["time"])))


def mfu_fraction(record: RunRecord, samples_per_second: float | None) -> float | None:
    gpu = recognise_gpu(record.hardware.gpus[0].name) if record.hardware.gpus else None
    gflop = record.gflop_per_sample.get(record.stage or "")
    if gpu is None or gflop is None or samples_per_second is None:
        return None
    return samples_per_second * gflop * 1e9 / (record.num_processes * find_gpu(gpu).peak_bf16_tflops * 1e12)


def price_of(run: RunFiles, settings: Watch, gpus: Sequence[GpuNow]) -> HourlyPrice:
    """The flag's, else the recipe's, else the table's for the GPUs that the run recorded, or that this machine has."""
    recipe = run.record.recipe
    stated = [
        (settings.price, "--price"),
        (recipe.train.price, "train.price of the recipe"),
        (recipe.plan.price, "plan.price of the recipe"),
    ]
    has_measured = any("gpu_memory_gib" in entry for entry in run.metrics.training())
    names = [gpu.name for gpu in run.record.hardware.gpus or gpus] if has_measured else []
    return hourly_price(stated, names, run.record.num_processes)
