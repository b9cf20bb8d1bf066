"""`caspi train`: pass the gate, run the stages one after the other, save the final model. Resumes by itself."""

import errno
import logging
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from caspi import gate
from caspi.config import Health, Recipe, Train
from caspi.model.training.batch import check_supervision
from caspi.model.training.build import build_run, check_data, load_data, open_quarantine
from caspi.model.training.dev_set import EvaluationStopped
from caspi.model.training.final import choose_step, read_state, write_final_model
from caspi.model.training.flow import is_worn_out
from caspi.model.training.forecast import Forecast
from caspi.model.training.milestones import RULE, Milestones, announce_stage, print_configuration, print_optimizer
from caspi.model.training.processes import (
    all_gather_objects,
    check_processes,
    is_main_process,
    join_processes,
    num_processes,
    wait_for_main_process,
)
from caspi.model.training.run import Run
from caspi.model.training.stages import StageSpan, span_at
from caspi.model.training.trainer import StageTrainer
from caspi.model.training.weights import checkpoint_bytes
from caspi.ops.mirroring.mirror import Mirror
from caspi.ops.release import hub
from caspi.ops.training import launcher
from caspi.ops.training.artifacts import Checkpoint, checkpoint_folders, newest_checkpoint, read_marker
from caspi.ops.training.final_upload import upload_final
from caspi.ops.training.health import HealthMonitor
from caspi.ops.training.resume import checkpoint_to_resume
from caspi.ops.training.run_lock import only_run_in
from caspi.ops.training.signals import StopRequest, stop_request
from caspi.ops.training.spending import Spending, count_spending
from caspi.ops.training.tracking import (
    FILE_ONLY,
    MetricsFile,
    Reporter,
    TensorBoard,
    check_trackers,
    close_logs,
    open_logs,
    open_trackers,
)
from caspi.ops.training.training_record import (
    CheckpointKeeper,
    Progress,
    TrainingRecord,
    data_sha256,
    weights_recipe,
)
from caspi.plan import expected_samples_per_second, gflop_per_sample
from caspi.records import AnswerIsNo, ExitCode, RunFailed

METRICS_FILE = "metrics.jsonl"
IN_EACH_PROCESS = "import sys; from caspi.train import train_process; sys.exit(train_process(sys.argv[1]))"

DISK_IS_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

log = logging.getLogger(__name__)


def run(recipe: Recipe) -> int:
    """Train, or go on training, as the recipe says; with several GPUs, in one process for each.

    Raises:
        AnswerIsNo: the gate is closed, or the user has not reviewed Phase 0.
        RunFailed: the run cannot go on; the newest checkpoint is intact.
        ValueError: recipe, manifest or checkpoint cannot be used.
    """
    config = recipe.train
    if config.hub_model_id:
        hub.check_repo_id(config.hub_model_id)
    check_trackers(config)
    if launcher.is_launched():
        return run_process(recipe, pass_gate(recipe) if is_main_process() else {})
    opened = pass_gate(recipe)
    wanted = config.num_processes or max(1, torch.cuda.device_count())
    if wanted == 1 and not launcher.has_other_machines():
        return run_process(recipe, opened)
    job = {"recipe": recipe.model_dump(mode="json"), "gate": opened}
    return launcher.launch(IN_EACH_PROCESS, job, wanted, config.shutdown_seconds)


def train_process(job_file: str) -> int:
    """One of several processes that `run` started."""
    return launcher.report(
        Path(job_file), lambda job: run_process(Recipe.model_validate(job["recipe"]), dict(job["gate"]))
    )


def run_process(recipe: Recipe, opened: dict[str, Any]) -> int:
    """Train in this process, together with the others of the launcher if there are any."""
    check_processes(recipe.train)
    join_processes()
    transformers_logging.set_verbosity_error()
    folder = recipe.train.output_dir
    handlers = open_logs(folder, is_main_process())
    try:
        with stop_request() as stop:
            if not is_main_process():
                return train(recipe, opened, stop)
            with only_run_in(folder):
                return train(recipe, opened, stop)
    except (RunFailed, AnswerIsNo, ValueError) as error:
        log.error("%s", error, extra=FILE_ONLY)
        raise
    except OSError as error:
        if error.errno not in DISK_IS_FULL:
            raise
        raise RunFailed(f"the disk of {folder} is full ({error}); make room, the same command goes on") from error
    finally:
        close_logs(handlers)


