"""GPUs and what they cost. Prices age: each carries its date and source, and a flag or recipe overrides it."""

from typing import NamedTuple


class Gpu(NamedTuple):
    peak_bf16_tflops: float
    """Dense bf16 matrix throughput of the data sheet."""
    memory_gb: float
    """10^9 bytes."""


GPUS = {
    "A100-40GB": Gpu(312, 40),
    "A100-80GB": Gpu(312, 80),
    "H100-80GB": Gpu(989, 80),
    "H200-141GB": Gpu(989, 141),
    "L40S-48GB": Gpu(362, 48),
}


class Price(NamedTuple):
    provider: str
    gpu: str
    num_gpus: int
    usd_per_hour: float
    date: str
    source: str


PRICES = [
    Price("Lambda", "A100-40GB", 2, 3.20, "2026-02-10", "deployment guide; not verified"),
    Price("RunPod", "A100-40GB", 2, 3.40, "2026-02-10", "deployment guide; its catalog lists only A100-80GB"),
    Price("Hugging Face", "A100-40GB", 2, 3.00, "2026-02-10", "deployment guide; 2x A100 is not offered"),
]


def find_gpu(name: str) -> Gpu:
    """
    Raises:
        ValueError: the GPU is not in the table.
    """
    if name not in GPUS:
        raise ValueError(f"GPU {name!r} is not known; known: {', '.join(GPUS)}")
    return GPUS[name]


def recognise_gpu(device_name: str) -> str | None:
    """The table's name of a card as CUDA calls it, for example `NVIDIA A100-SXM4-40GB`; None: not in the table."""
    models = {name: name.rsplit("-", 1) for name in GPUS}
    found = [name for name, (model, _) in models.items() if model in device_name]
    exact = [name for name in found if models[name][1] in device_name]
    return exact[0] if exact else found[0] if len(found) == 1 else None


def find_price(gpu: str, num_gpus: int) -> Price:
    """The first price of the table for these GPUs.

    Raises:
        ValueError: the table has none; prices are never guessed.
    """
    for price in PRICES:
        if (price.gpu, price.num_gpus) == (gpu, num_gpus):
            return price
    raise ValueError(
        f"no price is known for {num_gpus}x {gpu}: give --price with the USD per hour of all GPUs together"
    )
