"""`caspi train`: pass the gate, run the stages one after the other, save the final model. Resumes by itself."""

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from caspi import gate
from caspi.config import Recipe, Train
from caspi.model.batch import Encoder, StepCollator, check_supervision
from caspi.model.checkpoint import load_asr, save_asr
from caspi.model.dev_set import PROFILE, DevSet
from caspi.model.layers import assign_groups
from caspi.model.milestones import RULE, Milestones, announce_stage, print_configuration, print_optimizer
from caspi.model.processes import all_gather_objects, is_main_process, join_processes, num_processes
from caspi.model.run import Run
from caspi.model.sampler import Plan
from caspi.model.stages import LearningRates, span_at, stage_spans
from caspi.model.trainer import StageTrainer
from caspi.model.weights import load_weights
from caspi.ops.artifacts import Checkpoint, newest_checkpoint, read_marker, set_aside
from caspi.ops.signals import StopRequest, stop_request
from caspi.ops.tracking import FILE_ONLY, MetricsFile, TensorBoard, WeightsAndBiases, close_logs, open_logs, plan_wandb
from caspi.ops.training_record import (
    CheckpointKeeper,
    TrainingRecord,
    check_same_recipe,
    data_sha256,
    weights_recipe,
)
from caspi.records import AnswerIsNo, ExitCode, RunFailed, Utterance, read_manifest, write_json
from caspi.speech.audio import AudioError, probe_audio
from caspi.speech.score import normalize
from caspi.speech.split import Split, fixed_subset, split_utterances

STATE_FILE = "trainer_state.json"

log = logging.getLogger(__name__)


def run(recipe: Recipe) -> int:
    """Train, or go on training, as the recipe says.

    Raises:
        AnswerIsNo: the gate is closed, or the user has not reviewed Phase 0.
        RunFailed: the run cannot go on; the newest checkpoint is intact.
        ValueError: recipe, manifest or checkpoint cannot be used.
    """
    check_processes(recipe.train)
    join_processes()
    transformers_logging.set_verbosity_error()
    handlers = open_logs(recipe.train.output_dir, is_main_process())
    try:
        with stop_request() as stop:
            return train(recipe, stop)
    except (RunFailed, AnswerIsNo, ValueError) as error:
        log.error("%s", error, extra=FILE_ONLY)
        raise
    finally:
        close_logs(handlers)


def train(recipe: Recipe, stop: StopRequest) -> int:
    config = recipe.train
    print_configuration(config)
    opened = pass_gate(recipe) if is_main_process() else {}
    split = load_data(config)
    wanted = weights_recipe(recipe, num_processes())
    data_hash = data_sha256(split.training, split.evaluation)
    checkpoint = find_checkpoint(config, wanted, data_hash)
    record = TrainingRecord(recipe, previous_record(config.output_dir))
    update(record, gate=opened, data_sha256=data_hash, num_processes=num_processes())
    this = build_run(recipe, split, stop, CheckpointKeeper(config, wanted, data_hash, num_processes()))
    reporters = start_reporting(this, record)
    prove_supervision(this)
    exit_code = train_stages(this, checkpoint, record)
    if not exit_code:
        save_final_model(this, record)
    for reporter in reporters:
        reporter.finish(exit_code)
    return exit_code


def check_processes(config: Train) -> None:
    """
    Raises:
        ValueError: another number of processes is running than the recipe asks for.
    """
    if config.num_processes not in (0, num_processes()):
        raise ValueError(
            f"train.num_processes is {config.num_processes}, but {num_processes()} run; start them with: "
            f"torchrun --nproc_per_node {config.num_processes} -m caspi train ..."
        )


