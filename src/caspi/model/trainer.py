"""One stage of a run on the Hugging Face Trainer.

The Trainer keeps the loop, the state file, the wrapping for several processes and the reporters. Ours are the plan (one
batch of the loader is one process's share of one optimizer step), the learning rates, the optimizer by name, and
checkpoints that count only when they are complete. A stage that ends and a run that is killed leave the same thing
behind, a checkpoint; the next stage and the resumed run begin the same way, from it.
"""

import contextlib
import logging
import math
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import nn
from torch.utils.data import DataLoader
from transformers import (
    DefaultFlowCallback,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainingArguments,
)

from caspi.config import Train
from caspi.model.batch import StepBatch, StepCollator
from caspi.model.checkpoint import save_asr
from caspi.model.flow import Meter, StageFlow
from caspi.model.layers import check_closed, train_only
from caspi.model.optimizer import build_optimizer, load_optimizer, save_optimizer, set_learning_rates
from caspi.model.processes import barrier, is_main_process, num_processes, process_rank, sum_over_processes
from caspi.model.run import Run
from caspi.model.sampler import StepSampler
from caspi.model.stages import StageSpan
from caspi.model.weights import load_weights
from caspi.records import RunFailed

MAX_UNDECODABLE_FRACTION = 0.01

log = logging.getLogger(__name__)


def training_arguments(config: Train, num_epochs: int) -> TrainingArguments:
    """What the Trainer has to know; data order, learning rates, saving and reporting are ours."""
    on_gpu = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(config.output_dir),
        num_train_epochs=num_epochs,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
        max_grad_norm=config.max_grad_norm,
        bf16=on_gpu,
        use_cpu=not on_gpu,
        seed=config.seed,
        save_strategy="steps",
        save_steps=config.eval_steps,
        save_total_limit=None,
        eval_strategy="no",
        logging_steps=config.logging_steps,
        logging_nan_inf_filter=False,
        metric_for_best_model="eval_wer",
        greater_is_better=False,
        average_tokens_across_devices=True,
        ddp_find_unused_parameters=False,
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
        use_cache=True,
        log_level="error",
        log_level_replica="error",
    )
    # One process drives one GPU; without a launcher the Trainer would spread the batch with DataParallel.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


