"""Single optimizer steps of the tiny run, without a checkpoint."""

from pathlib import Path
from types import SimpleNamespace

import torch

from caspi.config import Recipe
from caspi.model.training.batch import StepBatch
from caspi.model.training.build import build_run, check_data, load_data, open_quarantine
from caspi.model.training.trainer import StageTrainer


class NoStore:
    def begin(self, folder: Path) -> None:
        raise AssertionError("nothing is saved here")

    def commit(self, *_: object) -> None:
        raise AssertionError("nothing is saved here")


def build_trainer(
    recipe: Recipe, output: Path, span_index: int, batch_size: int = 3, **changes: object
) -> StageTrainer:
    """Ready to take steps of 6 utterances; `changes` are fields of the recipe's `train`."""
    update = {"output_dir": output, "batch_size": batch_size, "gradient_accumulation_steps": 6 // batch_size}
    config = recipe.train.model_copy(update=update | changes)
    recipe = recipe.model_copy(update={"train": config})
    quarantine = open_quarantine(config, is_resumed=False)
    split = check_data(load_data(config), quarantine)
    run = build_run(recipe, split, quarantine, NoStore(), SimpleNamespace(exit_code=0), world_size=1)
    trainer = StageTrainer(run, run.spans[span_index])
    trainer.create_optimizer()
    trainer.state.global_step = run.spans[span_index].first_step
    return trainer


def step_batch(trainer: StageTrainer, epoch_index: int, step_index: int) -> StepBatch:
    loader = trainer.get_train_dataloader()
    trainer.sampler.set_epoch(epoch_index)
    return list(loader)[step_index]


def gradients(trainer: StageTrainer, step: StepBatch) -> tuple[float, dict[str, torch.Tensor]]:
    trainer.run.model.zero_grad()
    num_tokens = trainer._get_num_items_in_batch([step], torch.device("cpu"))
    loss = trainer.training_step(trainer.run.model, step, num_tokens)
    found = {name: p.grad.clone() for name, p in trainer.run.model.named_parameters() if p.grad is not None}
    return float(loss), found
