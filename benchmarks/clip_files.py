"""Audio files with transcripts of a fitting length, made from a seed."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

SAMPLE_RATE_HZ = 16_000
LETTERS_PER_SECOND = 12.0
"""Of Hebrew speech."""


class Clip(NamedTuple):
    path: Path
    text: str
    seconds: float


def write_clips(folder: Path, seconds: Sequence[float], words: Sequence[str], seed: int, suffix: str) -> list[Clip]:
    """Audio files of shaped noise with transcripts of a fitting length; `suffix` is wav or flac."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    clips = []
    for index, duration in enumerate(seconds):
        samples = rng.normal(0, 0.1, round(duration * SAMPLE_RATE_HZ)).cumsum()
        samples = 0.3 * np.sin(samples).astype(np.float32)
        path = folder / f"{index:04d}.{suffix}"
        soundfile.write(path, samples, SAMPLE_RATE_HZ, subtype="PCM_16")
        clips.append(Clip(path, sentence(rng, words, duration), float(duration)))
    return clips


def sentence(rng: np.random.Generator, words: Sequence[str], seconds: float) -> str:
    chosen: list[str] = []
    while sum(map(len, chosen)) < LETTERS_PER_SECOND * seconds:
        chosen.append(words[int(rng.integers(len(words)))])
    return " ".join(chosen)
