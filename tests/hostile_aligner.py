"""An aligner whose process certain clips take down, as native code does. Clips are told apart by their length."""

import os
import signal
import time
from collections.abc import Sequence

from caspi.config import Recipe
from caspi.model.aligners import AlignmentItem, FailedToAlign
from caspi.model.aligners.blind import RandomAligner
from caspi.speech.alignment.quality import Alignment

SEGFAULT, KILLED, HANGS, RAISES = 16_001, 16_002, 16_003, 16_004
"""Samples of a clip that ends the process so."""


class HostileAligner(RandomAligner):
    def align(self, items: Sequence[AlignmentItem]) -> list[Alignment | FailedToAlign]:
        lengths = {len(item.samples) for item in items}
        if SEGFAULT in lengths:
            os.kill(os.getpid(), signal.SIGSEGV)
        if KILLED in lengths:
            os.kill(os.getpid(), signal.SIGKILL)
        if HANGS in lengths:
            time.sleep(1000)
        if RAISES in lengths:
            raise MemoryError("no room for the logits")
        return super().align(items)


def die_while_loading(recipe: Recipe) -> HostileAligner:
    os.kill(os.getpid(), signal.SIGKILL)
    return HostileAligner(recipe)
