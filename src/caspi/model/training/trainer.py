"""One stage of a run on the Hugging Face Trainer.

The Trainer keeps the loop, the state file, the wrapping for several processes and the reporters. Ours are the plan (one
batch of the loader is one process's share of one optimizer step), the learning rates, the optimizer by name, and
checkpoints that count only when they are complete. A stage that ends and a run that is killed leave the same thing
behind, a checkpoint; the next stage and the resumed run begin the same way, from it.
"""

import logging
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import DDPCommunicationHookType  # type: ignore[import-untyped]
from safetensors import SafetensorError
from torch import nn
from torch.utils.data import DataLoader
from transformers import DefaultFlowCallback, PrinterCallback, ProgressCallback, Trainer

from caspi.model.training.arguments import RateSetter, training_arguments
from caspi.model.training.batch import StepBatch
from caspi.model.training.dev_set import EvaluationStopped, never
from caspi.model.training.first_loss import check_first_loss, check_packed_loss
from caspi.model.training.flow import Meter, StageFlow
from caspi.model.training.gradients import Gradients
from caspi.model.training.layers import check_closed, train_only
from caspi.model.training.optimizer import build_optimizer, load_optimizer, save_optimizer, set_learning_rates
from caspi.model.training.parts import PackedParts, model_inputs
from caspi.model.training.processes import (
    all_gather_objects,
    barrier,
    is_main_process,
    leave_signals_to_parent,
    max_over_processes,
    num_processes,
    process_rank,
    sum_over_processes,
)
from caspi.model.training.random_state import file_name, load_random_state, save_random_state
from caspi.model.training.run import Run
from caspi.model.training.sampler import StepSampler
from caspi.model.training.sharding import full_tensors, gathered, is_sharded, shard, whole
from caspi.model.training.stages import StageSpan
from caspi.model.training.weights import Checksums
from caspi.records import RunFailed

NUM_COMPARED_CLIPS = 4
"""Of the first step, on which the packed loss is held against the stock one."""

log = logging.getLogger(__name__)


