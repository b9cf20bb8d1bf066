"""GPUs, what they cost, and what a run has cost so far. A price that nobody gave is unknown, never guessed."""

import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import Field, ValidationError

from caspi.config import PRICES, Price, Section, one_line

SECONDS_PER_HOUR = 3600


class Gpu(NamedTuple):
    peak_bf16_tflops: float
    """Dense bf16 matrix throughput of the data sheet."""
    memory_gb: float
    """10^9 bytes."""
    bandwidth_gb_per_second: float
    """10^9 bytes, of the data sheet."""


GPUS = {
    "A100-40GB": Gpu(312, 40, 1_555),
    "A100-80GB": Gpu(312, 80, 1_935),
    "H100-80GB": Gpu(989, 80, 3_350),
    "H200-141GB": Gpu(989, 141, 4_800),
    "L40S-48GB": Gpu(362, 48, 864),
}


class HourlyPrice(NamedTuple):
    """What an hour of all GPUs of a run costs."""

    usd_per_hour: float | None
    """None: unknown."""
    source: str
    """Where the price is from, or how to give it."""

    def usd_for(self, seconds: float | None) -> float | None:
        """None while the price or the time is unknown."""
        if seconds is None or self.usd_per_hour is None:
            return None
        return seconds / SECONDS_PER_HOUR * self.usd_per_hour


class PriceFile(Section):
    price: tuple[Price, ...] = Field(min_length=1)


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


def price_table(file: Path | None) -> tuple[Price, ...]:
    """The dated table of `config.prices`, and before it the `[[price]]` tables of a TOML file, if one is given.

    Raises:
        ValueError: the file is missing, not TOML, or holds something else than prices.
    """
    if file is None:
        return PRICES
    try:
        return (*PriceFile.model_validate(tomllib.loads(file.read_text(encoding="utf-8"))).price, *PRICES)
    except ValidationError as error:
        raise ValueError(f"prices in {file}: {one_line(error)}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"prices {file} cannot be read as TOML: {error}") from None


def find_price(gpu: str, num_gpus: int, table: Sequence[Price] = PRICES, is_spot: bool = False) -> Price:
    """The first price of the table for these GPUs.

    Raises:
        ValueError: the table has none; prices are never guessed.
    """
    for price in table:
        if (price.gpu, price.num_gpus, price.is_spot) == (gpu, num_gpus, is_spot):
            return price
    raise ValueError(
        f"no {'spot ' * is_spot}price is known for {num_gpus}x {gpu}: give --price with the USD per hour of all GPUs "
        "together"
    )


def hourly_price(
    stated: Iterable[tuple[float | None, str]],
    device_names: Iterable[str],
    num_gpus: int,
    table: Sequence[Price] = PRICES,
) -> HourlyPrice:
    """The first price that somebody stated, else that of the table for these cards.

    Args:
        stated: USD per hour (None: not given) and who says so, the strongest first.
        device_names: of the cards, as CUDA or nvidia-smi calls them; empty where there are none.
    """
    for usd_per_hour, source in stated:
        if usd_per_hour is not None:
            return HourlyPrice(usd_per_hour, source)
    names = {recognise_gpu(name) for name in device_names}
    name = names.pop() if len(names) == 1 else None
    if name is None:
        return HourlyPrice(None, "unknown: give --price with the USD per hour of all GPUs together")
    try:
        price = find_price(name, num_gpus, table)
    except ValueError as error:
        return HourlyPrice(None, str(error))
    return HourlyPrice(price.usd_per_hour, f"{price.provider} {price.date}, {price.source}")
