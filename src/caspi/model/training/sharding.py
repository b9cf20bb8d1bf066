"""FSDP2: weights, gradients and Adam's moments in parts, one for each process; a flag instead of DDP.

The model is sharded after its weights are loaded and before the optimizer is built. Whatever looks at weights by name
(evaluation, checksums, checkpoints) does so inside `whole`, where every process has the plain model, so checkpoints are
the same files as with DDP and a run may go on with or without sharding. There is no way back from `fully_shard`: each
stage begins with a model of its own.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import Qwen3ASRForConditionalGeneration

from caspi.model.training.processes import num_processes


def shard(model: Qwen3ASRForConditionalGeneration) -> None:
    """Split every transformer layer, and then what is left, among the processes.

    A layer is gathered when it computes and given up afterwards. What trains in one unit has one precision: layers
    train whole or not at all, and of the rest only the projector and the tied matrix train, in float32.
    """
    device = next(model.parameters()).device
    mesh = init_device_mesh(device.type, (num_processes(),))
    for layer in (*model.model.audio_tower.layers, *model.model.language_model.layers):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def is_sharded(model: nn.Module) -> bool:
    return isinstance(model, FSDPModule)


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """While the block runs, every process holds all weights as plain tensors; all processes must enter it together.

    Inside, a forward pass needs no other process. Weights must not be changed. Without sharding nothing happens.
    """
    units = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.reshard()
            unit.set_reshard_after_forward(True, recurse=False)


def full_tensors(model: nn.Module) -> dict[str, torch.Tensor] | None:
    """The state of a sharded model in whole tensors on the CPU, a shared one once; all processes must call it together.

    None without sharding: the model's own state will do. Not from inside `whole`: asking for the state ends that.
    """
    if not is_sharded(model):
        return None
    aliases = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    aliases -= {name for name, _ in model.named_parameters()}
    return {name: gathered(tensor).cpu() for name, tensor in model.state_dict().items() if name not in aliases}


def gathered(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor of which each process has a part; all processes must call it together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """The tensor on the parameter's device, in parts where the parameter is."""
    if isinstance(parameter, DTensor) and tensor.shape == parameter.shape:
        return distribute_tensor(tensor.to(parameter.device), parameter.device_mesh, parameter.placements)
    return tensor.to(parameter.device)
