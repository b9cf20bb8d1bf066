"""Loss and gradients of one optimizer step, in parts that fit the memory, on all processes together."""

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from caspi.model.training.batch import Example, Part, StepBatch
from caspi.model.training.memory import OutOfMemory, free_memory, leaves_room
from caspi.model.training.optimizer import named_parameters
from caspi.model.training.parts import model_inputs
from caspi.model.training.processes import max_over_processes, num_processes
from caspi.model.training.sharding import is_sharded
from caspi.records import RunFailed

if TYPE_CHECKING:
    from caspi.model.training.trainer import StageTrainer


class Gradients:
    """Of one stage; halves the parts of the run when memory runs out."""

    def __init__(self, trainer: "StageTrainer") -> None:
        self.trainer = trainer
        self.run = trainer.run
        self.device = trainer.args.device

    def of_step(self, model: nn.Module, step: StepBatch, num_items: Any) -> torch.Tensor:
        """Loss per target token of this process's share; its gradients are then in the parameters.

        Raises:
            RunFailed: not even one utterance at a time fits.
        """
        total = None
        while total is None:
            total = self.try_step(model, step, num_items)
        return total

    def try_step(self, model: nn.Module, step: StepBatch, num_items: Any) -> torch.Tensor | None:
        """None when memory ran out on any process; then there are no gradients on any.

        The processes agree before the one backward pass that shares gradients: it must not begin on some only. Until
        then DistributedDataParallel is told to share nothing.
        """
        parts = self.run.parts.of_step(step)
        total = torch.zeros((), device=self.device)
        ran_out = False
        try:
            with self.trainer.accelerator.no_sync(model):
                for part in parts[:-1]:
                    loss = self.loss_of(model, part, num_items)
                    self.trainer.accelerator.backward(loss)
                    total += loss.detach()
                loss = self.loss_of(model, parts[-1], num_items)
                total += loss.detach()
                if not isinstance(model, DistributedDataParallel):
                    self.trainer.accelerator.backward(loss)
        except OutOfMemory as error:
            self.check_can_agree(model, error)
            ran_out = True
        if max_over_processes(int(ran_out), self.device):
            self.take_half(model, parts, "GPU memory ran out")
            return None
        if isinstance(model, DistributedDataParallel):
            self.share(model, loss)
        return total

    def share(self, model: DistributedDataParallel, loss: torch.Tensor) -> None:
        """Backward with the sum over all processes, as if the forward pass had not been told to share nothing."""
        model.reducer.prepare_for_backward([])
        try:
            self.trainer.accelerator.backward(loss)
        except OutOfMemory as error:
            raise RunFailed(
                f"GPU memory ran out while the processes were sharing gradients; {self.only_by_restart()}"
            ) from error

    def evened_out(self, step: StepBatch) -> StepBatch:
        """With silence added, so that all processes compute equally many parts: they gather each layer together."""
        num_parts = len(self.run.parts.of_step(step))
        num_missing = max_over_processes(num_parts, self.device) - num_parts
        silence = self.run.parts.make([self.run.encoder.silence()])
        return step._replace(parts=[*step.parts, *silence * num_missing])

    def loss_of(self, model: nn.Module, part: Part, num_items: Any) -> torch.Tensor:
        # Around the model's own autocast, which a pre-hook is not under.
        with self.trainer.accelerator.autocast():
            inputs = model_inputs(part, self.device)
            loss: Any = self.trainer.compute_loss(model, inputs, num_items_in_batch=num_items)
        return cast(torch.Tensor, loss)

    def check_can_agree(self, model: nn.Module, error: BaseException) -> None:
        """
        Raises:
            RunFailed: the model is sharded: the others wait in the middle of a layer and cannot be asked.
        """
        if is_sharded(model):
            raise RunFailed(f"GPU memory ran out in a sharded model; {self.only_by_restart()}") from error

    def only_by_restart(self) -> str:
        return f"this cannot be tried again. Start again with {self.run.parts.advice()}: the result stays the same"

    def take_half(self, model: nn.Module, parts: list[Part], reason: str) -> None:
        model.zero_grad(set_to_none=True)
        free_memory(self.device)
        self.run.parts.halve(parts, reason, self.device)

    def fit_memory(self) -> None:
        """Halve the parts until the worst one that this stage can meet fits."""
        longest = self.longest_examples()
        while not self.fits(worst := self.run.parts.worst(longest)):
            self.take_half(self.trainer.model_wrapped, [worst], "the longest clips do not fit into GPU memory")

    def longest_examples(self) -> list[Example]:
        """As many as a process's share of a step has."""
        number = -(-self.run.plan.utterances_per_step // num_processes())
        dataset, utterances = self.run.dataset(), self.run.utterances
        found: list[Example] = []
        for index in sorted(range(len(utterances)), key=lambda index: (-utterances[index].duration, index)):
            if len(found) == number:
                break
            item = dataset[(0, index)]
            if isinstance(item, Example):
                found.append(item)
        return found

    def fits(self, part: Part) -> bool:
        """Whether all processes can compute a part and then allocate Adam's moments."""
        model, optimizer = self.trainer.model_wrapped, self.trainer.own_optimizer
        num_new = sum(p.numel() for p in named_parameters(optimizer).values() if p not in optimizer.state)
        fits = True
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            try:
                with self.trainer.accelerator.no_sync(model):
                    loss = self.loss_of(model, part, torch.tensor(1, device=self.device))
                    self.trainer.accelerator.backward(loss)
            except OutOfMemory as error:
                self.check_can_agree(model, error)
                fits = False
        fits = fits and leaves_room(self.device, num_new)
        model.zero_grad(set_to_none=True)
        free_memory(self.device)
        return max_over_processes(int(not fits), self.device) == 0
