"""The average of several checkpoints of one run."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import Qwen3ASRForConditionalGeneration, Qwen3ASRProcessor

from caspi.model.checkpoints.checkpoint import load_asr


def load_average(
    folders: Sequence[Path], weights: Sequence[float] = ()
) -> tuple[Qwen3ASRForConditionalGeneration, Qwen3ASRProcessor]:
    """A float32 model whose every tensor is the weighted mean of those of the checkpoints.

    Sums are taken in float64 and cast once; float32 weights times equal factors are summed without rounding there, so
    the order of the folders does not matter. One tensor of each checkpoint is in memory at a time.

    Raises:
        ValueError: fewer than two folders, another number of weights, or a checkpoint that does not load exactly or
            does not have the tensors of the first.
    """
    if len(folders) < 2:
        raise ValueError(f"an average needs at least two checkpoints, found {len(folders)}")
    factors = list(weights) or [1.0] * len(folders)
    if len(factors) != len(folders):
        raise ValueError(f"{len(folders)} checkpoints are averaged, but {len(factors)} weights are given")
    model, processor = load_asr(folders[0], torch.float32)
    with ExitStack() as stack:
        sources = [TensorSource(folder, stack) for folder in folders]
        names = sources[0].names()
        for source in sources[1:]:
            require_same_names(sources[0], source)
        state = model.state_dict()
        with torch.no_grad():
            for name in sorted(names):
                state[name].copy_(weighted_mean([source.tensor(name) for source in sources], factors))
    return model, processor


def weighted_mean(tensors: Sequence[torch.Tensor], factors: Sequence[float]) -> torch.Tensor:
    """Mean of equally shaped tensors in float64."""
    total = torch.zeros(tensors[0].shape, dtype=torch.float64)
    for tensor, factor in zip(tensors, factors, strict=True):
        total += factor * tensor.to(torch.float64)
    return total / sum(factors)


class TensorSource:
    """Tensors of a checkpoint folder by name, whichever file they are in."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.files: dict[str, Any] = {}
        for path in sorted(folder.glob("model*.safetensors")):
            opened = stack.enter_context(safe_open(path, framework="pt"))
            self.files |= dict.fromkeys(opened.keys(), opened)

    def names(self) -> set[str]:
        return set(self.files)

    def tensor(self, name: str) -> torch.Tensor:
        return self.files[name].get_tensor(name)


def require_same_names(first: TensorSource, other: TensorSource) -> None:
    """Of this model and of no other; shapes show when they are summed."""
    differing = sorted(first.names() ^ other.names())
    shapes = [n for n in first.names() & other.names() if first.tensor(n).shape != other.tensor(n).shape]
    if differing or shapes:
        raise ValueError(
            f"{other.folder} and {first.folder} are not checkpoints of one model: "
            f"{', '.join((differing + sorted(shapes))[:3])} differ"
        )
