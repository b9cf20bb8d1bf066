"""Attention of packed sequences as transformers calls it, and the kernel behind it.

Registered under one name in transformers' tables of attention functions; the classes of the model stay as they are. The
name contains "flash" because the audio encoder passes the bounds of its windows to nothing else.

Shapes: T rows of the packed sequence, H heads of the queries and KV of keys and values, D width of a head, S segments.
"""

import importlib.util
import inspect
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, flash_attention_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from caspi.model.packed.segments import segment_attention

IMPLEMENTATION = "packed_flash"

Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int, bool, float], torch.Tensor]
"""query [T, H, D], key and value [T, KV, D], cu_seqlens int32 [S + 1], longest segment, causal, scale -> [T, H, D]."""


KERNELS: dict[str, Kernel] = {}
"""Chosen before each forward pass, by type of device: a block that is being compiled must not follow the choosing."""


class Backend(NamedTuple):
    name: str
    kernel: Kernel


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    cu_seq_lens_q: torch.Tensor,
    max_length_q: int,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """[1, T, H, D] for a query [1, H, T, D] and key and value [1, KV, T, D], as transformers lays them out."""
    assert attention_mask is None, "a packed sequence has bounds, not a mask"
    assert dropout == 0.0, "the kernels of packed attention have no dropout"
    causal = bool(module.is_causal) if is_causal is None else is_causal
    # Trained norms have float32 weights, and lift what autocast had lowered; the kernels of a GPU take 16 bits only.
    query, key, value = (tensor[0].transpose(0, 1).to(value.dtype) for tensor in (query, key, value))
    kernel = KERNELS[query.device.type]
    return kernel(query, key, value, cu_seq_lens_q, max_length_q, causal, scaling)[None], None


ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, packed_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, flash_attention_mask)


def prepare_kernel(device_type: str) -> None:
    KERNELS[device_type] = choose_backend(device_type).kernel


@lru_cache
def choose_backend(device_type: str) -> Backend:
    """The fastest that works on this machine.

    Raises:
        ValueError: a GPU for which there is none.
    """
    if device_type != "cuda":
        return Backend("segments", segment_attention)
    refusals = []
    for make in (torch_varlen, flash_attn_varlen):
        try:
            backend = make()
            try_out(backend, torch.device(device_type))
        except (ImportError, RuntimeError, TypeError, ValueError) as error:
            refusals.append(f"{make.__name__}: {str(error).splitlines()[0]}")
        else:
            return backend
    raise ValueError(
        f"no attention kernel for packed sequences works on this GPU ({'; '.join(refusals)}): it takes torch 2.10 or "
        "newer, or flash-attn, and a GPU of compute capability 8.0 or higher. Train with --step padded instead"
    )


def torch_varlen() -> Backend:
    """torch's own. Its arguments differ between releases.

    2.10 says `is_causal`, later ones a window; from 2.12 on grouped queries must be asked for, before they may not.
    """
    from torch.nn.attention.varlen import varlen_attn

    return Backend(f"varlen_attn of torch {torch.__version__}", adapt_varlen(varlen_attn))


def adapt_varlen(varlen_attn: Callable[..., Any]) -> Kernel:
    names = inspect.signature(varlen_attn).parameters.keys()

    def kernel(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cu_seqlens: torch.Tensor,
        max_length: int,
        causal: bool,
        scale: float,
    ) -> torch.Tensor:
        options: dict[str, Any] = {"window_size": (-1, 0 if causal else -1)}
        if "window_size" not in names:
            options = {"is_causal": causal}
        if "scale" in names:
            options["scale"] = scale
        else:
            assert scale == query.shape[-1] ** -0.5, "this release of torch knows the usual scale only"
        if "enable_gqa" in names:
            options["enable_gqa"] = query.shape[1] != key.shape[1]
        found: torch.Tensor = varlen_attn(query, key, value, cu_seqlens, cu_seqlens, max_length, max_length, **options)
        return found

    return kernel


def flash_attn_varlen() -> Backend:
    if importlib.util.find_spec("flash_attn") is None:
        raise ImportError("flash-attn is not installed")
    from flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found]  # an extra of the user's own

    return Backend("flash-attn", partial(call_flash_attn, flash_attn_varlen_func))


def call_flash_attn(
    function: Callable[..., torch.Tensor],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_length: int,
    causal: bool,
    scale: float,
) -> torch.Tensor:
    return function(
        query, key, value, cu_seqlens, cu_seqlens, max_length, max_length, softmax_scale=scale, causal=causal
    )


def try_out(backend: Backend, device: torch.device) -> None:
    """Attention with grouped queries and its gradient, against the plain one.

    Raises:
        ValueError: the kernel computes something else.
        RuntimeError: the kernel does not run on this device.
    """
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(24, heads, 64, generator=generator) for heads in (4, 2, 2))
    bounds = torch.tensor([0, 5, 5, 24], dtype=torch.int32)
    expected = with_gradients(segment_attention, query, key, value, bounds)
    query, key, value = (tensor.to(device, torch.bfloat16) for tensor in (query, key, value))
    found = with_gradients(backend.kernel, query, key, value, bounds.to(device))
    for ours, theirs in zip(found, expected, strict=True):
        if not torch.allclose(ours.float().cpu(), theirs, atol=0.05, rtol=0.05):
            worst = float((ours.float().cpu() - theirs).abs().max())
            raise ValueError(f"{backend.name} is wrong by {worst:.3g} on a small example")


def with_gradients(
    kernel: Kernel, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cu_seqlens: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    with torch.enable_grad():
        query, key, value = (tensor.detach().requires_grad_() for tensor in (query, key, value))
        found = kernel(query, key, value, cu_seqlens, 32, True, query.shape[-1] ** -0.5)
        gradients = torch.autograd.grad(found.sum(), (query, key, value))
    return found.detach(), *gradients
