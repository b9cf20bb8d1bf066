"""Our features are the extractor's."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen3ASRFeatureExtractor

from caspi.model.log_mel import LogMel


@pytest.mark.parametrize("num_samples", [1, 4_000, 8_000, 16_001, 240_000], ids=str)
@pytest.mark.parametrize("kind", ["noise", "silence", "tone"])
def test_features_equal_the_extractors_to_one_in_a_hundred_thousand(kind: str, num_samples: int) -> None:
    steps = np.arange(num_samples)
    samples = {
        "noise": np.random.default_rng(1).normal(0, 0.1, num_samples),
        "silence": np.zeros(num_samples),
        "tone": 0.5 * np.sin(2 * np.pi * 440 * steps / 16_000),
    }[kind].astype(np.float32)
    extractor: Any = Qwen3ASRFeatureExtractor(feature_size=128)
    expected = extractor(samples, sampling_rate=16_000, padding=False, n_window=0)["input_features"][0]
    found = LogMel(extractor)(torch.from_numpy(samples))
    torch.testing.assert_close(found, torch.as_tensor(expected), rtol=0, atol=1e-5)


def test_an_extractor_that_adds_noise_is_refused() -> None:
    with pytest.raises(ValueError, match=r"other features .* dither 0\.1"):
        LogMel(Qwen3ASRFeatureExtractor(dither=0.1))
