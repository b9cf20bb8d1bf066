"""How much time and money a run has taken and has left, at the pace of this start."""

import time
from collections.abc import Callable

SECONDS_PER_HOUR = 3600


class Forecast:
    """Evaluations and saving count: they are paid for as well."""

    def __init__(self, usd_per_hour: float | None = None, paid_seconds: Callable[[], float] = lambda: 0.0) -> None:
        """`paid_seconds` says what all starts together have taken; without a price there are no dollars."""
        self.usd_per_hour = usd_per_hour
        self.paid_seconds = paid_seconds
        self.start: tuple[float, int] | None = None
        """Time and step at which this process began to train."""

    def begin(self, step: int) -> None:
        """Only the first call counts: later stages of this process go on with its pace."""
        self.start = self.start or (time.monotonic(), step)

    def at(self, step: int, num_steps: int) -> dict[str, float]:
        """`seconds_left` after a step, and with a price `usd_spent` and `usd_left`; empty before the first step."""
        if self.start is None or step <= self.start[1]:
            return {}
        began, first_step = self.start
        seconds_left = (time.monotonic() - began) / (step - first_step) * max(0, num_steps - step)
        found = {"seconds_left": seconds_left}
        if self.usd_per_hour is not None:
            per_second = self.usd_per_hour / SECONDS_PER_HOUR
            found |= {"usd_spent": self.paid_seconds() * per_second, "usd_left": seconds_left * per_second}
        return found


def in_words(forecast: dict[str, float]) -> str:
    """For example `11:24:03 left, $12.40 spent, $36.48 left`."""
    parts = [f"{clock(forecast['seconds_left'])} left"]
    if "usd_left" in forecast:
        parts.append(f"${forecast['usd_spent']:.2f} spent, ${forecast['usd_left']:.2f} left")
    return ", ".join(parts)


def clock(seconds: float) -> str:
    """Hours, minutes and seconds, for example 11:24:03."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
