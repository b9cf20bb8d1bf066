"""Qwen3-ASR models of any size with random weights: speed does not depend on what a model knows."""

import torch
from transformers import Qwen3ASRConfig, Qwen3ASRForConditionalGeneration

from caspi.model.footprint import QWEN3_ASR_1_7B, Shape

SMALL = QWEN3_ASR_1_7B._replace(
    audio_layers=6, audio_width=256, audio_ffn=1024, conv_channels=32, llm_layers=6, hidden=256, llm_ffn=768,
    query_heads=4, key_heads=2, head_dim=64,
)  # fmt: skip
"""Reduced width and depth, the full vocabulary: a step takes seconds on a CPU."""
NARROW = QWEN3_ASR_1_7B._replace(
    audio_width=32, audio_ffn=64, conv_channels=4, hidden=32, llm_ffn=64, query_heads=2, key_heads=1, head_dim=16,
    vocabulary=1024,
)  # fmt: skip
"""Full depth, next to no width: for counting operations."""
TINY = NARROW._replace(audio_layers=2, llm_layers=2)
AUDIO_HEAD_DIM = 64
AUDIO_TOKEN_ID = 1


def config_of(shape: Shape) -> Qwen3ASRConfig:
    audio = {
        "model_type": "qwen3_asr_encoder",
        "num_mel_bins": shape.mel_bins,
        "d_model": shape.audio_width,
        "encoder_layers": shape.audio_layers,
        "encoder_attention_heads": max(1, shape.audio_width // AUDIO_HEAD_DIM),
        "encoder_ffn_dim": shape.audio_ffn,
        "downsample_hidden_size": shape.conv_channels,
        "output_dim": shape.hidden,
    }
    text = {
        "model_type": "qwen3",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.llm_ffn,
        "num_hidden_layers": shape.llm_layers,
        "num_attention_heads": shape.query_heads,
        "num_key_value_heads": shape.key_heads,
        "head_dim": shape.head_dim,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    }
    return Qwen3ASRConfig(
        audio_config=audio, text_config=text, audio_token_id=AUDIO_TOKEN_ID, pad_token_id=0, eos_token_id=[2]
    )


def random_model(
    shape: Shape, device: str | torch.device, dtype: torch.dtype, seed: int = 0
) -> Qwen3ASRForConditionalGeneration:
    """In training mode, tied, made on the device itself: 1.7B weights never pass through the host's memory."""
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = Qwen3ASRForConditionalGeneration(config_of(shape))
    finally:
        torch.set_default_dtype(before)
    model.tie_weights()
    return model.train()
