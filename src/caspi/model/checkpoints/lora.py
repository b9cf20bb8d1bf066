"""LoRA adapters into the weights they adapt."""

from pathlib import Path

import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import Qwen3ASRForConditionalGeneration

from caspi.model.checkpoints.checkpoint import quiet_transformers

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."


def is_adapter(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def attach(model: Qwen3ASRForConditionalGeneration, folder: Path) -> PeftModel:
    """The model with the adapter beside its weights, in evaluation mode.

    Raises:
        ValueError: the adapter has no safetensors weights or does not fit the model.
    """
    if not (folder / WEIGHTS).is_file():
        raise ValueError(f"adapter {folder}: expected {WEIGHTS}; pickled weights are never loaded")
    try:
        with quiet_transformers():
            adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=False, torch_device="cpu")
    except (ValueError, RuntimeError, KeyError, OSError) as error:
        raise ValueError(f"adapter {folder} does not fit its base model: {' '.join(str(error).split())}") from error
    return adapted.eval()


def merge(adapted: PeftModel) -> Qwen3ASRForConditionalGeneration:
    """Fold the adapter into the weights; the input embeddings stay tied to the head.

    Raises:
        ValueError: the adapter unties them, which no layout can express.
    """
    was_tied = adapted.config.tie_word_embeddings
    merged: Qwen3ASRForConditionalGeneration = adapted.merge_and_unload(safe_merge=True)
    if was_tied and merged.get_output_embeddings().weight is not merged.get_input_embeddings().weight:
        raise ValueError(
            "the adapter trains the output matrix apart from the input embeddings it is tied to; "
            "train the tied matrix itself (layer group lm_head) instead"
        )
    return merged.eval()


def adapted_parameters(folder: Path, model: torch.nn.Module) -> set[str]:
    """Names of the parameters of the merged model that the adapter changes.

    Raises:
        ValueError: an adapter tensor belongs to no parameter of the model.
    """
    with safe_open(folder / WEIGHTS, framework="pt") as tensors:
        keys = list(tensors.keys())
    parameters = dict(model.named_parameters(remove_duplicate=False))
    names = {parameter_of(key) for key in keys}
    unknown = sorted(names - parameters.keys())
    if unknown:
        raise ValueError(f"adapter {folder} has tensors for {unknown[0]}, which the model has not")
    ids = {id(parameters[name]) for name in names}
    return {name for name, parameter in model.named_parameters() if id(parameter) in ids}


def parameter_of(key: str) -> str:
    """`base_model.model.X.lora_A.weight` adapts `X.weight`; a fully trained module has its own name."""
    name = key.removeprefix(PREFIX)
    for part in (".lora_A", ".lora_B", ".lora_embedding_A", ".lora_embedding_B", ".lora_magnitude_vector"):
        if part in name:
            return name.split(part)[0] + ".weight"
    return name
