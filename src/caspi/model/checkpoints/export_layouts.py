"""Checkpoints in the layout Qwen published (`thinker.*`): for the qwen-asr package, and for vLLM as well.

The inverse of `original_layout`. Sizes and token ids come from the model and its tokenizer; what transformers 5 does
not keep, because it decides nothing (positions on three equal axes, limits of a position table that is computed), is
written as published.
"""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import save_torch_state_dict
from tokenizers import AddedToken
from transformers import Qwen3ASRForConditionalGeneration, Qwen3ASRProcessor

from caspi.model.checkpoints.checkpoint import end_token_ids, save_asr
from caspi.model.checkpoints.original_layout import (
    AUDIO_KEYS,
    AUDIO_KEYS_WITH_DEFAULT,
    FEATURE_KEYS,
    TEXT_KEYS,
    TEXT_KEYS_WITH_DEFAULT,
)
from caspi.model.prompt import CHAT_TEMPLATE
from caspi.records import write_atomically, write_json

EMBEDDINGS = "thinker.model.embed_tokens.weight"
HEAD = "thinker.lm_head.weight"
PREFIXES = {
    "lm_head.": "thinker.lm_head.",
    "model.language_model.": "thinker.model.",
    "model.multi_modal_projector.linear_1.": "thinker.audio_tower.proj1.",
    "model.multi_modal_projector.linear_2.": "thinker.audio_tower.proj2.",
    "model.audio_tower.": "thinker.audio_tower.",
}
MERGES_HEADER = "#version: 0.2"
TOKEN_FIELDS = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
MAX_SOURCE_POSITIONS = 1500
CONV_CHUNKSIZE = 500
MROPE_SIXTEENTHS = 5
"""Of the rotary frequencies, for each of the two further axes: 20 of 64 as published, the rest for the first axis."""


def save_layout(
    layout: str,
    model: Qwen3ASRForConditionalGeneration,
    processor: Qwen3ASRProcessor,
    folder: Path,
    *,
    language: str,
    max_shard_size: str,
) -> None:
    """Write the model in its own precision as `hf` or `original`; `language` is what it was trained on."""
    folder.mkdir(parents=True)
    if layout == "hf":
        save_asr(model, processor, folder)
    else:
        save_original(model, processor, folder, language=language, max_shard_size=max_shard_size)


