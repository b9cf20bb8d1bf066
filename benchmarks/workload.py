"""What the benchmarks work on: clips whose lengths look like the corpus, made from a seed."""

import numpy as np

CORPUS_SIZE = 73_579
"""Clips of the deployment guide's corpus."""
TOKENS_PER_SECOND = 4.1
"""Target tokens of Hebrew speech, counted with the published tokenizer (SPEED design page, section 1.2)."""
SPREAD = 0.6
"""Standard deviation of ln(seconds)."""


def clip_seconds(number: int, mean_seconds: float, seed: int, longest_seconds: float = 15.0) -> np.ndarray:
    """Lognormal durations of the given mean, kept within what training admits; [number]."""
    rng = np.random.default_rng(seed)
    drawn = rng.lognormal(np.log(mean_seconds) - SPREAD**2 / 2, SPREAD, number)
    return np.clip(drawn, 0.5, longest_seconds)


def prompt_tokens(seconds: np.ndarray) -> np.ndarray:
    """Positions of whole clips in the language model: audio, prompt and transcript; [num_clips]."""
    return np.round(13 * seconds + 15 + TOKENS_PER_SECOND * seconds).astype(int)
