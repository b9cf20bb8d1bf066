"""Random clips as the packed step and as the stock class take them; only lengths matter to speed."""

from collections.abc import Sequence

import torch

from benchmarks.models import AUDIO_TOKEN_ID
from benchmarks.workload import TOKENS_PER_SECOND
from caspi.model.packed.batch import Clip, Packer, halved_thrice

FRAMES_PER_SECOND = 100
PROMPT_BEFORE, PROMPT_AFTER = 9, 6
"""Tokens of the prompt around the audio; 15 with the published tokenizer and a forced language."""
FIRST_WORD_ID = 10
IGNORED = -100


def random_clip(seconds: float, packer: Packer, mel_bins: int, vocabulary: int, generator: torch.Generator) -> Clip:
    num_frames = round(seconds * FRAMES_PER_SECOND)
    num_chunks, rest = divmod(num_frames, packer.chunk_frames)
    num_audio = num_chunks * packer.chunk_tokens + halved_thrice(rest)
    num_targets = max(2, round(TOKENS_PER_SECOND * seconds))
    words = torch.randint(FIRST_WORD_ID, vocabulary, (PROMPT_BEFORE + PROMPT_AFTER + num_targets,), generator=generator)
    before, after = words[:PROMPT_BEFORE].tolist(), words[PROMPT_BEFORE:].tolist()
    features = torch.randn(mel_bins, num_frames, generator=generator)
    return Clip(features, [*before, *[AUDIO_TOKEN_ID] * num_audio, *after], PROMPT_BEFORE, num_audio, num_targets)


def random_clips(seconds: Sequence[float], packer: Packer, mel_bins: int, vocabulary: int, seed: int) -> list[Clip]:
    generator = torch.Generator().manual_seed(seed)
    return [random_clip(duration, packer, mel_bins, vocabulary, generator) for duration in seconds]


def padded_batch(clips: Sequence[Clip], chunk_frames: int) -> dict[str, torch.Tensor]:
    """What the official collator makes of them: padded to the longest, labels at every position."""
    width = max(len(clip.input_ids) for clip in clips)
    frames = max(clip.features.shape[1] for clip in clips)
    frames = -(-frames // chunk_frames) * chunk_frames
    batch = {
        "input_ids": torch.zeros((len(clips), width), dtype=torch.long),
        "attention_mask": torch.zeros((len(clips), width), dtype=torch.long),
        "labels": torch.full((len(clips), width), IGNORED),
        "input_features": torch.zeros((len(clips), clips[0].features.shape[0], frames)),
        "input_features_mask": torch.zeros((len(clips), frames), dtype=torch.long),
    }
    for row, clip in enumerate(clips):
        ids = torch.tensor(clip.input_ids)
        batch["input_ids"][row, : len(ids)] = ids
        batch["attention_mask"][row, : len(ids)] = 1
        batch["labels"][row, len(ids) - clip.num_targets : len(ids)] = ids[-clip.num_targets :]
        batch["input_features"][row, :, : clip.features.shape[1]] = clip.features
        batch["input_features_mask"][row, : clip.features.shape[1]] = 1
    return batch