def save_original(
    model: Qwen3ASRForConditionalGeneration,
    processor: Qwen3ASRProcessor,
    folder: Path,
    *,
    language: str,
    max_shard_size: str,
) -> None:
    """Weights, configuration, tokenizer, feature extractor and prompt as the published checkpoints have them.

    A tied head is written twice, as published: the qwen-asr classes do not tie it again when they load. The prompt is
    ours, which renders the same for transcription and takes `forced_language` besides.

    Raises:
        ValueError: a tensor has no name in this layout, or the tokenizer lacks a token of the prompt.
    """
    tensors = {original_name(name): tensor.detach() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        tensors[HEAD] = tensors[EMBEDDINGS].clone()  # shared memory would be written once
    save_torch_state_dict(tensors, folder, max_shard_size=max_shard_size, metadata={"format": "pt"})
    tokens = token_ids(processor)
    end_of_text, end_of_turn = end_token_ids(processor.tokenizer)
    dtype = str(model.dtype).removeprefix("torch.")
    write_json(folder / "config.json", original_config(model.config, tokens, end_of_text, end_of_turn, dtype, language))
    generation = {"do_sample": False, "eos_token_id": [end_of_turn, end_of_text], "pad_token_id": end_of_text}
    write_json(folder / "generation_config.json", generation)
    write_json(folder / "preprocessor_config.json", original_features(processor))
    write_json(folder / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
    save_tokenizer_files(processor, folder)


def original_name(name: str) -> str:
    for prefix, original in PREFIXES.items():
        if name.startswith(prefix):
            return original + name.removeprefix(prefix)
    raise ValueError(f"tensor {name} has no name in the original layout")


def token_ids(processor: Qwen3ASRProcessor) -> dict[str, int]:
    """Ids of the tokens that the published configuration names."""
    vocabulary = processor.tokenizer.get_vocab()
    names = {
        "audio_token_id": "<|audio_pad|>",
        "audio_start_token_id": "<|audio_start|>",
        "audio_end_token_id": "<|audio_end|>",
        "user_token_id": "user",
    }
    missing = [token for token in names.values() if token not in vocabulary]
    if missing:
        raise ValueError(f"the tokenizer lacks {', '.join(missing)}: it is not Qwen3-ASR's")
    return {key: vocabulary[token] for key, token in names.items()}


def original_config(
    config: Any, tokens: dict[str, int], end_of_text: int, end_of_turn: int, dtype: str, language: str
) -> dict[str, Any]:
    """`config.json` of the original layout; the inverse of `original_layout.config_from_original`."""
    audio, text = config.audio_config, config.text_config
    theta = text.rope_parameters["rope_theta"]
    audio_values = {key: getattr(audio, key) for key in (*AUDIO_KEYS, *AUDIO_KEYS_WITH_DEFAULT)}
    text_values = {key: getattr(text, key) for key in (*TEXT_KEYS, *TEXT_KEYS_WITH_DEFAULT)}
    architectures = ["Qwen3ASRForConditionalGeneration"]
    return {
        "architectures": architectures,
        "model_type": "qwen3_asr",
        "dtype": dtype,
        "eos_token_id": end_of_turn,
        "pad_token_id": end_of_text,
        "support_languages": [language],
        "thinker_config": {
            "architectures": architectures,
            "model_type": "qwen3_asr_thinker",
            "dtype": dtype,
            "initializer_range": config.initializer_range,
            **tokens,
            "audio_config": {
                **audio_values,
                "model_type": "qwen3_asr_audio_encoder",
                "num_hidden_layers": audio.encoder_layers,
                "max_source_positions": MAX_SOURCE_POSITIONS,
                "conv_chunksize": CONV_CHUNKSIZE,
            },
            "text_config": {
                **text_values,
                "model_type": "qwen3_asr_text",
                "tie_word_embeddings": config.tie_word_embeddings,
                "rope_theta": int(theta) if float(theta).is_integer() else theta,
                "rope_scaling": {
                    "type": "default",
                    "rope_type": "default",
                    "interleaved": True,
                    "mrope_interleaved": True,
                    "mrope_section": mrope_section(text.head_dim),
                },
            },
        },
    }


def mrope_section(head_dim: int) -> list[int]:
    """Rotary frequencies per position axis, [24, 20, 20] for the published head of 128.

    Audio and text have equal positions on all axes, so that any split gives the same angles.
    """
    num_frequencies = head_dim // 2
    each = num_frequencies * MROPE_SIXTEENTHS // 16
    return [num_frequencies - 2 * each, each, each]


def original_features(processor: Qwen3ASRProcessor) -> dict[str, Any]:
    """`preprocessor_config.json`: the published extractor is Whisper's, with the same numbers."""
    extractor = processor.feature_extractor
    num_samples = extractor.chunk_length * extractor.sampling_rate
    return {key: getattr(extractor, key) for key in FEATURE_KEYS} | {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "processor_class": "Qwen3ASRProcessor",
        "n_samples": num_samples,
        "nb_max_frames": num_samples // extractor.hop_length,
        "padding_side": "right",
        "return_attention_mask": True,
        "sampling_rate": extractor.sampling_rate,
    }


def save_tokenizer_files(processor: Qwen3ASRProcessor, folder: Path) -> None:
    """vocab.json, merges.txt and tokenizer_config.json, from which any release of transformers builds the tokenizer."""
    tokenizer = processor.tokenizer
    bpe = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in bpe["merges"]]
    write_json(folder / "vocab.json", bpe["vocab"])
    write_atomically(folder / "merges.txt", "\n".join([MERGES_HEADER, *merges]) + "\n")
    added = {str(index): token_fields(token) for index, token in tokenizer.added_tokens_decoder.items()}
    write_json(folder / "added_tokens.json", {token["content"]: int(index) for index, token in added.items()})
    named = {key: token for key, token in tokenizer.special_tokens_map.items() if key.endswith("_token")}
    ends = {key: named[key] for key in ("eos_token", "pad_token")}
    special = [
        token["content"] for token in added.values() if token["special"] and token["content"] not in ends.values()
    ]
    write_json(folder / "special_tokens_map.json", {**named, "additional_special_tokens": special})
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "processor_class": "Qwen3ASRProcessor",
        "add_bos_token": False,
        "add_prefix_space": False,
        "bos_token": None,
        "unk_token": None,
        "errors": "replace",
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": False,
        "model_max_length": tokenizer.model_max_length,
        "added_tokens_decoder": added,
        "additional_special_tokens": special,
        "extra_special_tokens": {key: token for key, token in named.items() if key not in ends},
        **named,
    }
    write_json(folder / "tokenizer_config.json", settings)


def token_fields(token: AddedToken) -> dict[str, Any]:
    return {field: getattr(token, field) for field in TOKEN_FIELDS}
