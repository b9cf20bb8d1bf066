"""What the benchmarks work on: clips whose lengths and transcripts look like the corpus, made from a seed."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

SAMPLE_RATE_HZ = 16_000
CORPUS_SIZE = 73_579
"""Clips of the deployment guide's corpus."""
TOKENS_PER_SECOND = 4.1
"""Target tokens of Hebrew speech, counted with the published tokenizer (SPEED design page, section 1.2)."""
LETTERS_PER_SECOND = 12.0
SPREAD = 0.6
"""Standard deviation of ln(seconds)."""


class Clip(NamedTuple):
    path: Path
    text: str
    seconds: float


def clip_seconds(number: int, mean_seconds: float, seed: int, longest_seconds: float = 15.0) -> np.ndarray:
    """Lognormal durations of the given mean, kept within what training admits; [number]."""
    rng = np.random.default_rng(seed)
    drawn = rng.lognormal(np.log(mean_seconds) - SPREAD**2 / 2, SPREAD, number)
    return np.clip(drawn, 0.5, longest_seconds)


def prompt_tokens(seconds: np.ndarray) -> np.ndarray:
    """Positions of whole clips in the language model: audio, prompt and transcript; [num_clips]."""
    return np.round(13 * seconds + 15 + TOKENS_PER_SECOND * seconds).astype(int)


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
