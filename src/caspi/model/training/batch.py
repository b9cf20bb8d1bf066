"""From utterances to the tensors of a step: audio features, prompt, and labels that carry loss only where they must.

Shapes: B utterances of a micro-batch, T text positions, F mel frames, M mel bins, K supervised positions.

The prompt is the chat template's, up to and including the forced prefix `language NAME<asr_text>`; it is what serving
sends, so it is given and carries no loss. The transcript and the end of the turn carry loss; nothing else does.
"""

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import Qwen3ASRProcessor

from caspi.model.log_mel import LogMel
from caspi.model.packed.batch import Clip, PackedBatch, halved_thrice
from caspi.model.training.augmentation import Augmenter
from caspi.records import Rejected, RunFailed, Utterance
from caspi.speech.corpora.audio import SAMPLE_RATE_HZ, AudioError, load_audio

IGNORED = -100
END_OF_TURN = "<|im_end|>"
SILENCE_SECONDS = 0.5
MicroBatch = dict[str, torch.Tensor]
"""Padded clips, see `Encoder.pad`."""
Part = MicroBatch | PackedBatch
"""What is computed at once."""
NFC = partial(unicodedata.normalize, "NFC")
"""The tokenizer's own normalisation."""


class Example(NamedTuple):
    """One utterance, ready to be batched."""

    features: torch.Tensor
    """float32 [M, F]: log-mel frames of this clip alone, unpadded."""
    target_ids: tuple[int, ...]
    """Transcript and end of turn."""
    context: str = ""
    """System prompt."""


class StepBatch(NamedTuple):
    """One process's share of one optimizer step."""

    parts: list[Part]
    """At least one; without any utterance it is a clip of silence that carries no loss."""
    num_target_tokens: int
    num_utterances: int
    rejected: list[Rejected]
    """Clips that could not be decoded; the share is smaller by them."""

    def pin_memory(self) -> "StepBatch":
        return self._replace(parts=[pin(part) for part in self.parts])


def pin(part: Part) -> Part:
    if isinstance(part, PackedBatch):
        return part.pin_memory()
    return {name: tensor.pin_memory() for name, tensor in part.items()}


