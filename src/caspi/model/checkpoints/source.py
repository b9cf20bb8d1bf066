"""The weights that are exported: one checkpoint, an average of several, or adapters merged into their base."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from transformers import Qwen3ASRForConditionalGeneration, Qwen3ASRProcessor

from caspi.config import Train
from caspi.model.checkpoints import lora
from caspi.model.checkpoints.averaging import load_average
from caspi.model.checkpoints.checkpoint import load_asr
from caspi.model.checkpoints.weight_proof import clip_logits, relative_difference
from caspi.model.training.layers import assign_groups, frozen_attention


class Source(NamedTuple):
    """Checkpoint folders and what their run says about them."""

    folders: tuple[Path, ...]
    average_weights: tuple[float, ...]
    """Empty: all the same."""
    train: Train
    """Of the run: base model, stages, layer groups."""
    groups: frozenset[str]
    """Layer groups that had trained by then."""
    language: str


class Loaded(NamedTuple):
    model: Qwen3ASRForConditionalGeneration
    """In float32."""
    processor: Qwen3ASRProcessor
    assigned: dict[str, str]
    """Layer group of every parameter."""
    trained: set[str]
    """Names of the parameters that may differ from the base model's."""
    merge_difference: float | None
    """Relative change of the logits by merging adapters; None: there were none."""


def load_source(source: Source, base_model: str, clip: np.ndarray) -> Loaded:
    """Load, average or merge in float32.

    Raises:
        ValueError: a checkpoint does not load exactly, or adapters are to be averaged.
    """
    adapters = [folder for folder in source.folders if lora.is_adapter(folder)]
    if adapters and len(source.folders) > 1:
        raise ValueError(
            f"{adapters[0]} holds LoRA adapters: the mean of adapters is not the adapter of the mean; "
            "export one checkpoint with --checkpoint best"
        )
    if adapters:
        return load_merged(source, base_model, clip)
    model, processor = load_folders(source.folders, source.average_weights)
    assigned = groups_of(model, source)
    trained = {name for name, group in assigned.items() if group in source.groups}
    if source.train.lora_rank:
        trained |= set(frozen_attention(model, source.train.num_llm_top_layers))  # adapters were merged into these
    return Loaded(model, processor, assigned, trained, None)


def load_folders(
    folders: Sequence[Path], weights: Sequence[float]
) -> tuple[Qwen3ASRForConditionalGeneration, Qwen3ASRProcessor]:
    if len(folders) > 1:
        return load_average(folders, weights)
    return load_asr(folders[0], torch.float32)


def load_merged(source: Source, base_model: str, clip: np.ndarray) -> Loaded:
    (folder,) = source.folders
    model, processor = load_asr(base_model, torch.float32)
    trained = lora.adapted_parameters(folder, model)
    adapted = lora.attach(model, folder)
    before = clip_logits(adapted, processor, clip, source.language, "")
    merged = lora.merge(adapted)
    after = clip_logits(merged, processor, clip, source.language, "")
    return Loaded(merged, processor, groups_of(merged, source), trained, relative_difference(after, before))


def groups_of(model: Qwen3ASRForConditionalGeneration, source: Source) -> dict[str, str]:
    return assign_groups(model, source.train.num_llm_top_layers, source.train.num_audio_top_layers)
