"""What we compare with, rebuilt from how it behaves: the official fine-tuning script and the stock class.

The official script (`qwen3_asr_sft.py` of the model's authors) decodes every clip in the collator, runs the processor
twice over the batch (once to learn how long each prompt is), computes logits at every position, and encodes one
utterance at a time.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import soundfile
import torch
from torch.nn.functional import cross_entropy
from transformers import Qwen3ASRForConditionalGeneration, Qwen3ASRProcessor

from benchmarks.workload import Clip

IGNORED = -100
Batch = Mapping[str, torch.Tensor]


class OfficialCollator:
    """Clips to padded inputs and labels, as the official script makes them."""

    def __init__(self, processor: Qwen3ASRProcessor, language: str) -> None:
        self.processor = processor
        messages: list[Any] = [{"role": "user", "content": [{"type": "audio"}]}]
        self.prompt = processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, forced_language=language
        )

    def __call__(self, clips: Sequence[Clip]) -> dict[str, torch.Tensor]:
        end = self.processor.tokenizer.eos_token
        audios = [soundfile.read(clip.path, dtype="float32")[0] for clip in clips]
        whole = self.processor(text=[self.prompt + clip.text + end for clip in clips], audio=audios, padding=True)
        prompts = self.processor(text=[self.prompt] * len(clips), audio=audios, padding=True)
        labels = whole["input_ids"].clone()
        labels[whole["attention_mask"] == 0] = IGNORED
        for row, length, first in zip(
            labels, prompts["attention_mask"].sum(dim=1).tolist(), first_positions(whole), strict=True
        ):
            row[: first + length] = IGNORED
        return {**whole, "labels": labels}


def first_positions(batch: Mapping[str, Any]) -> list[int]:
    """Where each row begins: the processor may pad on the left."""
    return [int(position) for position in batch["attention_mask"].argmax(dim=1)]


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