def pass_gate(recipe: Recipe) -> dict[str, Any]:
    """What the gate decided on, for the record; the file decides, the question is a reminder."""
    config = recipe.train
    opened = gate.require_open(
        config.gate_report, config.signoff_file, config.manifest, config.accept_risk, recipe.gate.max_age_days
    )
    if sys.stdin.isatty() and not config.yes:
        answer = input("Have you reviewed Phase 0 results? (y/n): ")
        if answer.strip().lower() not in ("y", "yes"):
            raise AnswerIsNo("Phase 0 results are not reviewed: read the report, then start again")
    log.info("✓ Loaded Phase 0 audit results: %s", opened.decision or "none")
    if opened.accepted_risk is not None:
        log.warning("WARNING: the gate was opened by an accepted risk: %s", opened.accepted_risk)
    return dict(opened.model_dump(mode="json"))


def load_data(config: Train) -> Split:
    log.info("Loading datasets...")
    utterances = read_manifest(config.manifest)
    split = split_utterances(
        utterances,
        min_duration_seconds=config.min_audio_length_seconds,
        max_duration_seconds=config.max_audio_length_seconds,
        evaluation_fraction=config.eval_fraction,
        seed=config.seed,
    )
    for item in split.left_out:
        log.info("  left out: %s (%s)", item.id, item.reason)
    check_audio([*split.training, *split.evaluation])
    for source in sorted({item.source or "(no source)" for item in split.training}):
        log.info("✓ %s: %s samples", source, f"{sum((i.source or '(no source)') == source for i in split.training):,}")
    log.info("✓ Total training samples: %s", f"{len(split.training):,}")
    log.info("✓ Evaluation samples: %s; left out: %s\n", f"{len(split.evaluation):,}", f"{len(split.left_out):,}")
    return split


def check_audio(utterances: list[Utterance]) -> None:
    """
    Raises:
        ValueError: a file that the manifest names is not there or not audio; the manifest is stale.
    """
    for path in sorted({item.audio_filepath for item in utterances}):
        try:
            probe_audio(path)
        except AudioError as error:
            raise ValueError(f"{error}; the manifest is stale, run caspi prepare again") from None


def find_checkpoint(config: Train, wanted: dict[str, Any], data_hash: str) -> Checkpoint | None:
    """The newest checkpoint that is complete and belongs to this recipe and data; others are moved aside."""
    found: Checkpoint | None = None
    if is_main_process():
        found, torn = newest_checkpoint(config.output_dir)
        set_aside(torn)
        if found:
            check_same_recipe(found, wanted, data_hash, config.overwrite_recipe)
            log.info("✓ Resuming from %s (stage %s)\n", found.folder, found.marker.stage)
        elif torn:
            log.warning("WARNING: no usable checkpoint is left in %s; training starts anew", config.output_dir)
    return all_gather_objects(found)[0]


def build_run(recipe: Recipe, split: Split, stop: StopRequest, store: CheckpointKeeper) -> Run:
    config = recipe.train
    log.info("Loading model...")
    model, processor = load_asr(config.base_model, torch.bfloat16 if torch.cuda.is_available() else torch.float32)
    log.info("✓ Model loaded: %s\n", config.base_model)
    encoder = Encoder(processor, recipe.language.name)
    plan = Plan(len(split.training), config.effective_batch_size(num_processes()), config.seed)
    spans = stage_spans(config.stages, plan.steps_per_epoch)
    scorable = [item for item in split.evaluation if normalize(item.text, PROFILE)]
    if not scorable:
        raise ValueError("no evaluation utterance has a word that can be scored")
    chosen = {scorable[index].id for index in fixed_subset(scorable, config.max_wer_utterances, config.seed)}
    dev_set = DevSet(
        split.evaluation,
        [index for index, item in enumerate(split.evaluation) if item.id in chosen],
        encoder,
        language=recipe.language.name,
        batch_size=config.eval_batch_size,
        max_new_tokens=config.max_new_tokens,
        cache_mib=config.feature_cache_mib,
    )
    return Run(
        config=config,
        model=model,
        processor=processor,
        encoder=encoder,
        assigned=assign_groups(model, config.num_llm_top_layers, config.num_audio_top_layers),
        utterances=split.training,
        dev_set=dev_set,
        plan=plan,
        spans=spans,
        rates=LearningRates(config, spans),
        store=store,
        stop=stop,
    )


