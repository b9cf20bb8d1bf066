"""The course of a stage: when to log, evaluate, save and stop; and how fast it goes."""

import contextlib
import logging
import math
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from caspi.model.training.sharding import whole
from caspi.model.training.stages import StageSpan
from caspi.model.training.weights import Checksums

if TYPE_CHECKING:
    from caspi.model.training.trainer import StageTrainer

log = logging.getLogger(__name__)


def is_worn_out(history: Sequence[dict[str, Any]], spans: Sequence[StageSpan], patience: int) -> bool:
    """Whether so many evaluations of the last stage in a row have not lowered eval_wer; never with a patience of 0.

    Only the last stage counts: the stages before it are there to be gone through.
    """
    lowest, num_in_vain = math.inf, 0
    for entry in history:
        if "eval_wer" not in entry:
            continue
        if entry["eval_wer"] < lowest:
            lowest, num_in_vain = entry["eval_wer"], 0
        elif entry["step"] > spans[-1].first_step:
            num_in_vain += 1
    return 0 < patience <= num_in_vain


class StageFlow(TrainerCallback):
    """When to log, evaluate, save and stop; always from the configuration, never from a resumed state file."""

    def __init__(self, trainer: "StageTrainer") -> None:
        self.trainer = trainer
        self.config = trainer.run.config

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look at weights and memory; then evaluate where a run that was stopped at an evaluation step did not."""
        # Around `forward` accelerate would lift the logits of a step to float32 once more; `loss_of` has an autocast.
        self.trainer.accelerator.unwrap_model(self.trainer.model_wrapped, keep_fp32_wrapper=False)
        with whole(self.trainer.run.model):
            self.trainer.checksums = Checksums(self.trainer.run.model)
        if args.device.type == "cuda":
            self.trainer.gradients.fit_memory()
        self.trainer.meter.restart()
        self.trainer.run.forecast.begin(state.global_step)
        evaluated = {entry["step"] for entry in state.log_history if "eval_loss" in entry}
        if state.global_step and self.is_due(state.global_step) and state.global_step not in evaluated:
            self.trainer._determine_best_metric(self.trainer.evaluate(), None)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # From the step: after a mid-epoch resume `state.epoch` is a fraction.
        self.trainer.sampler.set_epoch(state.global_step // self.trainer.run.plan.steps_per_epoch)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        step = state.global_step
        wears_out = self.wears_out(state)
        is_end = step >= self.trainer.span.last_step or wears_out
        is_last = step >= self.trainer.run.spans[-1].last_step
        exit_code = 0 if is_last else self.trainer.agreed_exit_code()
        if exit_code:
            self.trainer.exit_code = exit_code
            log.info("Saving checkpoint...")
        control.should_log = is_end or step % self.config.logging_steps == 0
        control.should_evaluate = self.is_due(step) and not exit_code
        control.should_save = self.is_due(step) or exit_code != 0 or wears_out
        control.should_training_stop = is_end or exit_code != 0

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = control.should_training_stop or self.wears_out(state)

    def wears_out(self, state: Any) -> bool:
        return is_worn_out(state.log_history, self.trainer.run.spans, self.config.early_stop_evaluations)

    def is_due(self, step: int) -> bool:
        ends = {span.last_step for span in self.trainer.run.spans}
        return step % self.config.eval_steps == 0 or step in ends


class Meter:
    """Speed of training, evaluations and saving not counted, and what else is measured at every step."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.num_utterances = 0
        self.wait_seconds = 0.0
        self.max_grad_norm = 0.0
        self.start = time.perf_counter()

    def read(self) -> dict[str, float]:
        """Since the last reading."""
        seconds = max(time.perf_counter() - self.start, 1e-9)
        found = {
            "samples_per_second": self.num_utterances / seconds,
            "data_wait_fraction": self.wait_seconds / seconds,
            "grad_norm_max": self.max_grad_norm,
        }
        self.restart()
        return found

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """For the next utterances to be decoded."""
        before = time.perf_counter()
        yield
        self.wait_seconds += time.perf_counter() - before

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        before = time.perf_counter()
        try:
            yield
        finally:
            self.start += time.perf_counter() - before