class StageTrainer(Trainer):
    """Trains one stage from where the newest checkpoint stands to the stage's last step."""

    def __init__(self, run: Run, span: StageSpan) -> None:
        self.run = run
        self.span = span
        self.exit_code = 0
        """Of the signal that ended this training, if one did."""
        self.used_rates: dict[str, float] = {}
        self.meter = Meter()
        self.sampler = StepSampler(run.plan, process_rank(), num_processes())
        # A parameter that trained in an earlier stage stays float32: rounding it back would lose what it learned.
        for earlier in run.spans[: span.stage_index + 1]:
            train_only(run.model, run.assigned, earlier.stage.learning_rates.keys())
        super().__init__(
            model=run.model,
            args=training_arguments(run.config, sum(item.stage.num_epochs for item in run.spans)),
            callbacks=[StageFlow(self), *run.callbacks],
        )
        for default in (DefaultFlowCallback, ProgressCallback, PrinterCallback):
            self.remove_callback(default)
        assert self._loss_shifts_labels, "the model's loss must shift the labels itself"

    def get_train_dataloader(self) -> DataLoader[StepBatch]:
        config = self.run.config
        return DataLoader(
            cast(Any, self.run.dataset()),
            batch_sampler=self.sampler,
            collate_fn=StepCollator(self.run.encoder, config.batch_size),
            num_workers=config.num_loader_workers,
            pin_memory=torch.cuda.is_available(),
            # The loader draws a seed for its workers even without any; the global generator must not notice.
            generator=torch.Generator().manual_seed(config.seed),
        )

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        config = self.run.config
        check_closed(self.run.model, self.run.assigned, self.span.stage.learning_rates.keys())
        self.optimizer = build_optimizer(
            self.run.model, self.run.assigned, weight_decay=config.weight_decay, beta2=config.adam_beta2
        )
        return self.optimizer

    @property
    def own_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer itself, also where accelerate has wrapped it."""
        return cast(torch.optim.Optimizer, getattr(self.optimizer, "optimizer", self.optimizer))

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        self.lr_scheduler = cast(Any, RateSetter(self))
        return self.lr_scheduler

    def _get_num_items_in_batch(self, batch_samples: list[StepBatch], device: torch.device) -> torch.Tensor:
        """Target tokens of the step over all processes: what the loss is divided by."""
        (step,) = batch_samples
        self.meter.num_utterances += step.num_utterances * num_processes()
        new = {item.id: item for item in step.rejected if item.id not in self.run.rejected}
        self.run.rejected |= new
        tokens, rejected = sum_over_processes([step.num_target_tokens, len(new)], device)
        self.run.num_rejected += rejected
        for item in new.values():
            log.warning("WARNING: clip %s cannot be decoded (%s): left out of training", item.id, item.reason)
        limit = MAX_UNDECODABLE_FRACTION * len(self.run.utterances)
        if self.run.num_rejected > limit:
            raise RunFailed(
                f"{self.run.num_rejected} of {len(self.run.utterances)} training clips cannot be decoded, "
                f"more than {MAX_UNDECODABLE_FRACTION:.0%}; look at quarantine.jsonl and run caspi prepare again"
            )
        return torch.tensor(max(tokens, 1), device=device)

    def training_step(
        self, model: nn.Module, inputs: Any, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Gradients of one optimizer step, given as StepBatch; returns its loss per target token."""
        if not model.training:
            model.train()
        self.used_rates = self.run.rates.of_stage(self.span, self.state.global_step)
        set_learning_rates(self.own_optimizer, self.used_rates)
        total = torch.zeros((), device=self.args.device)
        last = len(inputs.micro_batches) - 1
        for index, batch in enumerate(inputs.micro_batches):
            sync = contextlib.nullcontext() if index == last else self.accelerator.no_sync(model)
            with sync:
                moved = {name: tensor.to(self.args.device, non_blocking=True) for name, tensor in batch.items()}
                loss: Any = self.compute_loss(
                    model, {**moved, "use_cache": False}, num_items_in_batch=num_items_in_batch
                )
                self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def _clip_grad_norm(self, model: nn.Module) -> torch.Tensor:
        """Clip, and stop before the optimizer sees a gradient that is not finite."""
        norm = super()._clip_grad_norm(model)
        if not math.isfinite(norm):
            raise RunFailed(
                f"step {self.state.global_step + 1}: the gradient norm is {float(norm)}; stopped before the weights "
                "changed. The newest checkpoint is good; lower the learning rates or look at the data of this step"
            )
        return norm

    def floating_point_ops(self, inputs: Any) -> int:
        """The Trainer's estimate walks all parameters every step and does not know audio."""
        return 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the learning rate of every group as it was used, not as it will be."""
        if "loss" in logs:
            logs.pop("learning_rate", None)
            logs |= {f"learning_rate_{group}": rate for group, rate in self.used_rates.items()}
            logs["samples_per_second"] = self.meter.read()
            if torch.cuda.is_available():
                logs["gpu_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        super().log(logs, start_time)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        with self.meter.paused():
            metrics = self.run.dev_set.evaluate(self.run.model)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Lowest eval_wer; between equal ones the lower eval_loss."""
        at_best = [entry for entry in self.state.log_history if entry["step"] == self.state.best_global_step]
        best_loss = next((entry["eval_loss"] for entry in at_best if "eval_loss" in entry), -math.inf)
        if metrics["eval_wer"] == self.state.best_metric and metrics["eval_loss"] < best_loss:
            self.state.best_metric = math.inf
        return bool(super()._determine_best_metric(metrics, trial))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        step = self.state.global_step
        folder = self.run.config.output_dir / f"checkpoint-{step}"
        with self.meter.paused():
            if is_main_process():
                self.run.store.begin(folder)
            barrier()
            try:
                super()._save_checkpoint(model, trial)
            except (OSError, SafetensorError) as error:
                raise RunFailed(f"{folder} could not be written: {error}; older checkpoints are intact") from error
            barrier()
            if is_main_process():
                trainable = [name for name, parameter in self.run.model.named_parameters() if parameter.requires_grad]
                self.run.store.commit(folder, self.span.stage.name, step, trainable, self.state.best_global_step)
            barrier()

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Without `training_args.bin`, a pickle that also holds tokens."""
        assert output_dir is not None
        if self.args.should_save:
            save_asr(self.run.model, self.run.processor, output_dir)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Learning rates need no file: they follow from the step number."""
        if self.args.should_save:
            save_optimizer(self.own_optimizer, Path(output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_weights(self.run.model, Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        is_first_step = self.state.global_step == self.span.first_step
        before = (
            self.run.spans[self.span.stage_index - 1].stage.learning_rates
            if is_first_step and self.span.stage_index
            else None
        )

        def may_be_new(name: str) -> bool:
            return before is not None and self.run.assigned[name] not in before

        load_optimizer(self.own_optimizer, Path(checkpoint), may_be_new)

    def _finalize_training(self, *_: Any) -> None:
        """Nothing of the Trainer's summary: a stage is not the run, and the state file ends with the evaluation."""
        self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)
        self.is_in_train = False


class RateSetter:
    """Stands where the Trainer expects a scheduler; the rates are set before each step from the step number."""

    def __init__(self, trainer: StageTrainer) -> None:
        self.trainer = trainer

    def step(self) -> None:
        pass

    def get_last_lr(self) -> list[float]:
        return list(self.trainer.used_rates.values())
