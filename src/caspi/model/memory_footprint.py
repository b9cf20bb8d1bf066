"""Memory of the packed training step on one GPU, in closed form, and how many positions fit a card.

Weights that train are float32 and computed with in bfloat16 under autocast, which keeps a copy of them until the
backward pass; frozen ones are bfloat16. What autograd saves was counted on the stock classes with the attention kernel
of GPUs; `python -m benchmarks.saved_bytes` counts it again.
"""

from typing import NamedTuple

from caspi.model.footprint import AUDIO_TOKENS_PER_SECOND, PROMPT_TOKENS, QWEN3_ASR_1_7B, Shape

SAVED_BYTES_TRAINED_LLM_LAYER = 130.2 * 1024
"""Per position at hidden size 2048, with which it scales: float32 norms lift what they return."""
SAVED_BYTES_FROZEN_LLM_LAYER = 76.2 * 1024
SAVED_BYTES_TRAINED_AUDIO_LAYER = 32.1 * 1024
"""Per audio position at width 1024."""
SAVED_BYTES_CHECKPOINTED_LLM_LAYER = 8.0 * 1024
"""Per position at hidden size 2048: its input in float32, from which the layer is computed again."""
SAVED_BYTES_OUTSIDE_LAYERS = 19.0 * 1024
"""Per position: embeddings and the final norm."""
SAVED_BYTES_PER_LOGIT = 4
"""The log-probabilities of target rows."""
PASSING_BYTES_PER_LOGIT = 6
"""Their gradient in float32 and in bfloat16, while the backward pass begins."""
RESERVED_BYTES = 1e9
"""CUDA's own, the libraries' and what lies between allocations."""


class StepSize(NamedTuple):
    """What is computed at once."""

    tokens: float
    """Positions in the language model, audio among them."""
    audio_tokens: float
    target_tokens: float

    @classmethod
    def of_clips(cls, number: float, seconds: float, target_tokens_per_second: float) -> "StepSize":
        audio, target = number * AUDIO_TOKENS_PER_SECOND * seconds, number * target_tokens_per_second * seconds
        return cls(audio + target + number * PROMPT_TOKENS, audio, target)

    def scaled(self, factor: float) -> "StepSize":
        return StepSize(*(factor * size for size in self))


class Trained(NamedTuple):
    """What a stage trains, and on how many GPUs."""

    trained_parameters: int
    all_parameters: int
    num_audio_top: int
    """0: no audio layer trains."""
    num_llm_top: int
    num_gpus: int
    reuses_buckets: bool = True
    """Whether gradients live in the buckets that DistributedDataParallel reduces, or beside them."""
    num_checkpointed_llm: int = 0
    """Frozen LLM layers that are computed again in the backward pass."""


class Memory(NamedTuple):
    """Bytes per GPU while training."""

    weights: float
    """With autocast's copies."""
    gradients: float
    optimizer: float
    buckets: float
    activations: float
    logits: float
    is_split: bool
    """Whether a step is computed in several parts, or gradients lie in buckets: then they exist from the beginning."""

    @property
    def total(self) -> float:
        """At the peak: gradients come as activations go, unless gradients are there already."""
        passing = self.activations + self.logits
        moving = self.gradients + passing if self.is_split else max(self.gradients, passing)
        return self.weights + self.optimizer + self.buckets + moving + RESERVED_BYTES


def training_memory(shape: Shape, trained: Trained, step: StepSize, is_split: bool) -> Memory:
    """Memory while `step` is computed; `is_split` says that the optimizer step has further parts."""
    frozen = trained.all_parameters - trained.trained_parameters
    has_buckets = trained.num_gpus > 1
    return Memory(
        weights=2 * frozen + 6 * trained.trained_parameters,
        gradients=4 * trained.trained_parameters,
        optimizer=8 * trained.trained_parameters,
        buckets=4 * trained.trained_parameters if has_buckets and not trained.reuses_buckets else 0,
        activations=saved_bytes(shape, trained, step),
        logits=step.target_tokens * shape.vocabulary * PASSING_BYTES_PER_LOGIT,
        is_split=is_split or has_buckets,
    )


def saved_bytes(shape: Shape, trained: Trained, step: StepSize) -> float:
    """What autograd saves of a step, autocast's copies of weights not counted."""
    per_token = trained.num_llm_top * SAVED_BYTES_TRAINED_LLM_LAYER + SAVED_BYTES_OUTSIDE_LAYERS
    num_saving = trained.num_checkpointed_llm
    per_token += (shape.llm_layers - trained.num_llm_top - num_saving) * SAVED_BYTES_FROZEN_LLM_LAYER
    per_token += num_saving * SAVED_BYTES_CHECKPOINTED_LLM_LAYER
    per_audio_token = trained.num_audio_top * SAVED_BYTES_TRAINED_AUDIO_LAYER
    return (
        step.tokens * per_token * shape.hidden / QWEN3_ASR_1_7B.hidden
        + step.audio_tokens * per_audio_token * shape.audio_width / QWEN3_ASR_1_7B.audio_width
        + step.target_tokens * shape.vocabulary * SAVED_BYTES_PER_LOGIT
    )


def token_budget(shape: Shape, trained: Trained, longest: StepSize, memory_bytes: float) -> int:
    """Positions that can be computed at once within `memory_bytes`, 0 if nothing fits.

    Args:
        longest: one clip of the greatest length, for the proportion of audio and targets.
    """
    fixed = training_memory(shape, trained, longest.scaled(0.0), is_split=True).total
    whole = training_memory(shape, trained, longest, is_split=True).total
    return max(0, int((memory_bytes - fixed) / (whole - fixed) * longest.tokens))
