"""G1: attention of packed sequences, forward and backward, against what the stock class does without it."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.measure import alternate, ratios
from benchmarks.workload import clip_seconds, prompt_tokens
from caspi.model.packed.attention import choose_backend
from caspi.model.packed.batch import bounds_of, told_length
from caspi.model.packed.segments import segment_attention

NUM_CLIPS = 32
WINDOW = 104


class Case(NamedTuple):
    name: str
    lengths: tuple[int, ...]
    num_heads: int
    num_key_heads: int
    head_dim: int
    is_causal: bool


def cases(num_clips: int = NUM_CLIPS) -> list[Case]:
    text = prompt_tokens(clip_seconds(num_clips, 5.7, seed=4)).tolist()
    return [
        Case("encoder, windows of 104", (WINDOW,) * (2 * num_clips), 16, 16, 64, is_causal=False),
        Case("language model, whole clips", tuple(text), 16, 8, 128, is_causal=True),
    ]


Rows = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def random_rows(case: Case, device: str, dtype: torch.dtype) -> Rows:
    generator = torch.Generator().manual_seed(0)
    total = sum(case.lengths)
    heads = (case.num_heads, case.num_key_heads, case.num_key_heads)
    rows = [torch.randn(total, number, case.head_dim, generator=generator) for number in heads]
    query, key, value = (one.to(device, dtype).requires_grad_() for one in rows)
    return query, key, value


def packed(case: Case, rows: Rows, bounds: torch.Tensor, longest: int) -> torch.Tensor:
    kernel = choose_backend(rows[0].device.type).kernel
    return kernel(*rows, bounds, longest, case.is_causal, case.head_dim**-0.5)


def loop(case: Case, rows: Rows) -> torch.Tensor:
    """One call per segment, as the stock encoder does without flash-attention."""
    parts = [one.split(case.lengths) for one in rows]
    found = [attend(case, *(part.transpose(0, 1)[None] for part in segment)) for segment in zip(*parts, strict=True)]
    return torch.cat([one[0].transpose(0, 1) for one in found])


def padded(case: Case, rows: Rows) -> torch.Tensor:
    """All segments padded to the longest, with a mask."""
    blocks = [torch.nn.utils.rnn.pad_sequence(one.split(case.lengths), batch_first=True) for one in rows]
    steps = torch.arange(max(case.lengths), device=rows[0].device)
    mask = (steps < torch.tensor(case.lengths, device=steps.device)[:, None])[:, None, None, :]
    if case.is_causal:
        mask = mask & torch.ones(len(steps), len(steps), dtype=torch.bool, device=steps.device).tril()
    query, key, value = (block.transpose(1, 2) for block in blocks)
    found = attend(case, query, key, value, mask).transpose(1, 2)
    return torch.cat([one[:length] for one, length in zip(found, case.lengths, strict=True)])


def attend(
    case: Case, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=case.is_causal and mask is None,
        enable_gqa=case.num_heads != case.num_key_heads,
    )  # fmt: skip


def forward_backward(attention: Callable[[], torch.Tensor], rows: Rows) -> None:
    attention().sum().backward()
    for one in rows:
        one.grad = None


def worst_error(case: Case, rows: Rows, bounds: torch.Tensor, longest: int) -> float:
    """Largest difference from float64."""
    exact = segment_attention(
        *(one.detach().double() for one in rows), bounds, longest, case.is_causal, case.head_dim**-0.5
    )
    found = packed(case, rows, bounds, longest).detach().double()
    return float((found - exact).abs().max())


def attention_figures(device: str, dtype: torch.dtype, num_rounds: int, chosen: Sequence[Case]) -> dict[str, Any]:
    result: dict[str, Any] = {"kernel": choose_backend(device).name}
    for case in chosen:
        rows = random_rows(case, device, dtype)
        bounds, longest = bounds_of(case.lengths).to(device), told_length(max(case.lengths))
        attentions = {
            "packed": partial(packed, case, rows, bounds, longest),
            "one call per segment": partial(loop, case, rows),
            "padded with a mask": partial(padded, case, rows),
        }
        timings = alternate({n: partial(forward_backward, a, rows) for n, a in attentions.items()}, num_rounds)
        result[case.name] = {
            "worst_error": worst_error(case, rows, bounds, longest),
            **{f"seconds, {name}": timing.median for name, timing in timings.items()},
            **{f"times faster than {name}": ratio for name, ratio in ratios(timings, "packed").items()},
        }
    return result
