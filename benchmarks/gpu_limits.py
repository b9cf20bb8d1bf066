"""G0: what this card attains: the rates that everything else is measured against."""

from typing import Any

import torch

from caspi.model.gpu_rates import (
    COPY_BYTES,
    PRODUCT_SIZE,
    copy_bytes_per_second,
    product_flops_per_second,
    seconds_per_launch,
)

TOKENS = (3_700, 8_600)
"""Positions of 32 clips of 5.7 and of 15 seconds."""
MATRICES = {
    "llm gate and up": (2048, 6144),
    "llm down": (6144, 2048),
    "llm queries": (2048, 2048),
    "llm keys": (2048, 1024),
    "audio ffn": (1024, 4096),
}


def measure_limits(device: str, dtype: torch.dtype, is_tiny: bool = False) -> dict[str, Any]:
    shrink = 64 if is_tiny else 1
    products = {
        f"{name}, {tokens} tokens": product_flops_per_second(
            tokens // shrink, inner // shrink, columns // shrink, device, dtype
        )
        for tokens in TOKENS
        for name, (inner, columns) in MATRICES.items()
    }
    size = PRODUCT_SIZE // shrink
    return {
        "product_flops_per_second": product_flops_per_second(size, size, size, device, dtype),
        "product_flops_per_second_by_shape": products,
        "copy_bytes_per_second": copy_bytes_per_second(COPY_BYTES // shrink, device),
        "seconds_per_launch": seconds_per_launch(device),
    }
