"""Which parameters a stage trains: layer groups as closed sets, counted from `model.config`.

`projector` is the multi-modal projector; `audio_top` and `llm_top` are the last N transformer layers of the audio
tower and of the language model, and nothing else: the norms that follow them (`ln_post`, `norm`) belong to no layer
and stay frozen, so that the groups hold what the deployment guide counts. `lm_head` is the output matrix; where the
checkpoint ties it to the input embeddings, it is that one shared matrix and trains both. The rest is `frozen`.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from transformers import Qwen3ASRForConditionalGeneration

GROUPS = ("projector", "audio_top", "llm_top", "lm_head")
LORA = "lora"
"""Group of the adapters, where the recipe has some; no stage names it."""
FROZEN = "frozen"
PROJECTOR = "model.multi_modal_projector."
AUDIO_LAYERS = "model.audio_tower.layers."
LLM_LAYERS = "model.language_model.layers."
ATTENTION = ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight", "self_attn.o_proj.weight")
LORA_PART = ".lora_"
"""In the names of adapters, as peft gives them."""


class GroupRow(NamedTuple):
    """One line of the table of layer groups."""

    name: str
    num_tensors: int
    num_parameters: int
    learning_rate: float | None
    """None: frozen in this stage."""


def assign_groups(
    model: Qwen3ASRForConditionalGeneration, num_llm_top_layers: int, num_audio_top_layers: int
) -> dict[str, str]:
    """Layer group of every parameter, by the names of `model.named_parameters()`; a shared parameter has one name.

    Raises:
        ValueError: more top layers than the model has, a parameter in two groups, or a group without parameters.
    """
    audio, text = cast(Any, model.config.audio_config), cast(Any, model.config.text_config)
    prefixes = {
        "projector": [PROJECTOR],
        "audio_top": top_layers(AUDIO_LAYERS, "num_audio_top_layers", num_audio_top_layers, audio.encoder_layers),
        "llm_top": top_layers(LLM_LAYERS, "num_llm_top_layers", num_llm_top_layers, text.num_hidden_layers),
        "lm_head": [head_name(model)],
    }
    assigned = {name: group_of(name, prefixes) for name, _ in model.named_parameters()}
    assigned |= {name: LORA for name in assigned if LORA_PART in name}
    for group in GROUPS:
        if group not in assigned.values():
            raise ValueError(f"layer group {group} is empty: no parameter begins with {', '.join(prefixes[group])}")
    return assigned


def frozen_attention(model: Qwen3ASRForConditionalGeneration, num_llm_top_layers: int) -> list[str]:
    """Names of the attention matrices of the LLM layers below the top ones.

    Raises:
        ValueError: there is no such layer.
    """
    num_frozen = cast(Any, model.config.text_config).num_hidden_layers - num_llm_top_layers
    if num_frozen < 1:
        raise ValueError(f"train.num_llm_top_layers is {num_llm_top_layers}: no LLM layer is left for LoRA to adapt")
    return [f"{LLM_LAYERS}{index}.{part}" for index in range(num_frozen) for part in ATTENTION]


def top_layers(prefix: str, key: str, num_top: int, num_layers: int) -> list[str]:
    if not 1 <= num_top <= num_layers:
        raise ValueError(f"train.{key} is {num_top}, but the model has {num_layers} such layers: expected 1 to that")
    return [f"{prefix}{index}." for index in range(num_layers - num_top, num_layers)]


def head_name(model: Qwen3ASRForConditionalGeneration) -> str:
    """Name under which the output matrix occurs; a tied one occurs only as the embedding matrix."""
    head = model.get_output_embeddings().weight
    return next(name for name, parameter in model.named_parameters() if parameter is head)


def is_head_tied(model: Qwen3ASRForConditionalGeneration) -> bool:
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


def group_of(name: str, prefixes: Mapping[str, Collection[str]]) -> str:
    """The one group whose prefixes match, or `frozen`.

    Raises:
        ValueError: two groups claim the parameter.
    """
    matches = [group for group, starts in prefixes.items() if any(name.startswith(start) for start in starts)]
    if len(matches) > 1:
        raise ValueError(f"parameter {name} is in two layer groups: {' and '.join(matches)}")
    return matches[0] if matches else FROZEN


def check_group_names(names: Iterable[str]) -> None:
    """
    Raises:
        ValueError: a name that is no layer group.
    """
    unknown = sorted(set(names) - {*GROUPS, LORA})
    if unknown:
        raise ValueError(f"unknown layer group {', '.join(unknown)}; layer groups are {', '.join(GROUPS)}")


def train_only(model: nn.Module, assigned: Mapping[str, str], groups: Collection[str]) -> None:
    """Let exactly the parameters of `groups` require a gradient.

    Trainable parameters become float32 whatever the model was loaded in: bfloat16 weights lose most of the small
    updates (TRAINING: 28 % of the progress is left at a learning rate of 3e-5).

    Raises:
        ValueError: an unknown group name, or no group at all.
    """
    check_group_names(groups)
    if not groups:
        raise ValueError("a stage trains no layer group: give it at least one learning rate")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(assigned[name] in groups)
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
    check_closed(model, assigned, groups)


def check_closed(model: nn.Module, assigned: Mapping[str, str], groups: Collection[str]) -> None:
    """
    Raises:
        ValueError: a parameter trains that is in none of `groups`, or one of them does not train.
    """
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    wanted = {name for name, group in assigned.items() if group in groups}
    left_over, missing = sorted(trainable - wanted), sorted(wanted - trainable)
    if left_over:
        raise ValueError(f"parameter {left_over[0]} would train, but is in none of {', '.join(groups)}")
    if missing:
        raise ValueError(f"parameter {missing[0]} of layer group {assigned[missing[0]]} would not train")


def group_table(
    model: nn.Module, assigned: Mapping[str, str], learning_rates: Mapping[str, float]
) -> tuple[GroupRow, ...]:
    """Tensors and parameters of every group, `frozen` last, with the learning rate where the group trains."""
    sizes: dict[str, list[int]] = {group: [] for group in (*GROUPS, LORA, FROZEN)}
    for name, parameter in model.named_parameters():
        sizes[assigned[name]].append(parameter.numel())
    if not sizes[LORA]:
        del sizes[LORA]
    return tuple(
        GroupRow(group, len(numels), sum(numels), learning_rates.get(group)) for group, numels in sizes.items()
    )


def describe(group: str, num_llm_top_layers: int, num_audio_top_layers: int) -> str:
    """A group as the deployment guide names it, for example `Top 12 LLM`."""
    names = {
        "projector": "Projector",
        "audio_top": f"Top {num_audio_top_layers} Audio",
        "llm_top": f"Top {num_llm_top_layers} LLM",
        "lm_head": "LM head",
        LORA: "LoRA",
    }
    return names[group]
