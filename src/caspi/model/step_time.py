"""How long an optimizer step of the packed engine takes on one GPU: a roofline in closed form.

Matrix products take their FLOPs at the card's attainable rate; everything between them takes the bytes it reads and
writes at the attainable bandwidth; a GPU never waits less than Python needs to launch the operations. Bytes and counts
are those of transformers' eager classes under autocast, counted by `python -m benchmarks.step_traffic`.
"""

from typing import NamedTuple

from caspi.model.footprint import QWEN3_ASR_1_7B, Shape
from caspi.model.memory_footprint import StepSize, Trained

MOVED_BYTES_TRAINED_LLM_LAYER = 1827.7 * 1024
"""Forward and backward, per position at hidden size 2048, matrix products not counted."""
MOVED_BYTES_FROZEN_LLM_LAYER = 1631.7 * 1024
MOVED_BYTES_TRAINED_AUDIO_LAYER = 162.2 * 1024
"""Per audio position at width 1024."""
MOVED_BYTES_FROZEN_AUDIO_LAYER = 44.1 * 1024
MOVED_BYTES_PER_LOGIT = 68
MOVED_BYTES_PER_TRAINED_PARAMETER = 12
"""Casting weights to bfloat16 and gradients back."""
UPDATE_BYTES_PER_TRAINED_PARAMETER = 40
"""Norm and clipping of the gradient, AdamW in float32."""
LAUNCHES_TRAINED_LLM_LAYER, LAUNCHES_FROZEN_LLM_LAYER = 187, 160
LAUNCHES_TRAINED_AUDIO_LAYER, LAUNCHES_FROZEN_AUDIO_LAYER = 70, 12
LAUNCHES_OUTSIDE_LAYERS = 100


class Rates(NamedTuple):
    """What a card attains."""

    product_flops_per_second: float
    bytes_per_second: float
    seconds_per_launch: float


class StepTime(NamedTuple):
    product_seconds: float
    moving_seconds: float
    update_seconds: float
    launch_seconds: float
    """On the host, while the GPU works."""

    @property
    def seconds(self) -> float:
        return max(self.product_seconds + self.moving_seconds + self.update_seconds, self.launch_seconds)


def step_time(shape: Shape, trained: Trained, step: StepSize, flops: float, num_parts: float, rates: Rates) -> StepTime:
    """Of one rank's share.

    Args:
        step: the whole share.
        flops: of its forward and backward pass, `footprint.training_flops`.
        num_parts: parts that the share is computed in; each launches all operations again.
    """
    moved = (
        moved_bytes(shape, trained, step) + num_parts * MOVED_BYTES_PER_TRAINED_PARAMETER * trained.trained_parameters
    )
    update = UPDATE_BYTES_PER_TRAINED_PARAMETER * trained.trained_parameters
    return StepTime(
        product_seconds=flops / rates.product_flops_per_second,
        moving_seconds=moved / rates.bytes_per_second,
        update_seconds=update / rates.bytes_per_second,
        launch_seconds=num_parts * num_launches(shape, trained) * rates.seconds_per_launch,
    )


def moved_bytes(shape: Shape, trained: Trained, step: StepSize) -> float:
    """Read and written between the matrix products of forward and backward pass, weights not counted."""
    llm = trained.num_llm_top * MOVED_BYTES_TRAINED_LLM_LAYER
    llm += (shape.llm_layers - trained.num_llm_top) * MOVED_BYTES_FROZEN_LLM_LAYER
    audio = trained.num_audio_top * MOVED_BYTES_TRAINED_AUDIO_LAYER
    audio += (shape.audio_layers - trained.num_audio_top) * MOVED_BYTES_FROZEN_AUDIO_LAYER
    return (
        step.tokens * llm * shape.hidden / QWEN3_ASR_1_7B.hidden
        + step.audio_tokens * audio * shape.audio_width / QWEN3_ASR_1_7B.audio_width
        + step.target_tokens * shape.vocabulary * MOVED_BYTES_PER_LOGIT
    )


def num_launches(shape: Shape, trained: Trained) -> int:
    frozen_llm, frozen_audio = shape.llm_layers - trained.num_llm_top, shape.audio_layers - trained.num_audio_top
    return (
        trained.num_llm_top * LAUNCHES_TRAINED_LLM_LAYER
        + frozen_llm * LAUNCHES_FROZEN_LLM_LAYER
        + trained.num_audio_top * LAUNCHES_TRAINED_AUDIO_LAYER
        + frozen_audio * LAUNCHES_FROZEN_AUDIO_LAYER
        + LAUNCHES_OUTSIDE_LAYERS
    )
