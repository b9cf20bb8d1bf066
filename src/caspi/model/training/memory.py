"""The memory of the card this process trains on: what is planned before, and what is left."""

from typing import NamedTuple

import torch

from caspi.config import Plan, Train
from caspi.model import footprint
from caspi.model.memory_footprint import StepSize, Trained, token_budget

OutOfMemory = torch.cuda.OutOfMemoryError
BYTES_OF_MOMENTS = 8
"""Of Adam, per trained parameter: two float32."""
TOKEN_BUDGET_OF_A_CPU = 16_384
LEAST_CLIPS_AT_ONCE = 4
"""Of the greatest length. Below it a step is mostly launches, and computing frozen layers twice costs less."""


class MemoryPlan(NamedTuple):
    token_budget: int
    """Text positions computed at once."""
    num_checkpointed_llm_layers: int


def plan_memory(config: Train, plan: Plan, memory_bytes: float | None, num_gpus: int) -> MemoryPlan:
    """For a card of so many bytes, None for a CPU; the recipe's own figures come first.

    Frozen LLM layers are checkpointed only where not even a few of the longest clips would fit at once without.
    """
    saving = config.num_checkpointed_llm_layers or 0
    if memory_bytes is None:
        return MemoryPlan(config.token_budget or TOKEN_BUDGET_OF_A_CPU, saving)
    shape = footprint.shape_of(config.base_model)
    longest = StepSize.of_clips(1, config.max_audio_length_seconds, plan.target_tokens_per_second)
    usable = plan.max_memory_fraction * memory_bytes
    budget = token_budget(shape, widest_stage(config, shape, num_gpus, saving), longest, usable)
    if config.num_checkpointed_llm_layers is None and budget < LEAST_CLIPS_AT_ONCE * longest.tokens:
        saving = shape.llm_layers - config.num_llm_top_layers
        budget = token_budget(shape, widest_stage(config, shape, num_gpus, saving), longest, usable)
    return MemoryPlan(config.token_budget or max(budget, int(longest.tokens)), saving)


def widest_stage(config: Train, shape: footprint.Shape, num_gpus: int, num_checkpointed: int) -> Trained:
    groups = set().union(*(stage.learning_rates for stage in config.stages))
    parts = footprint.parameters(shape, config.num_audio_top_layers, config.num_llm_top_layers)
    return Trained(
        trained_parameters=sum(number for name, number in parts.items() if name in groups),
        all_parameters=sum(parts.values()),
        num_audio_top=config.num_audio_top_layers if "audio_top" in groups else 0,
        num_llm_top=config.num_llm_top_layers if "llm_top" in groups else 0,
        num_gpus=num_gpus,
        num_checkpointed_llm=num_checkpointed,
    )


def leaves_room(device: torch.device, num_new_moments: int) -> bool:
    """Whether Adam's moments that the first step will allocate fit beside the peak so far; always, without a GPU."""
    if device.type != "cuda":
        return True
    peak = torch.cuda.max_memory_reserved(device) + BYTES_OF_MOMENTS * num_new_moments
    return peak <= torch.cuda.get_device_properties(device).total_memory


def free_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
