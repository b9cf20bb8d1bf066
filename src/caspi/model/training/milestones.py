"""The console of a training run: the deployment guide's milestones, with measured numbers."""

import logging
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from caspi.config import Train
from caspi.model.training.forecast import Forecast, in_words
from caspi.model.training.layers import FROZEN, GROUPS, LORA, check_group_names, describe, group_table, is_head_tied
from caspi.model.training.processes import num_processes
from caspi.model.training.run import Run
from caspi.model.training.stages import StageSpan, stage_spans

RULE = "=" * 70
SECONDS_BETWEEN_LINES = 60.0
"""While nothing else is said, so that a log without a terminal shows that the run goes on."""

log = logging.getLogger(__name__)


def print_configuration(config: Train) -> None:
    world_size = num_processes()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    unit = "GPU" if gpu else "process"
    log.info("%s\nRound 2 Training Configuration\n%s", RULE, RULE)
    log.info("Strategy: Gradual Unfreezing (%s)\n\nConfiguration:", " → ".join(stage.name for stage in config.stages))
    log.info("  Hardware: %s", f"{world_size}x {gpu}" if gpu else f"CPU, {world_size} process(es)")
    log.info("  Batch size: %d per %s", config.batch_size, unit)
    log.info("  Gradient accumulation: %d steps", config.gradient_accumulation_steps)
    factors = f"{config.batch_size} × {config.gradient_accumulation_steps} × {world_size}"
    log.info("  Effective batch: %d (%s)", config.effective_batch_size(world_size), factors)
    log.info("  Max audio length: %gs", config.max_audio_length_seconds)
    log.info("  Epochs: %d", config.num_epochs())
    for span in stage_spans(config.stages, steps_per_epoch=1):
        epochs = f"{span.first_epoch_number}-{span.last_epoch_number}"
        log.info("  Strategy %s (Epochs %s): %s", span.stage.name, epochs, groups_in_words(config, span))
    log.info("%s\n", RULE)


def groups_in_words(config: Train, span: StageSpan) -> str:
    groups = span.stage.learning_rates
    check_group_names(groups)
    in_order = [group for group in (*GROUPS, LORA) if group in groups]
    return " + ".join(describe(group, config.num_llm_top_layers, config.num_audio_top_layers) for group in in_order)


def announce_stage(this: Run, span: StageSpan, steps_done: int) -> None:
    words = groups_in_words(this.config, span)
    if span.stage_index and steps_done == span.first_step:
        title = f"EPOCH {span.first_epoch_number}: Switching to Strategy {span.stage.name}"
        log.info("\n%s\n%s\n%s", RULE, title, RULE)
        log.info("✓ Strategy %s activated: %s\n", span.stage.name, words)
    else:
        log.info("Setting up Strategy %s freezing...", span.stage.name)
        log.info("✓ Strategy %s: %s trainable\n", span.stage.name, words)


def print_optimizer(this: Run, span: StageSpan) -> None:
    rows = group_table(this.model, this.assigned, span.stage.learning_rates)
    total = sum(row.num_parameters for row in rows)
    trainable = sum(row.num_parameters for row in rows if row.learning_rate is not None)
    log.info("✓ Trainable: %s / %s (%.2f%%)\n", f"{trainable:,}", f"{total:,}", 100 * trainable / total)
    log.info("Optimizer configuration (Epoch %d):", span.first_epoch_number)
    for row in rows:
        rate = f"LR={row.learning_rate:.0e}" if row.learning_rate is not None else "frozen  "
        note = " (tied to the input embeddings)" if row.name == "lm_head" and is_head_tied(this.model) else ""
        name = "the rest" if row.name == FROZEN else row.name
        log.info("  %-15s: %s, tensors=%d, params=%s%s", name, rate, row.num_tensors, f"{row.num_parameters:,}", note)
    log.info("%s", RULE)


class Milestones(TrainerCallback):
    """Epochs, steps with time and money left, evaluations and checkpoints, as lines; a sign of life every minute."""

    def __init__(self, num_epochs: int, steps_per_epoch: int, forecast: Forecast) -> None:
        self.num_epochs = num_epochs
        self.steps_per_epoch = steps_per_epoch
        self.forecast = forecast
        self.last_line = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.last_line = time.monotonic()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        log.info("\nEpoch %d/%d:", state.global_step // self.steps_per_epoch + 1, self.num_epochs)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not control.should_log and time.monotonic() - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = time.monotonic()
            words = in_words(self.forecast.at(state.global_step, self.num_steps))
            log.info("  step %d/%d (%.1f %%), %s", state.global_step, self.num_steps, self.percent(state), words)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.last_line = time.monotonic()
        if "loss" in logs:
            log.info("  [Step %d/%d] %s", state.global_step, self.num_steps, self.training_line(state, logs))
        if "eval_wer" in logs:
            name = "Final Eval" if state.global_step >= self.num_steps else f"Eval {state.global_step}"
            log.info(
                "  [%s] eval_loss: %.4f, eval_wer: %.2f%%, eval_cer: %.2f%%",
                name,
                logs["eval_loss"],
                100 * logs["eval_wer"],
                100 * logs["eval_cer"],
            )

    @property
    def num_steps(self) -> int:
        return self.num_epochs * self.steps_per_epoch

    def training_line(self, state: Any, logs: dict[str, Any]) -> str:
        parts = [f"loss: {logs['loss']:.4f}", f"grad_norm: {logs['grad_norm']:.2f}"]
        if "gpu_memory_gib" in logs:
            parts.append(f"gpu_mem: {logs['gpu_memory_gib']:.1f}GB")
        parts.append(f"{logs['samples_per_second']:.1f} samples/s")
        return ", ".join([*parts, in_words(logs)])

    def percent(self, state: Any) -> float:
        return 100.0 * float(state.global_step) / self.num_steps

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        log.info("  ✓ Checkpoint saved: %s", Path(args.output_dir) / f"checkpoint-{state.global_step}")
