"""Aligners that ignore the audio: an audit that believes them is broken, so it must end in AUDIT_INVALID."""

import itertools
from collections.abc import Sequence

import numpy as np

from caspi.config import Recipe
from caspi.model.aligners import AlignmentItem, FailedToAlign
from caspi.speech.alignment.quality import Alignment
from caspi.speech.corpora.audio import SAMPLE_RATE_HZ
from caspi.speech.seeds import seeded_generator


class UniformAligner:
    """Spreads the words evenly and is always sure of itself."""

    model_id = "uniform"
    device = "cpu"
    dtype = "float64"

    def __init__(self, recipe: Recipe) -> None:
        del recipe

    def align(self, items: Sequence[AlignmentItem]) -> list[Alignment | FailedToAlign]:
        return [self._align(item) for item in items]

    def _align(self, item: AlignmentItem) -> Alignment:
        edges = np.linspace(0, len(item.samples) / SAMPLE_RATE_HZ, len(item.words) + 1).tolist()
        sure = (1.0,) * len(item.words)
        return Alignment(tuple(itertools.pairwise(edges)), sure, 1.0, sure)


class RandomAligner:
    """Ordered random times and random scores."""

    model_id = "random"
    device = "cpu"
    dtype = "float64"

    def __init__(self, recipe: Recipe) -> None:
        self.seed = recipe.audit.seed

    def align(self, items: Sequence[AlignmentItem]) -> list[Alignment | FailedToAlign]:
        return [self._align(item) for item in items]

    def _align(self, item: AlignmentItem) -> Alignment:
        generator = seeded_generator(self.seed, "random aligner", f"{len(item.samples)} {' '.join(item.words)}")
        seconds = len(item.samples) / SAMPLE_RATE_HZ
        times = np.sort(generator.uniform(0, seconds, 2 * len(item.words))).reshape(-1, 2).tolist()
        scores = tuple(generator.uniform(0, 1, len(item.words)).tolist())
        return Alignment(tuple((start, end) for start, end in times), scores, float(np.mean(scores)), scores)