class StageTrainer(Trainer):
    """Trains one stage from where the newest checkpoint stands to the stage's last step."""

    def __init__(self, run: Run, span: StageSpan) -> None:
        self.run = run
        self.span = span
        self.exit_code = 0
        """Of the signal that ended this training, if one did."""
        self.used_rates: dict[str, float] = {}
        self.meter = Meter()
        self.checksums: Checksums | None = None
        """Of the weights as the stage began."""
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
        self.gradients = Gradients(self)
        assert self._loss_shifts_labels, "the model's loss must shift the labels itself"

    def _build_accelerator_args(self, **kwargs: Any) -> dict[str, Any]:
        """Gradients live in the buckets that are shared, not beside them, and travel in 16 bits between GPUs."""
        arguments = super()._build_accelerator_args(**kwargs)
        (sharing,) = arguments["kwargs_handlers"]
        sharing.gradient_as_bucket_view = True
        if torch.cuda.is_available() and self.run.config.gradient_exchange == "bfloat16":
            sharing.comm_hook = DDPCommunicationHookType.BF16
        return arguments

    def get_train_dataloader(self) -> DataLoader[StepBatch]:
        config = self.run.config
        return DataLoader(
            cast(Any, self.run.dataset()),
            batch_sampler=self.sampler,
            collate_fn=self.run.parts.collator(),
            num_workers=self.run.num_loader_workers,
            worker_init_fn=leave_signals_to_parent,
            pin_memory=torch.cuda.is_available(),
            # The loader draws a seed for its workers even without any; the global generator must not notice.
            generator=torch.Generator().manual_seed(config.seed),
        )

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        config = self.run.config
        check_closed(self.run.model, self.run.assigned, self.span.stage.learning_rates.keys())
        if config.data_parallel == "fsdp2":
            shard(self.run.model)
            # The Trainer's name for a model that shares its gradients by itself: it is not wrapped again.
            self.is_distributed_loading_by_transformers = True
        self.optimizer = build_optimizer(
            self.run.model, self.run.assigned, weight_decay=config.weight_decay, beta2=config.adam_beta2
        )
        return self.optimizer

    @property
    def own_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer itself, also where accelerate has wrapped it."""
        return cast(torch.optim.Optimizer, getattr(self.optimizer, "optimizer", self.optimizer))

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        self.lr_scheduler = cast(Any, RateSetter(lambda: self.used_rates))
        return self.lr_scheduler

    def get_batch_samples(
        self, epoch_iterator: Iterator[StepBatch], num_batches: int, device: torch.device
    ) -> tuple[list[StepBatch], torch.Tensor]:
        assert num_batches == 1, "one batch of the loader is one optimizer step"
        with self.meter.waiting():
            steps = [next(epoch_iterator)]
        return steps, self._get_num_items_in_batch(steps, device)

    def _get_num_items_in_batch(self, batch_samples: list[StepBatch], device: torch.device) -> torch.Tensor:
        """Target tokens of the step over all processes: what the loss is divided by."""
        (step,) = batch_samples
        self.meter.num_utterances += step.num_utterances * num_processes()
        tokens, rejected = sum_over_processes([step.num_target_tokens, len(step.rejected)], device)
        new = self.run.quarantine.add(step.rejected, device) if rejected else []
        for item in new if is_main_process() else ():
            log.warning("WARNING: clip %s cannot be decoded (%s): left out of training", item.id, item.reason)
        return torch.tensor(max(tokens, 1), device=device)

    def training_step(
        self, model: nn.Module, inputs: Any, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Gradients of one optimizer step, given as StepBatch; returns its loss per target token."""
        if not model.training:
            model.train()
        inputs = self.gradients.evened_out(inputs) if is_sharded(self.run.model) else inputs
        self.used_rates = self.run.rates.of_stage(self.span, self.state.global_step)
        set_learning_rates(self.own_optimizer, self.used_rates)
        total = self.gradients.of_step(model, inputs, num_items_in_batch)
        if self.state.global_step == 0:
            self.check_first_loss(inputs, total)
        return total

    def check_first_loss(self, step: StepBatch, total: torch.Tensor) -> None:
        losses = all_gather_objects(float(total))
        model, bound, parts = self.run.model, self.run.config.max_first_loss, self.run.parts
        vocabulary_size = model.get_output_embeddings().weight.shape[0]
        batch = self.run.encoder.padded(parts.of_step(step)[0])
        check_first_loss(model, batch, sum(losses) / len(losses), bound, vocabulary_size)
        if isinstance(parts, PackedParts):
            few = parts.shortest(step, NUM_COMPARED_CLIPS)
            both = [model_inputs(part, self.args.device) for part in (few, self.run.encoder.padded(few))]
            check_packed_loss(model, *both)

    def _clip_grad_norm(self, model: nn.Module) -> torch.Tensor:
        """Clip, and stop before the optimizer sees a gradient that is not finite."""
        norm = gathered(super()._clip_grad_norm(model))
        self.meter.max_grad_norm = max(self.meter.max_grad_norm, float(norm))
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
            logs |= (
                self.meter.read()
                | self.gpu_memory()
                | self.run.forecast.at(self.state.global_step, self.run.rates.num_steps)
            )
        super().log(logs, start_time)

    def gpu_memory(self) -> dict[str, float]:
        """Peak so far: of the fullest device, as a share of that device, and of each."""
        if not torch.cuda.is_available():
            return {}
        total = torch.cuda.get_device_properties(self.args.device).total_memory
        peaks = all_gather_objects(
            (torch.cuda.max_memory_allocated() / 2**30, torch.cuda.max_memory_reserved() / total)
        )
        each = {f"gpu_memory_gib_{rank}": gib for rank, (gib, _) in enumerate(peaks)}
        fullest = {"gpu_memory_gib": max(each.values()), "gpu_memory_fraction": max(share for _, share in peaks)}
        return fullest | (each if len(peaks) > 1 else {})

    def agreed_exit_code(self) -> int:
        """Of a signal that any process got, on all of them; 0: there was none."""
        return max_over_processes(self.run.stop.exit_code, self.args.device)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """
        Raises:
            EvaluationStopped: a signal came.
        """
        is_last = self.state.global_step >= self.run.spans[-1].last_step
        with self.meter.paused(), whole(self.run.model):
            metrics = self.run.dev_set.evaluate(self.run.model, never if is_last else self.agreed_exit_code)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _evaluate(self, *arguments: Any, **named: Any) -> dict[str, float]:
        """A signal ends an evaluation, too: the step is saved, and evaluated when the run goes on."""
        try:
            return dict(super()._evaluate(*arguments, **named))
        except EvaluationStopped as stopped:
            log.info("Saving checkpoint...")
            self.exit_code = stopped.exit_code
            self.control.should_training_stop = True
            return {}

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Lowest eval_wer; between equal ones the lower eval_loss. Nothing, after an evaluation that was stopped."""
        if not metrics:
            return False
        at_best = [entry for entry in self.state.log_history if entry["step"] == self.state.best_global_step]
        best_loss = next((entry["eval_loss"] for entry in at_best if "eval_loss" in entry), -math.inf)
        if metrics["eval_wer"] == self.state.best_metric and metrics["eval_loss"] < best_loss:
            self.state.best_metric = math.inf
        return bool(super()._determine_best_metric(metrics, trial))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        step = self.state.global_step
        folder = self.run.config.output_dir / f"checkpoint-{step}"
        with self.meter.paused():
            self.check_weights()
            if is_main_process():
                self.run.store.begin(folder)
            barrier()
            try:
                super()._save_checkpoint(model, trial)
            except (OSError, SafetensorError) as error:
                shutil.rmtree(folder, ignore_errors=True)  # a full disk is not helped by half a checkpoint
                raise RunFailed(f"{folder} could not be written: {error}; older checkpoints are intact") from error
            barrier()
            if is_main_process():
                trainable = [name for name, parameter in self.run.model.named_parameters() if parameter.requires_grad]
                self.run.store.commit(
                    folder,
                    self.span.stage.name,
                    step,
                    trainable,
                    self.state.best_global_step,
                    self.run.parts.record(),
                )
            barrier()

    def check_weights(self) -> None:
        """What no checkpoint may hold: processes that went apart, or frozen weights that moved."""
        assert self.checksums is not None, "on_train_begin takes them"
        with whole(self.run.model):
            now = Checksums(self.run.model)
        now.check_equal_on_all_processes()
        now.check_frozen_unchanged(self.checksums)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Without `training_args.bin`, a pickle that also holds tokens."""
        assert output_dir is not None
        tensors = full_tensors(self.run.model)
        if self.args.should_save:
            self.run.save_model(Path(output_dir), tensors)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Learning rates need no file: they follow from the step number."""
        save_optimizer(self.own_optimizer, Path(output_dir), writes=self.args.should_save)

    def _save_rng_state(self, output_dir: str) -> None:
        """Of each process; one may be here before the main process has made the folder."""
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        save_random_state(Path(output_dir) / file_name(process_rank()))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """A process that the run did not have before goes on with its own."""
        if checkpoint is not None and (path := Path(checkpoint) / file_name(process_rank())).exists():
            load_random_state(path)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self.run.load_model(Path(resume_from_checkpoint))

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
