"""The random generators of a process go on after a resume as if nothing had happened."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from caspi.model.training.random_state import load_random_state, save_random_state


def draw() -> list[float]:
    pair = [random.gauss(0, 1), float(np.random.standard_normal())]
    return [*pair, random.random(), float(np.random.random()), float(torch.rand(()))]


@pytest.mark.parametrize("num_before", [0, 1, 2, 700])
def test_all_generators_go_on_where_they_were(num_before: int, tmp_path: Path) -> None:
    """An odd number of Gaussian draws leaves a second one waiting."""
    random.seed(num_before)
    np.random.seed(num_before)
    torch.manual_seed(num_before)
    for _ in range(num_before):
        draw()
    save_random_state(tmp_path / "random-0.safetensors")
    expected = [draw() for _ in range(3)]
    load_random_state(tmp_path / "random-0.safetensors")
    assert [draw() for _ in range(3)] == expected


def test_a_damaged_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "random-0.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"random state .*random-0\.safetensors cannot be read"):
        load_random_state(tmp_path / "random-0.safetensors")
