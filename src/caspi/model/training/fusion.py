"""Fewer and larger kernels in the blocks of a model, and blocks that save no activations, as the recipe chooses.

Blocks are compiled or patched one by one, after everything that changes their layers (adapters) and before they are
wrapped for several processes.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import Qwen3ASRForConditionalGeneration


def blocks(model: Qwen3ASRForConditionalGeneration) -> list[nn.Module]:
    """Encoder layers, then those of the language model."""
    return [*model.model.audio_tower.layers, *model.model.language_model.layers]


def compile_blocks(model: Qwen3ASRForConditionalGeneration) -> None:
    """Every block compiled for any number of positions; the first steps of a stage compile, later ones do not."""
    for block in blocks(model):
        block.compile(dynamic=True)


@contextmanager
def uncompiled() -> Iterator[None]:
    """Compiled blocks run as they are written: transcribing changes shapes at every token."""
    with torch.compiler.set_stance("force_eager"):
        yield


def use_liger_kernels(model: Qwen3ASRForConditionalGeneration) -> None:
    """Liger's kernels for norms, rotations and feed-forward of the language model.

    The Trainer's own switch knows no Qwen3-ASR and does nothing without a word.

    Raises:
        ValueError: the package is not installed, or there is no GPU for its kernels.
    """
    if importlib.util.find_spec("liger_kernel") is None or not torch.cuda.is_available():
        raise ValueError(
            "train.liger needs the package liger-kernel and a GPU: install it with `uv pip install liger-kernel`, or "
            "leave --liger out"
        )
    from liger_kernel.transformers import apply_liger_kernel_to_qwen3  # type: ignore[import-not-found]

    # Logits exist for target rows only, so the fused linear cross-entropy has nothing left to save.
    apply_liger_kernel_to_qwen3(model=model.model.language_model, cross_entropy=False, fused_linear_cross_entropy=False)


def checkpoint_llm_layers(model: Qwen3ASRForConditionalGeneration, number: int) -> None:
    """The lowest LLM layers save only their input and are computed again in the backward pass.

    They are frozen in the guide's stages: there is no weight gradient that would wait for it.

    Raises:
        ValueError: the model has fewer layers.
    """
    layers = model.model.language_model.layers
    if number > len(layers):
        raise ValueError(f"train.num_checkpointed_llm_layers is {number}, but the model has {len(layers)} LLM layers")
    for layer in layers[:number]:
        block = cast(Any, layer)
        block.gradient_checkpointing = True
        block._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
