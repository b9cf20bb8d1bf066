"""Parameters and FLOPs of a Qwen3-ASR model in closed form, without loading it.

Counts follow the layer definitions of transformers' `qwen3_asr`; `python -m benchmarks.step_counts` holds the FLOPs
against counted ones.
"""

import math
from pathlib import Path
from typing import NamedTuple

from caspi.files import read_object

AUDIO_TOKENS_PER_SECOND = 13
WINDOW_TOKENS = 104
"""Audio tokens that attend to each other (8 s)."""
PROMPT_TOKENS = 15
TOKENS_PER_CHARACTER = 0.35
"""Of Hebrew transcripts, counted with the model's tokenizer: 1.4 to 2.1 tokens per word."""


class Shape(NamedTuple):
    """The sizes that decide what a model costs."""

    audio_layers: int
    audio_width: int
    audio_ffn: int
    conv_channels: int
    mel_bins: int
    llm_layers: int
    hidden: int
    llm_ffn: int
    query_heads: int
    key_heads: int
    head_dim: int
    vocabulary: int


QWEN3_ASR_1_7B = Shape(24, 1024, 4096, 480, 128, 28, 2048, 6144, 16, 8, 128, 151_936)


def shape_of(model: str) -> Shape:
    """Sizes of a checkpoint folder of either layout; a Hub id is taken to have the sizes of Qwen3-ASR-1.7B.

    Raises:
        ValueError: the folder's config.json lacks a size.
    """
    path = Path(model) / "config.json"
    if not path.is_file():
        return QWEN3_ASR_1_7B
    config = read_object(path)
    config = config.get("thinker_config", config)
    try:
        audio, text = config["audio_config"], config["text_config"]
        return Shape(
            audio["encoder_layers"],
            audio["d_model"],
            audio["encoder_ffn_dim"],
            audio["downsample_hidden_size"],
            audio["num_mel_bins"],
            text["num_hidden_layers"],
            text["hidden_size"],
            text["intermediate_size"],
            text["num_attention_heads"],
            text["num_key_value_heads"],
            text["head_dim"],
            text["vocab_size"],
        )
    except KeyError as error:
        raise ValueError(f"{path} is not a Qwen3-ASR configuration: {error} is missing") from None


def estimated_tokens(seconds: float, text: str) -> float:
    """Text positions of a clip, near enough to deal out work and memory before anything is decoded."""
    return AUDIO_TOKENS_PER_SECOND * seconds + PROMPT_TOKENS + TOKENS_PER_CHARACTER * len(text)


def audio_layer_parameters(shape: Shape) -> int:
    width, ffn = shape.audio_width, shape.audio_ffn
    attention = 4 * (width * width + width)
    return attention + 2 * width * ffn + ffn + width + 4 * width


def llm_layer_parameters(shape: Shape) -> int:
    return llm_layer_weights(shape) + 2 * shape.hidden + 2 * shape.head_dim


def llm_layer_weights(shape: Shape) -> int:
    """Entries of the matrices of one LLM layer: what a token is multiplied with."""
    queries, keys = shape.query_heads * shape.head_dim, shape.key_heads * shape.head_dim
    return 2 * shape.hidden * queries + 2 * shape.hidden * keys + 3 * shape.hidden * shape.llm_ffn


def frequencies_after_stem(mel_bins: int) -> int:
    for _ in range(3):
        mel_bins = (mel_bins - 1) // 2 + 1
    return mel_bins


def parameters(shape: Shape, num_audio_top_layers: int, num_llm_top_layers: int) -> dict[str, int]:
    """Parameters by part; the tied matrix counts once, as `lm_head`.

    Raises:
        ValueError: more top layers are asked for than the model has.
    """
    for name, top, have in (
        ("audio", num_audio_top_layers, shape.audio_layers),
        ("LLM", num_llm_top_layers, shape.llm_layers),
    ):
        if top > have:
            raise ValueError(f"{top} top {name} layers asked for, but the model has {have}")
    conv, width = shape.conv_channels, shape.audio_width
    stem = 10 * conv + 2 * (9 * conv * conv + conv) + conv * frequencies_after_stem(shape.mel_bins) * width
    return {
        "audio_stem": stem,
        "audio_bottom": (shape.audio_layers - num_audio_top_layers) * audio_layer_parameters(shape),
        "audio_top": num_audio_top_layers * audio_layer_parameters(shape),
        "audio_norm": 2 * width,
        "projector": width * width + width + width * shape.hidden + shape.hidden,
        "llm_bottom": (shape.llm_layers - num_llm_top_layers) * llm_layer_parameters(shape),
        "llm_top": num_llm_top_layers * llm_layer_parameters(shape),
        "llm_norm": shape.hidden,
        "lm_head": shape.vocabulary * shape.hidden,
    }


def training_flops(
    shape: Shape, seconds: float, target_tokens: float, trained: set[str], num_audio_top: int, num_llm_top: int
) -> float:
    """FLOPs of one forward and backward pass over one clip, with logits on target rows only.

    A multiply-add counts 2. Backward: the gradient to a layer's input costs as much as its forward pass, attention 2.5
    times its forward (the flash kernel recomputes it), weight gradients as much again where a layer is trained.
    """
    audio_tokens = round(AUDIO_TOKENS_PER_SECOND * seconds)
    tokens = audio_tokens + target_tokens + PROMPT_TOKENS
    width, conv = shape.audio_width, shape.conv_channels
    full, rest = divmod(audio_tokens, WINDOW_TOKENS)
    audio_matrices = 2 * (4 * width * width + 2 * width * shape.audio_ffn) * audio_tokens
    audio_attention = 4 * width * (full * WINDOW_TOKENS**2 + rest**2)
    llm_matrices = 2 * llm_layer_weights(shape) * tokens
    llm_attention = 2 * shape.query_heads * shape.head_dim * tokens**2
    projector = 2 * (width * width + width * shape.hidden) * audio_tokens
    head = 2 * shape.vocabulary * shape.hidden * target_tokens
    forward = stem_flops(conv, width, shape.mel_bins, seconds) + projector + head
    forward += shape.audio_layers * (audio_matrices + audio_attention)
    forward += shape.llm_layers * (llm_matrices + llm_attention)
    backward = head * (2 if "lm_head" in trained else 1) + projector * (2 if "audio_top" in trained else 1)
    if "audio_top" in trained:
        backward += num_audio_top * (2 * audio_matrices + 2.5 * audio_attention)
    else:
        backward += 2 * width * shape.hidden * audio_tokens
    backward += shape.llm_layers * (llm_matrices + 2.5 * llm_attention)
    backward += (num_llm_top if "llm_top" in trained else 0) * llm_matrices
    return forward + backward


def stem_flops(conv: int, width: int, mel_bins: int, seconds: float) -> float:
    """Three strided 3x3 convolutions over chunks of 100 frames, then one matrix."""
    flops, rows, frames = 0.0, mel_bins, 100
    for channels_in in (1, conv, conv):
        rows, frames = (rows - 1) // 2 + 1, (frames - 1) // 2 + 1
        flops += 9 * channels_in * conv * rows * frames
    return 2 * math.ceil(seconds) * (flops + frames * rows * conv * width)
