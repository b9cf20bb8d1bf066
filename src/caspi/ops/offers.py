"""What a run would cost on the cards of the price table, on spot machines with what their interruptions cost."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from caspi.config import Plan, Price


class Need(NamedTuple):
    """What a run takes on some cards."""

    fits: bool
    training_hours: float
    paid_hours: float
    """With evaluation and buffer."""
    num_steps: int


class Offer(NamedTuple):
    price: Price
    fits: bool
    hours: float | None
    """Paid; None: it would never end."""
    usd: float | None
    num_interruptions: float | None
    """Expected; None: the machines stay."""


def offer_of(price: Price, need: Need, plan: Plan, save_steps: int) -> Offer:
    """`save_steps`: optimizer steps between checkpoints."""
    if not price.is_spot:
        return Offer(price, need.fits, need.paid_hours, need.paid_hours * price.usd_per_hour, None)
    hours = with_interruptions(need.paid_hours, hours_lost(need, plan, save_steps), plan)
    if hours is None:
        return Offer(price, need.fits, None, None, None)
    return Offer(price, need.fits, hours, hours * price.usd_per_hour, hours / plan.spot_hours_between_interruptions)


def hours_lost(need: Need, plan: Plan, save_steps: int) -> float:
    """By one interruption: half of the time between two checkpoints, and a new machine until it trains again."""
    return min(save_steps, need.num_steps) * need.training_hours / need.num_steps / 2 + plan.spot_restart_hours


def with_interruptions(hours: float, lost: float, plan: Plan) -> float | None:
    """Paid hours h of which h / between are interruptions that cost `lost` each: h = hours + lost * h / between."""
    share = lost / plan.spot_hours_between_interruptions
    return hours / (1 - share) if share < 1 else None


def cheapest_first(offers: Iterable[Offer]) -> list[Offer]:
    """What fits, the cheapest first; then what does not."""
    return sorted(offers, key=lambda one: (not one.fits, one.usd is None, one.usd or 0.0))


def as_json(offers: list[Offer]) -> list[dict[str, Any]]:
    return [one._asdict() | {"price": one.price.model_dump()} for one in offers]


def show_offers(offers: list[dict[str, Any]], plan: Plan) -> None:
    print(f"\n{'Where':10}{'GPUs':16}{'':6}{'USD/h':>8}{'Hours':>8}{'USD':>9}")
    for one in offers:
        price = one["price"]
        head = f"{price['provider']:10}{price['num_gpus']}x {price['gpu']:13}{'spot' if price['is_spot'] else '':6}"
        cost = f"{'never ends':>17}" if one["usd"] is None else f"{one['hours']:8.1f}{one['usd']:9.2f}"
        note = f"  {one['num_interruptions']:.1f} interruptions" if one["num_interruptions"] else ""
        print(f"{head}{price['usd_per_hour']:8.2f}{cost}{note}{'' if one['fits'] else '  does not fit'}")
    print(
        f"Spot assumes {plan.spot_hours_between_interruptions:g} h between interruptions and "
        f"{plan.spot_restart_hours:g} h to begin again, with --mirror; without a mirror a lost machine is a lost run.\n"
        "Prices are dated (--json); --prices FILE puts yours first."
    )
