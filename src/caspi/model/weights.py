"""Weights of a checkpoint into a model that already exists."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn


def load_weights(model: nn.Module, folder: Path) -> None:
    """Put the weights of a checkpoint of this model into it, tensor by tensor, each in the model's own precision.

    Raises:
        ValueError: a file is damaged, or a tensor is missing, unexpected or of another shape.
    """
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        try:
            tensors |= load_file(path)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"weights {path} cannot be read: {error}") from None
    expected = dict(model.named_parameters()) | dict(model.named_buffers())
    persistent = model.state_dict().keys()
    wanted = {name: tensor for name, tensor in expected.items() if name in persistent}
    differing = sorted(wanted.keys() ^ tensors.keys())
    differing += [name for name in wanted.keys() & tensors.keys() if wanted[name].shape != tensors[name].shape]
    if differing:
        raise ValueError(f"weights in {folder} do not fit the model: {', '.join(differing[:3])}")
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(tensors[name])
