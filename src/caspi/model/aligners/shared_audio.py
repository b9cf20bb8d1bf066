"""Several transcripts of one audio in one pass of a causal language model.

A row of a batch is the audio once and then its transcripts one after the other. Every transcript sees the audio and
itself, and its positions go on where the audio ends, so each of them is computed exactly as if it were alone.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch.nn.functional import pad

MAX_ROW_TOKENS = 4096
"""A longer row is split, the audio repeated: its mask would need more memory than the repetition costs time."""


class AudioInput(NamedTuple):
    input_ids: torch.Tensor
    """int64 [num_tokens]: everything before the transcript, begin and end of audio included."""
    input_features: torch.Tensor
    """float32 [1, num_mel_bins, num_frames]"""
    input_features_mask: torch.Tensor
    """int64 [1, num_frames]"""
    num_audio_tokens: int
    """Tokens that the encoder fills."""

    @property
    def num_tokens(self) -> int:
        return len(self.input_ids)


class TranscriptInput(NamedTuple):
    input_ids: torch.Tensor
    """int64 [num_tokens]"""
    num_slots: int
    """Timestamp tokens among them."""

    @property
    def num_tokens(self) -> int:
        return len(self.input_ids)


class Row(NamedTuple):
    audio: int
    """Key of the audio."""
    transcripts: tuple[int, ...]
    """Indices of the transcripts."""
    num_tokens: int


class RowBatch(NamedTuple):
    input_ids: torch.Tensor
    """int64 [num_rows, num_tokens], padded on the right."""
    position_ids: torch.Tensor
    """int64, likewise."""
    attention_mask: torch.Tensor
    """bool [num_rows, 1, num_tokens, num_tokens]: what each token sees."""


def plan_rows(transcripts: Sequence[tuple[int, int]], audio_tokens: Mapping[int, int]) -> list[Row]:
    """Rows in the order of their first transcript.

    Args:
        transcripts: key of the audio and number of tokens of each.
        audio_tokens: tokens of each audio, by key.
    """
    rows: list[Row] = []
    current: dict[int, int] = {}
    for index, (audio, num_tokens) in enumerate(transcripts):
        place = current.get(audio)
        if place is not None and rows[place].num_tokens + num_tokens <= MAX_ROW_TOKENS:
            row = rows[place]
            rows[place] = Row(audio, (*row.transcripts, index), row.num_tokens + num_tokens)
        else:
            current[audio] = len(rows)
            rows.append(Row(audio, (index,), audio_tokens[audio] + num_tokens))
    return rows


def collate_audio(audios: Sequence[AudioInput]) -> tuple[torch.Tensor, torch.Tensor]:
    """Features [num_audios, num_mel_bins, num_frames] and their mask [num_audios, num_frames], padded on the right."""
    width = max(audio.input_features.shape[-1] for audio in audios)

    def padded(tensor: torch.Tensor) -> torch.Tensor:
        return pad(tensor, (0, width - tensor.shape[-1]))

    return (
        torch.cat([padded(audio.input_features) for audio in audios]),
        torch.cat([padded(audio.input_features_mask) for audio in audios]),
    )


def collate_rows(
    rows: Sequence[Row], audios: Mapping[int, AudioInput], texts: Sequence[TranscriptInput], pad_token_id: int
) -> RowBatch:
    width = max(row.num_tokens for row in rows)
    ids = torch.full((len(rows), width), pad_token_id)
    positions = torch.zeros((len(rows), width), dtype=torch.int64)
    # Padding sees itself: a row of a mask that allows nothing gives NaN.
    mask = torch.eye(width, dtype=torch.bool).repeat(len(rows), 1, 1)
    for number, row in enumerate(rows):
        audio = audios[row.audio]
        begin = audio.num_tokens
        ids[number, :begin] = audio.input_ids
        positions[number, :begin] = torch.arange(begin)
        mask[number, :begin, :begin] = _causal(begin)
        for index in row.transcripts:
            end = begin + texts[index].num_tokens
            ids[number, begin:end] = texts[index].input_ids
            positions[number, begin:end] = torch.arange(audio.num_tokens, audio.num_tokens + end - begin)
            mask[number, begin:end, : audio.num_tokens] = True
            mask[number, begin:end, begin:end] = _causal(end - begin)
            begin = end
    return RowBatch(ids, positions, mask[:, None])


def _causal(size: int) -> torch.Tensor:
    return torch.ones((size, size), dtype=torch.bool).tril()
