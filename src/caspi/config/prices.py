"""What GPUs cost to rent. Prices age: each has its date and source, and a file, a recipe or a flag overrides it."""

from typing import Annotated

from pydantic import Field

from caspi.config.base import Count, Positive, Section


class Price(Section):
    provider: str
    gpu: str
    """As in `ops.cost.GPUS`."""
    num_gpus: Count
    usd_per_hour: Positive
    """For all GPUs together."""
    is_spot: bool = False
    """The machine may be taken away at any time."""
    date: str
    """Year, month and day on which the source was read."""
    source: Annotated[str, Field(min_length=1)]


LAMBDA = "skypilot-catalog v8, lambda/vms.csv at 0f40703"
RUNPOD = "skypilot-catalog v8, runpod/vms.csv at 01acdfd"
VERDA = "skypilot-catalog v8, verda/vms.csv at 000c1d0"
READ = "2026-11-25"
"""When the stored copies of the catalogs were read; the copies may be older."""

PRICES = (
    Price(provider="Lambda", gpu="A100-40GB", num_gpus=2, usd_per_hour=3.98, date=READ, source=LAMBDA),
    Price(provider="Lambda", gpu="A100-40GB", num_gpus=1, usd_per_hour=1.99, date=READ, source=LAMBDA),
    Price(provider="Lambda", gpu="A100-80GB", num_gpus=8, usd_per_hour=22.32, date=READ, source=LAMBDA),
    Price(provider="Lambda", gpu="H100-80GB", num_gpus=1, usd_per_hour=4.29, date=READ, source=f"{LAMBDA} (SXM)"),
    Price(provider="RunPod", gpu="A100-80GB", num_gpus=2, usd_per_hour=2.78, date=READ, source=RUNPOD),
    Price(provider="RunPod", gpu="A100-80GB", num_gpus=1, usd_per_hour=1.39, date=READ, source=RUNPOD),
    Price(provider="RunPod", gpu="H200-141GB", num_gpus=1, usd_per_hour=4.59, date=READ, source=RUNPOD),
    Price(provider="Verda", gpu="A100-80GB", num_gpus=1, usd_per_hour=1.29, date=READ, source=VERDA),
    Price(provider="Verda", gpu="A100-80GB", num_gpus=1, usd_per_hour=0.4515, is_spot=True, date=READ, source=VERDA),
    Price(provider="Verda", gpu="H100-80GB", num_gpus=1, usd_per_hour=2.29, date=READ, source=VERDA),
    Price(provider="Verda", gpu="H100-80GB", num_gpus=1, usd_per_hour=0.8015, is_spot=True, date=READ, source=VERDA),
    Price(provider="Verda", gpu="H200-141GB", num_gpus=1, usd_per_hour=3.39, date=READ, source=VERDA),
    Price(provider="Verda", gpu="H200-141GB", num_gpus=2, usd_per_hour=2.373, is_spot=True, date=READ, source=VERDA),
)
"""Where a catalog has several regions or forms of a card, the dearest. RunPod's catalog gives the same price for spot,
so there is no row for it. The guide's own prices (2026-02-10) are in docs/differences.md: no catalog has them."""
