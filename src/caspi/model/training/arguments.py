"""What the Hugging Face Trainer is told."""

from collections.abc import Callable

import torch
from transformers import TrainingArguments

from caspi.config import Train


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
        # Buffers are constants; sharing them would be a collective inside the forward pass, where memory may run out.
        ddp_broadcast_buffers=False,
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


class RateSetter:
    """Stands where the Trainer expects a scheduler; the rates are set before each step from the step number."""

    def __init__(self, used_rates: Callable[[], dict[str, float]]) -> None:
        self.used_rates = used_rates

    def step(self) -> None:
        pass

    def get_last_lr(self) -> list[float]:
        return list(self.used_rates().values())
