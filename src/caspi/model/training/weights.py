"""Weights of a checkpoint into a model that already exists, and checksums that tell whether weights are the same."""

from collections.abc import Callable, Collection
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import distributed, nn

from caspi.model.training.layers import LORA_PART
from caspi.model.training.processes import num_processes
from caspi.records import RunFailed

BYTES_PER_TRAINED = 3 * 4
"""Weight and two moments."""
UNDER_ADAPTER = ".base_layer."
"""In the name of a weight that has an adapter, as peft gives it."""
BITS_OF = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


class Checksums:
    """One 64-bit sum of bit patterns per parameter: cheap enough to compare at every save."""

    def __init__(self, model: nn.Module) -> None:
        parameters = list(model.named_parameters())
        self.names = [name for name, _ in parameters]
        self.frozen = [not parameter.requires_grad for _, parameter in parameters]
        self.sums = torch.stack([checksum(parameter) for _, parameter in parameters])

    def check_equal_on_all_processes(self) -> None:
        """
        Raises:
            RunFailed: the processes hold different weights, so their gradients were not shared.
        """
        if num_processes() == 1:
            return
        lowest, highest = self.sums.clone(), self.sums.clone()
        distributed.all_reduce(lowest, op=distributed.ReduceOp.MIN)
        distributed.all_reduce(highest, op=distributed.ReduceOp.MAX)
        differing = [name for name, differs in zip(self.names, (lowest != highest).tolist(), strict=True) if differs]
        if differing:
            raise RunFailed(
                f"the processes hold different weights ({len(differing)} tensors, for example {differing[0]}): their "
                "gradients were not shared. Nothing was saved; the checkpoint before is good"
            )

    def check_frozen_unchanged(self, before: "Checksums") -> None:
        """
        Raises:
            RunFailed: a parameter that does not train has changed since `before`.
        """
        moved = (self.sums != before.sums).tolist()
        changed = [name for name, moves, frozen in zip(self.names, moved, self.frozen, strict=True) if moves and frozen]
        if changed:
            raise RunFailed(
                f"{changed[0]} is frozen, but has changed; nothing was saved, the checkpoint before is good"
            )


def checksum(parameter: nn.Parameter) -> torch.Tensor:
    return parameter.detach().contiguous().view(BITS_OF[parameter.dtype]).sum(dtype=torch.int64)


def load_weights(model: nn.Module, folder: Path, under_adapters: Collection[str] = ()) -> None:
    """Put the weights of a checkpoint of this model into it, tensor by tensor, each in the model's own precision.

    `under_adapters` names tensors that the file must have but the model, which has adapters there, keeps as they are.

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
    own = {name: tensor for name, tensor in expected.items() if name in persistent and LORA_PART not in name}
    wanted = {name.replace(UNDER_ADAPTER, "."): tensor for name, tensor in own.items()}
    differing = sorted(wanted.keys() ^ tensors.keys())
    differing += [name for name in wanted.keys() & tensors.keys() if wanted[name].shape != tensors[name].shape]
    if differing:
        raise ValueError(f"weights in {folder} do not fit the model: {', '.join(differing[:3])}")
    with torch.no_grad():
        for name in wanted.keys() - set(under_adapters):
            wanted[name].copy_(tensors[name])


def checkpoint_bytes(model: nn.Module, trains: Callable[[str], bool]) -> int:
    """Size of a checkpoint: trained weights and Adam's moments in float32, the rest as loaded."""
    return sum(
        parameter.numel() * (BYTES_PER_TRAINED if trains(name) else parameter.element_size())
        for name, parameter in model.named_parameters()
    )