class Encoder:
    """Encodes audio and transcripts for one processor and one language."""

    def __init__(self, processor: Qwen3ASRProcessor, language: str) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.log_mel = LogMel(processor.feature_extractor)
        self.chunk_frames = 2 * processor.feature_extractor.n_window
        self.pad_id = self.tokenizer.pad_token_id
        self.language = language
        self.before_audio, self.after_audio = self.around_audio("")

    def around_audio(self, context: str) -> tuple[list[int], list[int]]:
        """Ids of the prompt before and after the audio's positions; `context` is the system prompt."""
        messages: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "audio"}]}]
        if context:
            messages.insert(0, {"role": "system", "content": context})
        prompt = self.processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, forced_language=self.language
        )
        before, after = prompt.split(self.processor.audio_token)
        return self.token_ids(before), self.token_ids(after)

    def token_ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def features(self, samples: np.ndarray) -> torch.Tensor:
        """float32 [M, F] of float32 samples [num_samples] at 16 kHz.

        Each clip alone: extracted in a padded batch, its last frames would depend on the batch.
        """
        return self.log_mel(torch.from_numpy(samples))

    def num_audio_tokens(self, num_frames: int) -> int:
        """Positions that a clip takes in the prompt: three halving convolutions over each chunk of frames."""
        num_chunks, rest = divmod(num_frames, self.chunk_frames)
        return num_chunks * halved_thrice(self.chunk_frames) + halved_thrice(rest)

    def prompt_ids(self, num_frames: int, context: str = "") -> list[int]:
        before, after = self.around_audio(context) if context else (self.before_audio, self.after_audio)
        return [*before, *[self.processor.audio_token_id] * self.num_audio_tokens(num_frames), *after]

    def target_ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.token_ids(text + END_OF_TURN))

    def encode(self, samples: np.ndarray, text: str) -> Example:
        return Example(self.features(samples), self.target_ids(text))

    def silence(self) -> Example:
        """What a process computes when it has no utterance: every rank must take part in every step."""
        return Example(self.features(np.zeros(int(SILENCE_SECONDS * SAMPLE_RATE_HZ), dtype=np.float32)), ())

    def clip(self, example: Example) -> Clip:
        num_frames = example.features.shape[1]
        prompt = self.prompt_ids(num_frames, example.context)
        first, number = prompt.index(self.processor.audio_token_id), self.num_audio_tokens(num_frames)
        return Clip(example.features, [*prompt, *example.target_ids], first, number, len(example.target_ids))

    def batch(self, examples: Sequence[Example]) -> MicroBatch:
        return self.pad([self.clip(example) for example in examples])

    def padded(self, part: Part) -> MicroBatch:
        """The same clips as the stock class takes them."""
        return self.pad(part.clips()) if isinstance(part, PackedBatch) else part

    def pad(self, clips: Sequence[Clip]) -> MicroBatch:
        """Inputs of `Qwen3ASRForConditionalGeneration`, padded on the right to the longest clip.

        `logits_to_keep` marks the positions that predict a supervised token, `shift_labels` [K] are those tokens:
        logits are computed there only. `labels` [B, T] says the same in the usual form.
        """
        rows = [clip.input_ids for clip in clips]
        width = max(len(row) for row in rows)
        input_ids = torch.full((len(rows), width), self.pad_id)
        attention_mask = torch.zeros((len(rows), width), dtype=torch.long)
        labels = torch.full((len(rows), width), IGNORED)
        for index, clip in enumerate(clips):
            row = torch.tensor(clip.input_ids)
            first = len(row) - clip.num_targets
            input_ids[index, : len(row)] = row
            attention_mask[index, : len(row)] = 1
            labels[index, first : len(row)] = row[first:]
        features, features_mask = self.pad_features([clip.features for clip in clips])
        next_labels = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
        predicts = next_labels != IGNORED
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "input_features": features,
            "input_features_mask": features_mask,
            "labels": labels,
            "logits_to_keep": predicts,
            "shift_labels": next_labels[predicts],
        }

    def pad_features(self, features: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 [B, M, F] and its mask [B, F]; F is the longest clip up to whole chunks, never a fixed maximum."""
        longest = max(clip.shape[1] for clip in features)
        width = -(-longest // self.chunk_frames) * self.chunk_frames
        padded = torch.zeros((len(features), features[0].shape[0], width))
        mask = torch.zeros((len(features), width), dtype=torch.long)
        for index, clip in enumerate(features):
            padded[index, :, : clip.shape[1]] = clip
            mask[index, : clip.shape[1]] = 1
        return padded, mask

    def supervised_text(self, part: Part) -> list[str]:
        """What carries loss in each clip, decoded from the tokens that the loss is computed on."""
        if isinstance(part, PackedBatch):
            rows = part.target_ids()
        else:
            rows = [row.tolist() for row in part["shift_labels"].split(part["logits_to_keep"].sum(dim=1).tolist())]
        return [self.tokenizer.decode(row, clean_up_tokenization_spaces=False) for row in rows]


def check_supervision(encoder: Encoder, utterances: Sequence[Utterance], step: StepBatch) -> None:
    """Prove on one step that exactly the transcripts and the ends of turns carry loss.

    `utterances` are those of the step, in any order.

    Raises:
        RunFailed: the decoded supervised tokens are anything else.
    """
    rejected = {item.id for item in step.rejected}
    expected = sorted(NFC(item.text) + END_OF_TURN for item in utterances if item.id not in rejected)
    found = sorted(text for part in step.parts for text in encoder.supervised_text(part))
    found = found if expected else [text for text in found if text]
    if found == expected:
        return
    wrong = next(
        (pair for pair in zip(found, expected, strict=False) if pair[0] != pair[1]), (found[-1:], expected[-1:])
    )
    raise RunFailed(
        f"the labels are wrong: {wrong[0]!r} would carry loss, expected {wrong[1]!r}; "
        "training would teach something else than the transcripts"
    )


class Utterances(Dataset[Example | Rejected]):
    """Utterances by (epoch index, utterance index), or what is wrong with the one that cannot be decoded.

    Features are kept in memory until `cache_mib` is used up; a small corpus is then decoded once. What `known_bad`
    holds, by id, is not tried again. With an `augmenter` prompts, and audio if it changes that, differ between epochs.
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        encoder: Encoder,
        cache_mib: float = 0.0,
        known_bad: Mapping[str, Rejected] | None = None,
        augmenter: Augmenter | None = None,
    ) -> None:
        self.utterances = utterances
        self.encoder = encoder
        self.known_bad = {} if known_bad is None else known_bad
        self.augmenter = augmenter
        self.cache: dict[int, Example] = {}
        self.cache_bytes_left = 0.0 if augmenter and augmenter.changes_audio else cache_mib * 2**20

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, key: tuple[int, int]) -> Example | Rejected:
        epoch_index, index = key
        utterance = self.utterances[index]
        if utterance.id in self.known_bad:
            return self.known_bad[utterance.id]
        example = self.cache.get(index)
        if example is None:
            try:
                example = self.encode(utterance, epoch_index)
            except AudioError as error:
                return rejected(utterance, error)
            self.keep(index, example)
        if self.augmenter:
            return example._replace(context=self.augmenter.context(utterance, epoch_index))
        return example

    def encode(self, utterance: Utterance, epoch_index: int) -> Example:
        samples = load_audio(utterance.audio_filepath, utterance.offset, utterance.duration)
        if self.augmenter is None or not self.augmenter.changes_audio:
            return self.encoder.encode(samples, utterance.text)
        example = self.encoder.encode(self.augmenter.samples(samples, utterance, epoch_index), utterance.text)
        return example._replace(features=self.augmenter.features(example.features, utterance, epoch_index))

    def keep(self, index: int, example: Example) -> None:
        num_bytes = example.features.nbytes
        if num_bytes <= self.cache_bytes_left:
            self.cache[index] = example
            self.cache_bytes_left -= num_bytes


def rejected(utterance: Utterance, error: AudioError) -> Rejected:
    return Rejected(id=utterance.id, source=utterance.audio_filepath, reason=error.reason, detail=str(error))


class StepCollator:
    """Makes a StepBatch of a share."""

    def __init__(self, make_parts: Callable[[list[Example]], list[Part]], silence: Example) -> None:
        """`make_parts` is given at least one example, the longest first; `silence` stands for a share without any."""
        self.make_parts = make_parts
        self.silence = silence

    def __call__(self, items: Sequence[Example | Rejected]) -> StepBatch:
        examples = [item for item in items if isinstance(item, Example)]
        examples.sort(key=lambda example: example.features.shape[1], reverse=True)
        return StepBatch(
            parts=self.make_parts(examples or [self.silence]),
            num_target_tokens=sum(len(example.target_ids) for example in examples),
            num_utterances=len(examples),
            rejected=[item for item in items if isinstance(item, Rejected)],
        )
