"""What this machine's GPU attains, measured in a few seconds: products, bandwidth, launches."""

import statistics
import time
from collections.abc import Callable

import torch

from caspi.model.step_time import Rates

PRODUCT_SIZE = 8192
COPY_BYTES = 4 * 2**30
NUM_LAUNCHES = 2000
NUM_ROUNDS = 5
REPEATS = 10


def measure_rates(product_size: int = PRODUCT_SIZE, copy_bytes: int = COPY_BYTES) -> Rates:
    """
    Raises:
        ValueError: this machine has no GPU that torch can use.
    """
    if not torch.cuda.is_available():
        raise ValueError("--measure needs a GPU that torch can use; without, rates are predicted from the data sheet")
    return Rates(
        product_flops_per_second=product_flops_per_second(product_size, product_size, product_size, "cuda"),
        bytes_per_second=copy_bytes_per_second(copy_bytes, "cuda"),
        seconds_per_launch=seconds_per_launch("cuda"),
    )


def product_flops_per_second(
    rows: int, inner: int, columns: int, device: str, dtype: torch.dtype = torch.bfloat16
) -> float:
    """Of the product of two random matrices; zeros would be faster."""
    left = torch.randn(rows, inner, device=device, dtype=dtype)
    right = torch.randn(inner, columns, device=device, dtype=dtype)

    def products() -> None:
        for _ in range(REPEATS):
            left @ right

    return REPEATS * 2 * rows * inner * columns / median_seconds(products)


def copy_bytes_per_second(num_bytes: int, device: str) -> float:
    """Bytes read and written."""
    source = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * num_bytes / median_seconds(lambda: target.copy_(source))


def seconds_per_launch(device: str) -> float:
    """Of an operation that the GPU finishes sooner than Python launches the next, with autograd as in training."""
    weight = torch.zeros(8, device=device, requires_grad=True)

    def launches() -> None:
        value = weight
        for _ in range(NUM_LAUNCHES):
            value = value * 1.0

    return median_seconds(launches) / NUM_LAUNCHES


def median_seconds(work: Callable[[], object]) -> float:
    taken = []
    for _ in range(NUM_ROUNDS + 1):
        wait()
        start = time.perf_counter()
        work()
        wait()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
