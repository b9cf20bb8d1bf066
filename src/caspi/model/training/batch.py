"""From utterances to the tensors of a step: audio features, prompt, and labels that carry loss only where they must.

Shapes: B utterances of a micro-batch, T text positions, F mel frames, M mel bins, K supervised positions.

The prompt is the chat template's, up to and including the forced prefix `language NAME<asr_text>`; it is what serving
sends, so it is given and carries no loss. The transcript and the end of the turn carry loss; nothing else does.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import Qwen3ASRProcessor

from caspi.model.training.augmentation import Augmenter
from caspi.model.training.sampler import micro_batches
from caspi.records import Rejected, RunFailed, Utterance
from caspi.speech.corpora.audio import SAMPLE_RATE_HZ, AudioError, load_audio

IGNORED = -100
END_OF_TURN = "<|im_end|>"
SILENCE_SECONDS = 0.5
MicroBatch = dict[str, torch.Tensor]
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

    micro_batches: list[MicroBatch]
    """At least one; without any utterance it is a clip of silence that carries no loss."""
    num_target_tokens: int
    num_utterances: int
    rejected: list[Rejected]
    """Clips that could not be decoded; the share is smaller by them."""

    def pin_memory(self) -> "StepBatch":
        pinned = [{name: tensor.pin_memory() for name, tensor in batch.items()} for batch in self.micro_batches]
        return self._replace(micro_batches=pinned)


class Encoder:
    """Encodes audio and transcripts for one processor and one language."""

    def __init__(self, processor: Qwen3ASRProcessor, language: str) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.extractor = processor.feature_extractor
        self.chunk_frames = 2 * self.extractor.n_window
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
        extracted = self.extractor(samples, sampling_rate=SAMPLE_RATE_HZ, padding=False, n_window=0)
        return torch.as_tensor(extracted["input_features"][0]).contiguous()

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

    def batch(self, examples: Sequence[Example]) -> MicroBatch:
        """Inputs of `Qwen3ASRForConditionalGeneration`, padded on the right to the longest clip.

        `logits_to_keep` marks the positions that predict a supervised token, `shift_labels` [K] are those tokens:
        logits are computed there only. `labels` [B, T] says the same in the usual form.
        """
        num_frames = [example.features.shape[1] for example in examples]
        pairs = zip(num_frames, examples, strict=True)
        prompts = [self.prompt_ids(frames, example.context) for frames, example in pairs]
        rows = [[*prompt, *example.target_ids] for prompt, example in zip(prompts, examples, strict=True)]
        width = max(len(row) for row in rows)
        input_ids = torch.full((len(rows), width), self.pad_id)
        attention_mask = torch.zeros((len(rows), width), dtype=torch.long)
        labels = torch.full((len(rows), width), IGNORED)
        for index, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
            input_ids[index, : len(row)] = torch.tensor(row)
            attention_mask[index, : len(row)] = 1
            labels[index, len(prompt) : len(row)] = torch.tensor(row[len(prompt) :], dtype=torch.long)
        features, features_mask = self.pad_features([example.features for example in examples])
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

    def supervised_text(self, batch: MicroBatch) -> list[str]:
        """What carries loss in each row, decoded from the tokens that the loss is computed on."""
        counts = batch["logits_to_keep"].sum(dim=1).tolist()
        rows = torch.split(batch["shift_labels"], counts)
        return [self.tokenizer.decode(row, clean_up_tokenization_spaces=False) for row in rows]


def check_supervision(encoder: Encoder, utterances: Sequence[Utterance], step: StepBatch) -> None:
    """Prove on one step that exactly the transcripts and the ends of turns carry loss.

    `utterances` are those of the step, in any order.

    Raises:
        RunFailed: the decoded supervised tokens are anything else.
    """
    rejected = {item.id for item in step.rejected}
    expected = sorted(NFC(item.text) + END_OF_TURN for item in utterances if item.id not in rejected)
    found = sorted(text for batch in step.micro_batches for text in encoder.supervised_text(batch))
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


def halved_thrice(length: int) -> int:
    for _ in range(3):
        length = (length + 1) // 2
    return length


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
    """Makes a StepBatch of a share; clips of like length go into one micro-batch, the longest first."""

    def __init__(self, encoder: Encoder, batch_size: int) -> None:
        self.encoder = encoder
        self.batch_size = batch_size

    def __call__(self, items: Sequence[Example | Rejected]) -> StepBatch:
        examples = [item for item in items if isinstance(item, Example)]
        examples.sort(key=lambda example: example.features.shape[1], reverse=True)
        groups = micro_batches(range(len(examples)), self.batch_size)
        batches = [self.encoder.batch([examples[index] for index in group]) for group in groups]
        return StepBatch(
            micro_batches=batches or [self.encoder.batch([self.encoder.silence()])],
            num_target_tokens=sum(len(example.target_ids) for example in examples),
            num_utterances=len(examples),
            rejected=[item for item in items if isinstance(item, Rejected)],
        )
