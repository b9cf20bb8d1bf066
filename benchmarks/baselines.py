"""What we compare with: the stock class as it is, and with the encoder of the official fine-tuning script.

Both compute logits at every position. The official script (`qwen3_asr_sft.py` of the model's authors), rebuilt from how
it behaves, encodes one utterance at a time.
"""

from collections.abc import Mapping

import torch
from torch.nn.functional import cross_entropy
from transformers import Qwen3ASRForConditionalGeneration

IGNORED = -100
Batch = Mapping[str, torch.Tensor]


def stock_loss(model: Qwen3ASRForConditionalGeneration, batch: Batch, num_target_tokens: int) -> torch.Tensor:
    """The stock class as `Trainer` calls it: padded, logits and loss at every position."""
    output = model(**batch, use_cache=False, num_items_in_batch=num_target_tokens)
    loss: torch.Tensor = output.loss
    return loss


def official_loss(model: Qwen3ASRForConditionalGeneration, batch: Batch, num_target_tokens: int) -> torch.Tensor:
    """The same loss with the encoder run once per utterance."""
    embeddings = model.get_input_embeddings()(batch["input_ids"])
    encoded = []
    for features, mask in zip(batch["input_features"], batch["input_features_mask"], strict=True):
        # The stock encoder takes whole chunks of 100 frames.
        num_frames = -(-int(mask.sum()) // 100) * 100
        parts = model.get_audio_features(features[None, :, :num_frames], mask[None, :num_frames])
        encoded.append(parts.pooler_output)
    is_audio = (batch["input_ids"] == model.config.audio_token_id)[..., None].expand_as(embeddings)
    embeddings = embeddings.masked_scatter(is_audio, torch.cat(encoded).to(embeddings.dtype))
    hidden = model.model.language_model(
        inputs_embeds=embeddings, attention_mask=batch["attention_mask"], use_cache=False
    ).last_hidden_state
    logits = model.lm_head(hidden).float()
    following = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)
    total = cross_entropy(logits.flatten(0, 1), following.flatten(), ignore_index=IGNORED, reduction="sum")
    return total / num_target_tokens
