"""The data path of the official fine-tuning script, rebuilt from how it behaves.

It decodes every clip in the collator and runs the processor twice over the batch, once to learn how long each prompt
is.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import soundfile
import torch
from transformers import Qwen3ASRProcessor

from benchmarks.baselines import IGNORED
from benchmarks.clip_files import Clip


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
