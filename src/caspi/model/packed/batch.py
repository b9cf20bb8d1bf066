"""Clips laid out one after the other: one audio sequence and one text sequence, and where everything lies in them.

All of it is computed on the CPU, in a loader worker, so that the forward pass asks the host for nothing.

Shapes: M mel bins, F mel frames of all clips, A audio positions, T text positions, W windows and S clips, each with one
segment of filling behind them, K supervised positions.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch.nn.functional import pad
from transformers import Qwen3ASRConfig, Qwen3ASREncoderConfig

SHORTEST_MAX_LENGTH = 512
"""Kernels are told at least this length, and doubles of it, so that it hardly ever changes between steps."""


class Clip(NamedTuple):
    """One clip as the model reads it."""

    features: torch.Tensor
    """float32 [M, frames of this clip]."""
    input_ids: list[int]
    """Prompt, with one placeholder per audio position, then the supervised tokens."""
    num_before_audio: int
    num_audio: int
    """Audio positions, which follow each other."""
    num_targets: int
    """Supervised tokens, the last of `input_ids`."""


class ClipSize(NamedTuple):
    num_frames: int
    num_tokens: int
    num_before_audio: int
    num_audio: int
    num_targets: int


class PackedBatch(NamedTuple):
    """Clips that are computed together."""

    inputs: dict[str, torch.Tensor | int]
    """What the packed forward pass takes, see `forward.PackedForward`."""
    sizes: tuple[ClipSize, ...]
    """Of the clips, in their order."""

    @property
    def num_tokens(self) -> int:
        """Text positions of all clips, audio among them."""
        return sum(size.num_tokens for size in self.sizes)

    @property
    def num_targets(self) -> int:
        return sum(size.num_targets for size in self.sizes)

    def pin_memory(self) -> "PackedBatch":
        pinned = {name: value if isinstance(value, int) else value.pin_memory() for name, value in self.inputs.items()}
        return self._replace(inputs=pinned)

    def target_ids(self) -> list[list[int]]:
        """Supervised tokens of each clip."""
        targets = torch.as_tensor(self.inputs["targets"])
        return [part.tolist() for part in targets.split([size.num_targets for size in self.sizes])]

    def clips(self) -> list[Clip]:
        """The clips again, their features as views."""
        features, input_ids = (
            torch.as_tensor(self.inputs["packed_features"]),
            torch.as_tensor(self.inputs["packed_ids"]),
        )
        found, frame, token = [], 0, 0
        for size in self.sizes:
            found.append(
                Clip(
                    features[:, frame : frame + size.num_frames],
                    input_ids[token : token + size.num_tokens].tolist(),
                    size.num_before_audio,
                    size.num_audio,
                    size.num_targets,
                )
            )
            frame += whole_chunks(size.num_frames, self.chunk_frames)
            token += size.num_tokens
        return found

    @property
    def chunk_frames(self) -> int:
        return int(self.inputs["chunk_frames"])


class Packer:
    """Lays out clips for one model."""

    def __init__(self, config: Qwen3ASRConfig, pad_id: int, multiple: int = 1) -> None:
        """Both sequences are filled up to a multiple of `multiple` positions, which compiled blocks and GPUs like."""
        audio = cast(Qwen3ASREncoderConfig, config.audio_config)
        self.chunk_frames = 2 * audio.n_window
        self.chunk_tokens = halved_thrice(self.chunk_frames)
        self.window_tokens = self.chunk_tokens * (audio.n_window_infer // self.chunk_frames)
        self.pad_id = pad_id
        self.multiple = multiple

    def pack(self, clips: Sequence[Clip]) -> PackedBatch:
        sizes = tuple(
            ClipSize(
                clip.features.shape[1], len(clip.input_ids), clip.num_before_audio, clip.num_audio, clip.num_targets
            )
            for clip in clips
        )
        chunks = [pad(clip.features, (0, -clip.features.shape[1] % self.chunk_frames)) for clip in clips]
        ids = torch.tensor([token for clip in clips for token in clip.input_ids])
        inputs: dict[str, torch.Tensor | int] = {
            "packed_features": torch.cat(chunks, dim=1),
            "packed_ids": pad(ids, (0, -len(ids) % self.multiple), value=self.pad_id),
            "chunk_frames": self.chunk_frames,
        }
        inputs |= self.audio_layout(sizes) | self.text_layout(sizes)
        rows = torch.as_tensor(inputs["target_rows"])
        inputs["targets"] = torch.as_tensor(inputs["packed_ids"])[rows + 1]
        return PackedBatch(inputs, sizes)

    def audio_layout(self, sizes: Sequence[ClipSize]) -> dict[str, torch.Tensor | int]:
        """Which of the convolutions' outputs are audio, and the windows inside which it attends."""
        rows, windows, first_chunk = [], [], 0
        for size in sizes:
            first = first_chunk * self.chunk_tokens
            rows.append(torch.arange(first, first + size.num_audio))
            windows += split_length(size.num_audio, self.window_tokens)
            first_chunk += whole_chunks(size.num_frames, self.chunk_frames) // self.chunk_frames
        audio_rows = torch.cat(rows)
        filling = -len(audio_rows) % self.multiple
        windows += split_length(filling, self.window_tokens) or [0]
        return {
            "audio_rows": pad(audio_rows, (0, filling)),
            "audio_cu_seqlens": bounds_of(windows),
            "max_audio_length": self.window_tokens,
        }

    def text_layout(self, sizes: Sequence[ClipSize]) -> dict[str, torch.Tensor | int]:
        lengths = [size.num_tokens for size in sizes]
        filling = -sum(lengths) % self.multiple
        audio, targets, first = [], [], 0
        for size in sizes:
            start, end = first + size.num_before_audio, first + size.num_tokens
            audio.append(torch.arange(start, start + size.num_audio))
            targets.append(torch.arange(end - size.num_targets, end) - 1)  # a token is predicted one position earlier
            first = end
        return {
            "audio_positions": torch.cat(audio),
            "position_ids": torch.cat([torch.arange(length) for length in (*lengths, filling)])[None],
            "cu_seqlens": bounds_of([*lengths, filling]),
            "max_text_length": told_length(max(lengths)),
            "target_rows": torch.cat(targets),
        }

    def split(self, batch: PackedBatch, token_budget: int) -> list[PackedBatch]:
        """Parts of at most `token_budget` text positions, of about equal size; a longer clip is a part of its own."""
        if batch.num_tokens <= token_budget or len(batch.sizes) == 1:
            return [batch]
        clips = batch.clips()
        parts = balanced_parts([size.num_tokens for size in batch.sizes], token_budget)
        return [self.pack([clips[index] for index in part]) for part in parts]