def train(recipe: Recipe, opened: dict[str, Any], stop: StopRequest) -> int:
    config, began = recipe.train, time.monotonic()
    print_configuration(config)
    announce_gate(opened)
    split = load_data(config)
    wanted = weights_recipe(recipe, num_processes())
    data_hash = data_sha256(split.training, split.evaluation)
    mirror = Mirror(config.mirror, config.output_dir, config.mirroring) if config.mirror else None
    checkpoint = find_checkpoint(config, wanted, data_hash)
    quarantine = open_quarantine(config, is_resumed=checkpoint is not None)
    split = check_data(split, quarantine)
    record = TrainingRecord(recipe, is_main_process())
    spending = count_spending(recipe, record, began, stop, num_processes())
    record.update(gate=opened, data_sha256=data_hash, num_processes=num_processes())
    store = CheckpointKeeper(config, wanted, data_hash, num_processes(), mirror.in_use if mirror else frozenset)
    limits = checkpoint.marker.limits() if checkpoint else {}
    this = build_run(recipe, split, quarantine, store, stop, num_processes(), limits)
    record.update(gflop_per_sample=gflop_per_sample(recipe))
    this.forecast = Forecast(spending.price.usd_per_hour, spending.seconds)
    if is_main_process():
        check_disk(this)
    reporters = start_reporting(this, recipe, record, [one for one in (spending, mirror) if one])
    prove_supervision(this)
    exit_code = train_stages(this, checkpoint, record)
    if not exit_code and is_main_process():
        save_final_model(this, record)
        if config.push_to_hub:
            assert config.hub_model_id, "the configuration requires it"
            record.update(**upload_final(config.output_dir, config.hub_model_id))
    for reporter in reporters:
        reporter.finish(exit_code)
    if is_main_process():
        spending.keep()
        if mirror:
            mirror.finish(stop)
    return exit_code


def pass_gate(recipe: Recipe) -> dict[str, Any]:
    """What the gate decided on, for the record; the file decides, the question is a reminder."""
    config = recipe.train
    opened = gate.require_open(
        config.gate_report, config.signoff_file, config.manifest, config.accept_risk, recipe.gate.max_age_days
    )
    if sys.stdin.isatty() and not config.yes and num_processes() == 1:
        answer = input("Have you reviewed Phase 0 results? (y/n): ")
        if answer.strip().lower() not in ("y", "yes"):
            raise AnswerIsNo("Phase 0 results are not reviewed: read the report, then start again")
    return dict(opened.model_dump(mode="json"))


def announce_gate(opened: dict[str, Any]) -> None:
    if is_main_process():
        log.info("✓ Loaded Phase 0 audit results: %s", opened.get("decision") or "none")
        if opened.get("accepted_risk") is not None:
            log.warning("WARNING: the gate was opened by an accepted risk: %s", opened["accepted_risk"])


def find_checkpoint(config: Train, wanted: dict[str, Any], data_hash: str) -> Checkpoint | None:
    """What the run goes on from; every process gets the main one's answer."""
    found = checkpoint_to_resume(config, wanted, data_hash) if is_main_process() else None
    if config.mirror:
        wait_for_main_process(config.mirroring.restore_seconds)
    return all_gather_objects(found)[0]


def start_reporting(
    this: Run, recipe: Recipe, record: TrainingRecord, observers: Sequence[Spending | Mirror]
) -> list[Reporter]:
    """Adds the reporters to the run; returns those that want to know how it ends."""
    folder = this.config.output_dir
    switches = [span.first_step for span in this.spans[1:]]
    monitor = HealthMonitor(health_limits(recipe), switches, folder / METRICS_FILE, lambda: ask_to_stop(this))
    this.callbacks += [
        MetricsFile(folder / METRICS_FILE),
        monitor,
        TensorBoard(folder / "runs"),
        Milestones(this.config.num_epochs(), this.plan.steps_per_epoch, this.forecast),
        Progress(record),
    ]
    if not is_main_process():
        return []
    for observer in observers:
        observer.tell = monitor.tell
        this.callbacks.append(observer)
    reporters = open_trackers(this.config, record.content["wandb_run_id"], record.content)
    record.update(wandb_url=next((reporter.url for reporter in reporters if reporter.url), None))
    this.callbacks += reporters
    return reporters


def health_limits(recipe: Recipe) -> Health:
    """The recipe's, with the speed that the plan predicts for this GPU where the recipe says none."""
    limits = recipe.train.health
    if limits.expected_samples_per_second is None and torch.cuda.is_available():
        predicted = expected_samples_per_second(recipe, torch.cuda.get_device_name(), num_processes())
        return limits.model_copy(update={"expected_samples_per_second": predicted})
    return limits


