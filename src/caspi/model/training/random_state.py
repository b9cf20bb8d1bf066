"""The random generators of a process in one safetensors file: nothing of a checkpoint is ever unpickled.

Nothing that decides the weights draws from them: orders and augmentation have generators of their own, keyed by what
they are for. They are kept all the same, for a model whose layers draw, as with dropout.
"""

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

NO_SECOND_DRAW = float("nan")
"""Python's and NumPy's generators make Gaussian draws in pairs; this stands for no second one waiting."""


def file_name(rank: int) -> str:
    return f"random-{rank}.safetensors"


def save_random_state(path: Path) -> None:
    version, words, second = random.getstate()
    assert version == 3, "the layout of Python's generator since 3.2"
    drawn: dict[str, Any] = np.random.get_state(legacy=False)
    numbers = drawn["state"]
    tensors = {
        "python": torch.tensor(words, dtype=torch.int64),
        "python_second": torch.tensor(NO_SECOND_DRAW if second is None else second, dtype=torch.float64),
        "numpy": torch.from_numpy(numbers["key"].astype(np.int64)),
        "numpy_position": torch.tensor([numbers["pos"], drawn["has_gauss"]]),
        "numpy_second": torch.tensor(drawn["gauss"], dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    save_file(tensors, path)


def load_random_state(path: Path) -> None:
    """
    Raises:
        ValueError: the file is damaged.
    """
    try:
        tensors = load_file(path)
        second = float(tensors["python_second"])
        random.setstate((3, tuple(tensors["python"].tolist()), None if np.isnan(second) else second))
        position, has_gauss = tensors["numpy_position"].tolist()
        key = tensors["numpy"].numpy().astype(np.uint32)
        np.random.set_state(("MT19937", key, position, has_gauss, float(tensors["numpy_second"])))
        torch.set_rng_state(tensors["torch"])
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"random state {path} cannot be read: {error}") from None
    if torch.cuda.is_available() and "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"])