def balanced_parts(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices by part; as few parts as the greedy rule finds whose sums stay within the budget."""
    for num_parts in range(max(1, math.ceil(sum(lengths) / budget)), len(lengths)):
        parts = balance(lengths, num_parts)
        if all(sum(lengths[index] for index in part) <= budget for part in parts):
            return parts
    return [[index] for index in range(len(lengths))]


def balance(lengths: Sequence[float], num_parts: int) -> list[list[int]]:
    """Indices dealt to parts of about equal sums: the longest first, each to the part that has least so far."""
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    sums = [0.0] * num_parts
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        least = min(range(num_parts), key=lambda part: (sums[part], part))
        parts[least].append(index)
        sums[least] += lengths[index]
    return parts


def bounds_of(lengths: Sequence[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)


def split_length(length: int, size: int) -> list[int]:
    """Pieces of `size`, the last one shorter where that does not divide the length."""
    return [size] * (length // size) + ([length % size] if length % size else [])


def told_length(longest: int) -> int:
    told = SHORTEST_MAX_LENGTH
    while told < longest:
        told *= 2
    return told


def whole_chunks(num_frames: int, chunk_frames: int) -> int:
    return -(-num_frames // chunk_frames) * chunk_frames


def halved_thrice(length: int) -> int:
    """Output length of the audio encoder's three convolutions of stride 2."""
    for _ in range(3):
        length = (length + 1) // 2
    return length
