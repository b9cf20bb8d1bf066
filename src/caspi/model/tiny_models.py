"""Real Qwen3-ASR models small enough for a laptop: the same classes, prompt and files as the 1.7B, own vocabulary."""

import json
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import AddedToken, pre_tokenizers, trainers
from transformers import (
    Qwen2Tokenizer,
    Qwen3ASRConfig,
    Qwen3ASRFeatureExtractor,
    Qwen3ASRForConditionalGeneration,
    Qwen3ASRForTokenClassification,
    Qwen3ASRProcessor,
)

from caspi.model.checkpoints.checkpoint import end_token_ids, greedy_generation
from caspi.model.prompt import ALIGNER_TEMPLATE, CHAT_TEMPLATE
from caspi.speech.synthetic.synth import lexicon

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|audio_start|>", "<|audio_end|>", "<|audio_pad|>")
PLAIN_TOKENS = ("<asr_text>", "<timestamp>")
"""Added tokens that are not special: they must survive `skip_special_tokens`."""
AUDIO_ROLES = {
    "audio_token": "<|audio_pad|>",
    "audio_bos_token": "<|audio_start|>",
    "audio_eos_token": "<|audio_end|>",
}
PROMPT_WORDS = ("system", "user", "assistant", "language", " Hebrew")
NUM_KNOWN_WORDS = 120
"""Words of the lexicon that are single tokens; others are spelt in pieces."""
VOCABULARY_SIZE = 800
NUM_MEL_BINS = 40
HIDDEN_SIZE = 96
HEAD_DIM = 32
"""vLLM on CPU knows 32 and more."""
NUM_AUDIO_LAYERS = 3
NUM_LLM_LAYERS = 3
FFN_FACTOR = 2
CONV_CHANNELS = 8
INITIALIZER_RANGE = 0.08
"""At this width the usual 0.02 does not learn."""
NUM_ALIGNER_CLASSES = 200
"""80 ms each: 16 s."""


def build_tiny_asr(seed: int = 0) -> tuple[Qwen3ASRForConditionalGeneration, Qwen3ASRProcessor]:
    """A recogniser with random weights, in evaluation mode; the same seed gives the same weights."""
    processor = build_processor(lexicon(NUM_KNOWN_WORDS), CHAT_TEMPLATE)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ASRForConditionalGeneration(tiny_config(processor.tokenizer)).eval()
    model.generation_config = greedy_generation(processor.tokenizer)
    return model, processor


def build_tiny_aligner(seed: int = 0) -> tuple[Qwen3ASRForTokenClassification, Qwen3ASRProcessor]:
    """A forced aligner with random weights, in evaluation mode; it knows nothing, so its audit must be invalid."""
    processor = build_processor(lexicon(NUM_KNOWN_WORDS), ALIGNER_TEMPLATE)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = tiny_config(processor.tokenizer, NUM_ALIGNER_CLASSES)
        model = Qwen3ASRForTokenClassification(config).eval()
    return model, processor


def build_processor(words: Sequence[str], template: str) -> Qwen3ASRProcessor:
    return Qwen3ASRProcessor(
        feature_extractor=Qwen3ASRFeatureExtractor(feature_size=NUM_MEL_BINS),
        tokenizer=build_tokenizer(words),
        chat_template=template,
    )


def build_tokenizer(words: Sequence[str]) -> Qwen2Tokenizer:
    """Byte-level BPE in which the given words, with and without the blank before them, tend to be one token."""
    trained = Qwen2Tokenizer().backend_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    trained.train_from_iterator([*PROMPT_WORDS, *words, *(f" {word}" for word in words)], trainer)
    bpe = json.loads(trained.to_str())["model"]
    options: dict[str, Any] = {
        "vocab": bpe["vocab"],
        "merges": [tuple(pair) for pair in bpe["merges"]],
        "unk_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 131072,
        "extra_special_tokens": AUDIO_ROLES,
    }
    tokenizer = Qwen2Tokenizer(**options)
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in PLAIN_TOKENS])
    return tokenizer


def tiny_config(tokenizer: Qwen2Tokenizer, num_labels: int | None = None) -> Qwen3ASRConfig:
    """The configuration of a recogniser, or with `num_labels` time classes that of an aligner (head not tied)."""
    ids = tokenizer.get_vocab()
    ends = end_token_ids(tokenizer)
    num_heads = HIDDEN_SIZE // HEAD_DIM
    tied = num_labels is None
    options: dict[str, Any] = {} if tied else {"num_labels": num_labels}
    audio = {
        "model_type": "qwen3_asr_encoder",
        "num_mel_bins": NUM_MEL_BINS,
        "d_model": HIDDEN_SIZE,
        "encoder_layers": NUM_AUDIO_LAYERS,
        "encoder_attention_heads": num_heads,
        "encoder_ffn_dim": FFN_FACTOR * HIDDEN_SIZE,
        "output_dim": HIDDEN_SIZE,
        "downsample_hidden_size": CONV_CHANNELS,
        "initializer_range": INITIALIZER_RANGE,
    }
    text = {
        "model_type": "qwen3",
        "vocab_size": len(tokenizer),
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": FFN_FACTOR * HIDDEN_SIZE,
        "num_hidden_layers": NUM_LLM_LAYERS,
        "num_attention_heads": num_heads,
        "num_key_value_heads": 1,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": tied,
        "initializer_range": INITIALIZER_RANGE,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    }
    return Qwen3ASRConfig(
        audio_config=audio,
        text_config=text,
        audio_token_id=ids["<|audio_pad|>"],
        timestamp_token_id=ids["<timestamp>"],
        pad_token_id=ends[-1],
        eos_token_id=list(ends),
        initializer_range=INITIALIZER_RANGE,
        tie_word_embeddings=tied,
        **options,
    )
