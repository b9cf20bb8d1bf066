"""The forward pass of a packed batch through the stock classes of Qwen3-ASR.

A pre-hook on the model turns packed inputs into arguments of its own `forward`: embeddings with the audio in place,
positions that restart and the bounds of the clips. So wrappers for several processes, compiled and adapted layers see
one ordinary forward pass of the model. Nothing in it asks the host: the stock encoder looks on the device for the
frames that are audio and for the bounds of its windows, here the loader has computed both.

Shapes: M mel bins, F mel frames, A audio positions, T text positions, C chunks of frames, D width.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.functional import gelu
from transformers import Qwen3ASRForConditionalGeneration
from transformers.models.qwen3_asr.modeling_qwen3_asr import Qwen3ASREncoder

from caspi.model.packed.attention import IMPLEMENTATION, prepare_kernel

OF_LAYOUT = ("packed_features", "packed_ids", "audio_rows", "audio_cu_seqlens", "max_audio_length", "audio_positions",
             "position_ids", "cu_seqlens", "max_text_length", "target_rows", "targets", "chunk_frames")  # fmt: skip


def take_packed_inputs(model: Qwen3ASRForConditionalGeneration) -> None:
    """Let the model take `packed.batch.PackedBatch.inputs` beside its own arguments; those it takes as before.

    With packed inputs `forward` returns the loss of the supervised tokens and their logits [1, K, V].
    """
    model.register_forward_pre_hook(PackedForward(model), with_kwargs=True)


class PackedForward:
    """The pre-hook of one model; also says at every pass which attention its inputs need."""

    def __init__(self, model: Qwen3ASRForConditionalGeneration) -> None:
        self.configs = (model.model.audio_tower.config, model.model.language_model.config)
        self.stock = tuple(config._attn_implementation for config in self.configs)

    def __call__(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        is_packed = "packed_ids" in kwargs
        for config, stock in zip(self.configs, self.stock, strict=True):
            # It stays until the next pass: a checkpointed layer computes again in the backward pass.
            config._attn_implementation = IMPLEMENTATION if is_packed else stock
        if not is_packed:
            return None
        assert isinstance(model, Qwen3ASRForConditionalGeneration)
        prepare_kernel(kwargs["packed_ids"].device.type)
        others = {name: value for name, value in kwargs.items() if name not in OF_LAYOUT}
        return args, others | stock_arguments(model, kwargs)


def stock_arguments(model: Qwen3ASRForConditionalGeneration, packed: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the stock `forward` that stand for a packed batch."""
    audio = encode_audio(
        model.model.audio_tower,
        packed["packed_features"],
        packed["audio_rows"],
        packed["audio_cu_seqlens"],
        packed["max_audio_length"],
    )
    places = packed["audio_positions"]
    projected = model.model.multi_modal_projector(audio[: len(places)])
    embedded = model.get_input_embeddings()(packed["packed_ids"])
    bounds, longest = packed["cu_seqlens"], packed["max_text_length"]
    return {
        "inputs_embeds": embedded.index_copy(0, places, projected.to(embedded.dtype))[None],
        # Made already: transformers would look for packed clips in the positions, on the device.
        "attention_mask": {"full_attention": None},
        "position_ids": packed["position_ids"],
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": longest,
        "max_length_k": longest,
        "use_cache": False,
        "logits_to_keep": packed["target_rows"],
        "labels": packed["targets"],
        "shift_labels": packed["targets"],
    }


def encode_audio(
    tower: Qwen3ASREncoder, features: torch.Tensor, rows: torch.Tensor, cu_seqlens: torch.Tensor, max_length: int
) -> torch.Tensor:
    """[A, D] for features [M, F], as the stock encoder computes them for each clip.

    `rows` [A] says which of the convolutions' outputs are audio, `cu_seqlens` bounds the windows of attention.
    """
    chunks = features.unflatten(1, (-1, 2 * tower.n_window)).transpose(0, 1).unsqueeze(1)
    for convolution in (tower.conv2d1, tower.conv2d2, tower.conv2d3):
        chunks = gelu(convolution(chunks))
    hidden = tower.conv_out(chunks.permute(0, 3, 1, 2).flatten(2))
    positions = tower.positional_embedding.positional_embedding[: hidden.shape[1]]
    hidden = (hidden + positions.to(hidden.dtype)).flatten(0, 1).index_select(0, rows)
    for layer in tower.layers:
        hidden = layer(hidden, cu_seqlens, max_seqlen=max_length)[0]
    encoded: torch.Tensor = tower.ln_post(hidden)
    return encoded
