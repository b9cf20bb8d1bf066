"""AdamW whose parameters, groups and state go by name, so that state can only return to where it belongs."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from caspi.model.training.layers import GROUPS, LORA
from caspi.model.training.sharding import gathered, like

OPTIMIZER_FILE = "optimizer.safetensors"
STATE_KEYS = ("step", "exp_avg", "exp_avg_sq")
SEPARATOR = "|"


def build_optimizer(
    model: nn.Module, assigned: Mapping[str, str], *, weight_decay: float, beta2: float
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters: per layer group one parameter group with weight decay and one without.

    Norms, biases and the tied matrix do not decay; decay would erode the embedding of every token that the training
    language never uses. Learning rates are set before each step.
    """
    groups = []
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    for layer_group in (*GROUPS, LORA):
        members = [(name, p) for name, p in trainable if assigned[name] == layer_group]
        for decays in (True, False):
            chosen = [(name, p) for name, p in members if does_decay(name, p, layer_group) == decays]
            if chosen:
                decay = weight_decay if decays else 0.0
                groups.append({"params": chosen, "layer_group": layer_group, "weight_decay": decay, "lr": 0.0})
    return torch.optim.AdamW(groups, betas=(0.9, beta2), fused=True)


def does_decay(name: str, parameter: nn.Parameter, layer_group: str) -> bool:
    return layer_group != "lm_head" and parameter.dim() > 1 and not name.endswith(".bias")


def set_learning_rates(optimizer: torch.optim.Optimizer, rates: Mapping[str, float]) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rates[group["layer_group"]]


def named_parameters(optimizer: torch.optim.Optimizer) -> dict[str, nn.Parameter]:
    return {
        name: parameter
        for group in optimizer.param_groups
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
    }


def save_optimizer(optimizer: torch.optim.Optimizer, folder: Path, writes: bool = True) -> None:
    """Write Adam's moments and step counters as `PARAMETER|exp_avg` and so on.

    Where the parameters are sharded, all processes call this together and one of them `writes`.
    """
    tensors = {}
    for name, parameter in named_parameters(optimizer).items():
        for key in STATE_KEYS:
            tensor = gathered(optimizer.state[parameter][key])
            if writes:
                tensors[f"{name}{SEPARATOR}{key}"] = tensor.detach().cpu().contiguous()
    if writes:
        save_file(tensors, folder / OPTIMIZER_FILE)


def load_optimizer(optimizer: torch.optim.Optimizer, folder: Path, may_be_new: Callable[[str], bool]) -> list[str]:
    """Put saved state back by parameter name; returns the names that start fresh.

    State of parameters that no longer train is left in the file. `may_be_new` says which parameters may have none.

    Raises:
        ValueError: the file is missing or damaged, a shape differs, or a parameter that trained before has no state.
    """
    path = folder / OPTIMIZER_FILE
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"optimizer state {path} cannot be read: {error}") from None
    fresh = []
    for name, parameter in named_parameters(optimizer).items():
        state = {key: tensors.get(f"{name}{SEPARATOR}{key}") for key in STATE_KEYS}
        found = {key: tensor for key, tensor in state.items() if tensor is not None}
        if not found and may_be_new(name):
            fresh.append(name)
            continue
        check_state(path, name, parameter, found)
        # Adam keeps its step counter on the parameter's device when fused.
        optimizer.state[parameter] = {key: like(tensor, parameter) for key, tensor in found.items()}
    return fresh


def check_state(path: Path, name: str, parameter: nn.Parameter, found: Mapping[str, torch.Tensor]) -> None:
    missing = [key for key in STATE_KEYS if key not in found]
    if missing:
        raise ValueError(f"optimizer state {path} lacks {', '.join(missing)} of {name}, which trained before")
    for key in STATE_KEYS[1:]:
        if found[key].shape != parameter.shape:
            raise ValueError(
                f"optimizer state {path}: {key} of {name} has shape {tuple(found[key].shape)}, "
                f"expected {tuple(parameter.shape)}"
            )