def start_reporting(this: Run, record: TrainingRecord) -> list[WeightsAndBiases]:
    """Adds the reporters to the run; returns those that want to know how it ends."""
    folder = this.config.output_dir
    this.callbacks += [
        MetricsFile(folder / "metrics.jsonl"),
        TensorBoard(folder / "runs"),
        Milestones(this.config.num_epochs(), this.plan.steps_per_epoch),
    ]
    if not is_main_process():
        return []
    plan = plan_wandb(os.environ)
    log.info("W&B: %s (%s)\n", plan.mode, plan.reason)
    if plan.mode == "off":
        return []
    reporter = WeightsAndBiases(plan, folder, record.content["wandb_run_id"], record.content)
    this.callbacks.append(reporter)
    return [reporter]


def prove_supervision(this: Run) -> None:
    """Look at the very first step before any is taken."""
    indices = this.plan.step(0, 0)
    dataset = this.dataset()
    collate = StepCollator(this.encoder, this.config.batch_size)
    step = collate([dataset[(0, index)] for index in indices])
    check_supervision(this.encoder, [this.utterances[index] for index in indices], step)
    log.info("✓ Supervision checked: transcripts and ends of turn carry loss, nothing else")


def train_stages(this: Run, checkpoint: Checkpoint | None, record: TrainingRecord) -> int:
    """Train every stage that is left; returns the exit code of the signal that stopped the run, else 0."""
    log.info("\n%s\nStarting training...\n%s", RULE, RULE)
    while span := span_at(this.spans, checkpoint.marker.step if checkpoint else 0):
        announce_stage(this, span, checkpoint.marker.step if checkpoint else 0)
        update(record, stage=span.stage.name, state="training")
        trainer = StageTrainer(this, span)
        print_optimizer(this, span)
        trainer.train(resume_from_checkpoint=str(checkpoint.folder) if checkpoint else None)
        checkpoint = all_gather_objects(newest_checkpoint(this.config.output_dir)[0] if is_main_process() else None)[0]
        if trainer.exit_code:
            update(record, state="interrupted", exit_code=trainer.exit_code)
            log.info("✓ Stopped after step %d; the same command goes on", trainer.state.global_step)
            return trainer.exit_code
    return ExitCode.DONE


def save_final_model(this: Run, record: TrainingRecord) -> None:
    """Write the chosen checkpoint's model and the whole history into the output folder."""
    if not is_main_process():
        return
    folder = this.config.output_dir
    last = folder / f"checkpoint-{this.spans[-1].last_step}"
    state = json.loads((last / STATE_FILE).read_text(encoding="utf-8"))
    step = state["best_global_step"] if this.config.final_model == "best" else state["global_step"]
    log.info("\nSaving final model...")
    read_marker(folder / f"checkpoint-{step}")
    load_weights(this.model, folder / f"checkpoint-{step}")
    save_asr(this.model, this.processor, folder)
    write_json(folder / STATE_FILE, state)
    scores = next(entry for entry in reversed(state["log_history"]) if entry["step"] == step and "eval_wer" in entry)
    update(record, state="done", final_step=step, final_wer=scores["eval_wer"], final_cer=scores["eval_cer"])
    log.info("✓ Model saved to: %s (%s checkpoint, step %d)", folder, this.config.final_model, step)
    log.info("\n%s\nTraining completed!\nModel saved to: %s\n%s\n", RULE, folder, RULE)
    log.info("✓ Final WER: %.2f%%\n✓ Final CER: %.2f%%", 100 * scores["eval_wer"], 100 * scores["eval_cer"])


def previous_record(folder: Path) -> dict[str, Any] | None:
    path = folder / "run.json"
    if not path.exists():
        return None
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def update(record: TrainingRecord, **facts: Any) -> None:
    if is_main_process():
        record.update(**facts)
