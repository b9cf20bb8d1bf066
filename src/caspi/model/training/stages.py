"""Stages on one axis of optimizer steps: which stage a step belongs to, and every learning rate as a function of it."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from caspi.config import Stage, Train


class StageSpan(NamedTuple):
    """One stage and its optimizer steps; step numbers go on across stages."""

    stage_index: int
    stage: Stage
    first_step: int
    """Steps done when the stage begins."""
    last_step: int
    """Steps done when it ends."""
    first_epoch_number: int

    @property
    def last_epoch_number(self) -> int:
        return self.first_epoch_number + self.stage.num_epochs - 1


def stage_spans(stages: Sequence[Stage], steps_per_epoch: int) -> tuple[StageSpan, ...]:
    spans = []
    epoch = 0
    for index, stage in enumerate(stages):
        end = epoch + stage.num_epochs
        spans.append(StageSpan(index, stage, epoch * steps_per_epoch, end * steps_per_epoch, epoch + 1))
        epoch = end
    return tuple(spans)


def span_at(spans: Sequence[StageSpan], steps_done: int) -> StageSpan | None:
    """The stage that takes the next step; None when all steps are done."""
    return next((span for span in spans if steps_done < span.last_step), None)


class LearningRates:
    """Learning rate of every layer group for the next step, as a pure function of the steps done.

    The stage's rate, times a linear warm-up over the run's first `warmup_steps`, times a linear warm-up of its own for
    a group that the previous stage did not train, times the cosine to zero at the end of the run where that is asked.
    """

    def __init__(self, train: Train, spans: Sequence[StageSpan]) -> None:
        self.train = train
        self.spans = spans
        self.num_steps = spans[-1].last_step

    def of_stage(self, span: StageSpan, steps_done: int) -> dict[str, float]:
        common = warm_up(steps_done, self.train.warmup_steps)
        if self.train.lr_schedule == "cosine":
            common *= self.cosine(steps_done)
        return {
            group: rate * common * self.rewarm_up(span, group, steps_done)
            for group, rate in span.stage.learning_rates.items()
        }

    def rewarm_up(self, span: StageSpan, group: str, steps_done: int) -> float:
        if span.stage_index == 0 or group in self.spans[span.stage_index - 1].stage.learning_rates:
            return 1.0
        return warm_up(steps_done - span.first_step, self.train.rewarmup_steps)

    def cosine(self, steps_done: int) -> float:
        """1 at the end of the warm-up, 0 after the last step of the run."""
        num_decay_steps = max(1, self.num_steps - self.train.warmup_steps)
        progress = (steps_done - self.train.warmup_steps) / num_decay_steps
        return 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, progress))))


def warm_up(steps_done: int, num_steps: int) -> float:
    """Linear to 1; the first step already moves."""
    return min(1.0, (steps_done + 1) / num_steps) if num_steps else 1.0
