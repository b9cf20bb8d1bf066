"""Attention inside each segment of a packed sequence, in plain torch: right on every device, made for the CPU.

Segments of like length are padded to the longest of their group and go through one call of
`scaled_dot_product_attention` together, so there are few calls and never a mask of the whole sequence. The bounds are
read on the host: on a GPU that waits for it, which is why the kernels of `attention.py` serve there.

Shapes: T rows of the packed sequence, H heads of the queries and KV of keys and values, D width of a head, S segments,
N segments of a group, L rows of its longest segment.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention

LIKE_LENGTH = 0.75
"""A segment shorter than this share of the longest of a group begins another group."""
SHORT_ROWS = 16
"""Segments this short share a group whatever their lengths."""


class Group(NamedTuple):
    """Segments of like length."""

    rows: torch.Tensor
    """int64 [N * L]: rows of the packed sequence; where a segment has ended, its first row again."""
    num_segments: int
    is_row: torch.Tensor | None
    """bool [N, 1, 1, L]: where a segment has not ended yet; None where all have length L."""


class Grouping(NamedTuple):
    groups: tuple[Group, ...]
    places: torch.Tensor
    """int64 [T]: where each row of the packed sequence lies among the rows of all groups."""


@torch.compiler.disable
def segment_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_length: int,
    causal: bool,
    scale: float,
) -> torch.Tensor:
    """[T, H, D] for a query [T, H, D] and key and value [T, KV, D].

    `cu_seqlens` [S + 1] int32 are the bounds of the segments, from 0 to T. `max_length` is what the kernels for GPUs
    need, which launch without looking at the bounds; here it is not used.
    """
    bounds = tuple(cu_seqlens.tolist())
    assert bounds[-1] == len(query), f"segments end at row {bounds[-1]} of {len(query)}"
    groups, places = group_segments(bounds, query.device)
    found = []
    for group in groups:
        q, k, v = (
            tensor.index_select(0, group.rows).unflatten(0, (group.num_segments, -1)).transpose(1, 2)
            for tensor in (query, key, value)
        )
        # Causal attention never looks at what is padded: it comes after all rows of its segment.
        mask = None if causal else group.is_row
        attended = scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
        )
        found.append(attended.transpose(1, 2).flatten(0, 1))
    return (found[0] if len(found) == 1 else torch.cat(found)).index_select(0, places)


@lru_cache(maxsize=64)
def group_segments(bounds: tuple[int, ...], device: torch.device) -> Grouping:
    """Groups of the segments between `bounds`, the longest first. Every layer of a step asks for the same ones."""
    segments = [(end - start, start) for start, end in pairwise(bounds) if end > start]
    segments.sort(key=lambda segment: (-segment[0], segment[1]))
    members: list[list[tuple[int, int]]] = []
    for segment in segments:
        longest = members[-1][0][0] if members else 0
        if members and (segment[0] >= LIKE_LENGTH * longest or longest <= SHORT_ROWS):
            members[-1].append(segment)
        else:
            members.append([segment])
    groups = tuple(make_group(group, device) for group in members)
    places = torch.empty(bounds[-1], dtype=torch.long, device=device)
    first = 0
    for group, made in zip(members, groups, strict=True):
        longest = group[0][0]
        for number, (length, start) in enumerate(group):
            offset = first + number * longest
            places[start : start + length] = torch.arange(offset, offset + length, device=device)
        first += len(made.rows)
    return Grouping(groups, places)


def make_group(segments: Sequence[tuple[int, int]], device: torch.device) -> Group:
    """Of (length, start), the longest first."""
    longest = segments[0][0]
    lengths, starts = torch.tensor(segments, device=device).unbind(1)
    steps = torch.arange(longest, device=device)
    is_row = steps < lengths[:, None]
    rows = starts[:, None] + torch.where(is_row, steps, 0)
    padded = segments[-1][0] < longest
    return Group(rows.flatten(), len(segments), is_row[:, None, None] if padded else None)
