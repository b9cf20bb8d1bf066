"""Checkpoints in the layout they were published in (`thinker.*` tensors, `thinker_config`).

transformers 5.23 knows no such layout: it reads the configuration as all defaults and the weights as random, with no
more than a warning. So the layout is recognised here, and configuration, tensor names and processor are translated.
"""

from pathlib import Path
from typing import Any

from transformers import Qwen2Tokenizer, Qwen3ASRConfig, Qwen3ASRFeatureExtractor

AUDIO_KEYS = (
    "num_mel_bins",
    "encoder_layers",
    "encoder_attention_heads",
    "encoder_ffn_dim",
    "d_model",
    "activation_function",
    "n_window",
    "n_window_infer",
    "output_dim",
    "downsample_hidden_size",
)
AUDIO_KEYS_WITH_DEFAULT = ("dropout", "attention_dropout", "activation_dropout", "scale_embedding", "initializer_range")
TEXT_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
)
TEXT_KEYS_WITH_DEFAULT = ("attention_bias", "attention_dropout", "initializer_range", "use_cache")
FEATURE_KEYS = ("feature_size", "hop_length", "chunk_length", "n_fft", "padding_value", "dither")
FRAMES_PER_CHUNK = 13
"""Encoder frames of one chunk of 100 mel frames, after three convolutions of stride 2."""


def is_original_layout(raw_config: dict[str, Any]) -> bool:
    return "thinker_config" in raw_config


def key_mapping(head: str) -> dict[str, str]:
    """Regular expressions from published tensor names to transformers'; `head` is `lm_head` or `score`."""
    return {
        r"^thinker\.lm_head\.": f"{head}.",
        r"^thinker\.model\.": "model.language_model.",
        r"^thinker\.audio_tower\.proj1\.": "model.multi_modal_projector.linear_1.",
        r"^thinker\.audio_tower\.proj2\.": "model.multi_modal_projector.linear_2.",
        r"^thinker\.audio_tower\.": "model.audio_tower.",
    }


def config_from_original(raw_config: dict[str, Any], end_token_ids: tuple[int, int]) -> Qwen3ASRConfig:
    """Translate a published `config.json`; `end_token_ids` are those of `<|endoftext|>` and `<|im_end|>`.

    The model pads with `<|im_end|>`, as in the published -hf checkpoints; the tokenizer with `<|endoftext|>`. Audio
    and text tokens have equal positions on all three axes of the published MRoPE, so plain RoPE is the same.

    Raises:
        ValueError: a key that decides shapes or token ids is absent.
    """
    thinker = raw_config["thinker_config"]
    try:
        audio, text = thinker["audio_config"], thinker["text_config"]
        extra: dict[str, Any] = {}
        if "classify_num" in thinker:
            extra = {"num_labels": thinker["classify_num"], "timestamp_token_id": raw_config["timestamp_token_id"]}
        rope = {"rope_type": "default", "rope_theta": float(text["rope_theta"])}
        audio_token_id, tied = thinker["audio_token_id"], text["tie_word_embeddings"]
        audio_values = take(audio, AUDIO_KEYS, AUDIO_KEYS_WITH_DEFAULT)
        text_values = take(text, TEXT_KEYS, TEXT_KEYS_WITH_DEFAULT)
    except KeyError as error:
        raise ValueError(f"config.json in the original layout lacks {error.args[0]!r}") from None
    return Qwen3ASRConfig(
        audio_config=audio_values | {"model_type": "qwen3_asr_encoder", "max_position_embeddings": FRAMES_PER_CHUNK},
        text_config=text_values | {"model_type": "qwen3", "rope_parameters": rope},
        audio_token_id=audio_token_id,
        pad_token_id=end_token_ids[-1],
        eos_token_id=list(end_token_ids),
        initializer_range=thinker.get("initializer_range", 0.02),
        tie_word_embeddings=tied,
        **extra,
    )


def take(values: dict[str, Any], required: tuple[str, ...], optional: tuple[str, ...]) -> dict[str, Any]:
    return {key: values[key] for key in required} | {key: values[key] for key in optional if key in values}


def processor_parts(folder: Path, raw_features: dict[str, Any]) -> tuple[Qwen3ASRFeatureExtractor, Qwen2Tokenizer]:
    """The published feature extractor (Whisper's, with the same numbers) and tokenizer as transformers' own classes."""
    features = {key: raw_features[key] for key in FEATURE_KEYS if key in raw_features}
    tokenizer = Qwen2Tokenizer.from_pretrained(folder, local_files_only=True)
    return Qwen3ASRFeatureExtractor(**features), tokenizer