def check_disk(this: Run) -> None:
    """
    Raises:
        ValueError: there is no room for the checkpoints that will be kept, and one more while it is written.
    """
    folder, limit = this.config.output_dir, this.config.save_total_limit
    widest = {group for span in this.spans for group in span.stage.learning_rates}
    size = checkpoint_bytes(this.model, lambda name: this.assigned[name] in widest)
    at_once = limit + (3 if this.config.mirror else 1)  # a copy under way keeps its checkpoint and the best one
    needed = (at_once - len(checkpoint_folders(folder))) * size
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ValueError(
            f"{folder} has {free / 2**30:.1f} GiB free, {at_once} checkpoints need {needed / 2**30:.1f} GiB more: "
            "make room, choose another --output-dir, or keep fewer with --save-total-limit 2"
        )


def ask_to_stop(this: Run) -> None:
    this.stop.exit_code = this.stop.exit_code or int(ExitCode.NOT_MEASURED)


def prove_supervision(this: Run) -> None:
    """Look at the very first step before any is taken."""
    indices = this.plan.step(0, 0)
    dataset = this.dataset()
    step = this.parts.collator()([dataset[(0, index)] for index in indices])
    check_supervision(this.encoder, [this.utterances[index] for index in indices], step)
    log.info("✓ Supervision checked: transcripts and ends of turn carry loss, nothing else")


def train_stages(this: Run, checkpoint: Checkpoint | None, record: TrainingRecord) -> int:
    """Train every stage that is left; returns the exit code of what stopped the run before its end, else 0."""
    log.info("\n%s\nStarting training...\n%s", RULE, RULE)
    while span := span_left(this, checkpoint):
        announce_stage(this, span, checkpoint.marker.step if checkpoint else 0)
        record.update(stage=span.stage.name, state="training")
        exit_code, step = train_stage(this, span, checkpoint)
        checkpoint = all_gather_objects(newest_checkpoint(this.config.output_dir)[0] if is_main_process() else None)[0]
        if exit_code:
            record.update(state="interrupted", exit_code=exit_code)
            log.info("✓ Stopped after step %d; the same command goes on", step)
            return exit_code
    return ExitCode.DONE


def train_stage(this: Run, span: StageSpan, checkpoint: Checkpoint | None) -> tuple[int, int]:
    """The exit code of what stopped the stage before its end, else 0; and the steps done."""
    this.renew_model()
    trainer = StageTrainer(this, span)
    print_optimizer(this, span)
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint.folder) if checkpoint else None)
    except EvaluationStopped as stopped:  # that of a checkpoint which is there already
        return stopped.exit_code, trainer.state.global_step
    return trainer.exit_code, trainer.state.global_step


def span_left(this: Run, checkpoint: Checkpoint | None) -> StageSpan | None:
    """The stage that takes the next step; None when the run is at its end, or has no prospect of getting better."""
    if checkpoint is None:
        return this.spans[0]
    history = read_state(checkpoint.folder)["log_history"]
    patience = this.config.early_stop_evaluations
    if is_worn_out(history, this.spans, patience):
        log.info("✓ Stopped early at step %d: no lower eval_wer in %d evaluations", checkpoint.marker.step, patience)
        return None
    return span_at(this.spans, checkpoint.marker.step)


def save_final_model(this: Run, record: TrainingRecord) -> None:
    """Write the chosen checkpoint's model and the whole history into the output folder."""
    folder = this.config.output_dir
    state = read_state(checkpoint_folders(folder)[-1])
    step = choose_step(state, this.config.final_model)
    log.info("\nSaving final model...")
    read_marker(folder / f"checkpoint-{step}")
    this.renew_model()
    final = write_final_model(this, folder / f"checkpoint-{step}", state, step)
    record.update(state="done", exit_code=0, final_step=step, final_wer=final.wer, final_cer=final.cer)
    log.info("✓ Read back: every tensor is the checkpoint's")
    log.info("✓ Model saved to: %s (%s checkpoint, step %d)", folder, this.config.final_model, step)
    log.info("\n%s\nTraining completed!\nModel saved to: %s\n%s\n", RULE, folder, RULE)
    log.info("✓ Final WER: %.2f%%\n✓ Final CER: %.2f%%", 100 * final.wer, 100 * final.cer)
