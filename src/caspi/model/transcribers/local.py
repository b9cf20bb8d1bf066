"""Transcription in process: any Qwen3-ASR checkpoint, batched, greedy or with beams."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, Qwen3ASRForConditionalGeneration, Qwen3ASRProcessor

from caspi.config import Evaluate
from caspi.model.prompt import forced_prefix
from caspi.model.transcribers import Transcription, plan_batches
from caspi.speech.corpora.audio import SAMPLE_RATE_HZ

__all__ = ["LocalTranscriber", "Transcription", "prompt_text", "transcribe"]

MAX_BATCH_SECONDS = Evaluate().max_batch_seconds


@torch.no_grad()
def transcribe(
    model: Qwen3ASRForConditionalGeneration,
    processor: Qwen3ASRProcessor,
    audios: Sequence[np.ndarray],
    *,
    language: str | None,
    batch_size: int,
    num_beams: int = 1,
    max_new_tokens: int,
    max_batch_seconds: float = MAX_BATCH_SECONDS,
) -> list[Transcription]:
    """Texts of float clips [num_samples], mono at 16 kHz, in their order.

    Deterministic: no sampling, and nothing of the checkpoint's own generation settings but its end and pad tokens. The
    modules' training flags are as before afterwards. Without a `language` the model names one, in `language_tag`.

    Raises:
        ValueError: a clip is empty, not one-dimensional or not finite.
    """
    for index, audio in enumerate(audios):
        if audio.ndim != 1 or not audio.size or not np.isfinite(audio).all():
            raise ValueError(f"clip {index}: expected finite samples of one channel, found shape {audio.shape}")
    settings = generation_config(model, num_beams, max_new_tokens)
    durations = [audio.size / SAMPLE_RATE_HZ for audio in audios]
    transcriptions: dict[int, Transcription] = {}
    with generation_mode(model, settings):
        for batch in plan_batches(durations, batch_size, max_batch_seconds / num_beams):
            clips = [audios[index] for index in batch]
            transcriptions |= zip(batch, generate(model, processor, clips, language), strict=True)
    return [transcriptions[index] for index in range(len(audios))]


def generate(
    model: Qwen3ASRForConditionalGeneration,
    processor: Qwen3ASRProcessor,
    clips: list[np.ndarray],
    language: str | None,
) -> list[Transcription]:
    prompts = [prompt_text(processor, language)] * len(clips)
    inputs = processor(text=prompts, audio=clips, sampling_rate=SAMPLE_RATE_HZ, padding_side="left")
    inputs = inputs.to(model.device, dtype=model.dtype)
    # transformers types `self` as a protocol that mypy cannot match with the class itself
    # Batches are dealt out unevenly, so a process must not wait for the others after each token.
    sequences = model.generate(**inputs, synced_gpus=False)  # type: ignore[misc]
    new_tokens = sequences[:, inputs["input_ids"].shape[1] :].tolist()
    end_ids = model.generation_config.eos_token_id
    return [read_tokens(processor, row, end_ids, language is not None) for row in new_tokens]


def prompt_text(processor: Qwen3ASRProcessor, language: str | None) -> str:
    """The prompt of one clip, its audio still one placeholder, up to where the model begins to write.

    Without a language it begins by naming one.
    """
    silence = np.zeros(1, dtype=np.float32)
    (prompt,) = processor.apply_transcription_request(audio=[silence], tokenize=False)
    return prompt + (forced_prefix(language) if language else "")


def read_tokens(
    processor: Qwen3ASRProcessor, row: list[int], end_ids: list[int], is_forced: bool = True
) -> Transcription:
    """Text after the last mark. Not `processor.decode`: that collapses repetition loops, which hides them from WER."""
    end = next((position for position, token in enumerate(row) if token in end_ids), None)
    text = processor.tokenizer.decode(row[:end], skip_special_tokens=True)
    return Transcription.of_output(text, "length" if end is None else "stop", is_forced)


def generation_config(model: Qwen3ASRForConditionalGeneration, num_beams: int, max_new_tokens: int) -> GenerationConfig:
    """Of the checkpoint's own settings only the tokens that end and pad a text."""
    own = model.generation_config
    end_ids = own.eos_token_id if isinstance(own.eos_token_id, list) else [own.eos_token_id]
    return GenerationConfig(
        eos_token_id=end_ids,
        pad_token_id=own.pad_token_id,
        max_new_tokens=max_new_tokens,
        num_beams=num_beams,
        do_sample=False,
        use_cache=True,
    )


@contextmanager
def generation_mode(model: Qwen3ASRForConditionalGeneration, settings: GenerationConfig) -> Iterator[None]:
    """No dropout inside, and no generation settings but ours: `generate` fills in what an argument leaves open.

    Afterwards everything is as before; each module has its own training flag, so frozen ones may differ.
    """
    flags = [(module, module.training) for module in model.modules()]
    own = model.generation_config
    model.eval()
    model.generation_config = settings
    try:
        yield
    finally:
        model.generation_config = own
        for module, training in flags:
            module.training = training


class LocalTranscriber:
    """A loaded checkpoint with its settings, as `Transcriber`; without a language the model names it."""

    num_concurrent = 1
    packages: tuple[str, ...] = ("torch", "transformers")

    def __init__(
        self,
        model: Qwen3ASRForConditionalGeneration,
        processor: Qwen3ASRProcessor,
        *,
        language: str | None,
        batch_size: int,
        num_beams: int,
        max_new_tokens: int,
        max_batch_seconds: float,
        folder: Path | None = None,
    ) -> None:
        self.model = model
        self.processor = processor
        self.folder = folder
        self.batch_size = batch_size
        self.language = language
        self.decoding: dict[str, Any] = {
            "batch_size": batch_size,
            "num_beams": num_beams,
            "max_new_tokens": max_new_tokens,
            "max_batch_seconds": max_batch_seconds,
        }

    def transcribe(self, audios: Sequence[np.ndarray], language: str | None = None) -> list[Transcription]:
        asked = (language or self.language) if self.language else None
        return transcribe(self.model, self.processor, audios, language=asked, **self.decoding)

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "local",
            "prompt": prompt_text(self.processor, self.language),
            "dtype": str(self.model.dtype),
            "device": self.model.device.type,
            **self.decoding,
        }
