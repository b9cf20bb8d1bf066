"""What a training run has cost, all starts together, and the budget at which it saves and stops.

Loading, evaluating and saving are paid for too. `run.json` keeps the time as `paid_seconds`, so that the sum goes on
after a restart, on another machine as well.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback

from caspi.config import Recipe
from caspi.ops.cost import HourlyPrice, hourly_price, price_table
from caspi.ops.training.signals import StopRequest
from caspi.ops.training.training_record import TrainingRecord
from caspi.records import ExitCode, RunFailed

ALERT = "BUDGET_REACHED"


class Spending(TrainerCallback):
    """Only the main process has one."""

    def __init__(
        self,
        record: TrainingRecord,
        price: HourlyPrice,
        max_usd: float | None,
        began: float,
        stop: StopRequest,
    ) -> None:
        """`began` is when this start began, by `time.monotonic`.

        Raises:
            ValueError: there is a budget and no price.
            RunFailed: the budget was spent by earlier starts.
        """
        self.record = record
        self.price = price
        self.max_usd = max_usd
        self.stop = stop
        self.seconds_before: float = record.content["paid_seconds"]
        self.began = began
        self.tell: Callable[[str, str, int], None] | None = None
        self.is_over = False
        if max_usd is not None and price.usd_per_hour is None:
            raise ValueError(f"--max-budget needs a price ({price.source})")
        self.check_rest()

    def check_rest(self) -> None:
        spent = self.price.usd_for(self.seconds_before)
        if self.max_usd is not None and spent is not None and spent >= self.max_usd:
            raise RunFailed(
                f"${spent:.2f} were spent by {len(self.record.content['starts']) - 1} earlier starts, the budget is "
                f"${self.max_usd:.2f}: the newest checkpoint is intact; go on with a larger --max-budget"
            )

    def seconds(self) -> float:
        """Paid for so far, all starts together."""
        return self.seconds_before + time.monotonic() - self.began

    def usd(self) -> float | None:
        """Spent so far; None: there is no price."""
        return self.price.usd_for(self.seconds())

    def usd_left(self) -> float | None:
        """Of the budget; None: there is no budget."""
        spent = self.usd()
        return None if self.max_usd is None or spent is None else self.max_usd - spent

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        left = self.usd_left()
        if left is None or left > 0 or self.is_over:
            return
        self.is_over = True
        assert self.tell is not None
        self.tell(ALERT, f"the budget of ${self.max_usd or 0:.2f} is spent: the run saves and stops", state.global_step)
        self.stop.exit_code = self.stop.exit_code or ExitCode.NOT_MEASURED

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.keep()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.keep()

    def keep(self) -> None:
        """At every log entry, so that a kill loses no more than the time since."""
        self.record.update(paid_seconds=round(self.seconds(), 3))


def count_spending(
    recipe: Recipe, record: TrainingRecord, began: float, stop: StopRequest, num_processes: int
) -> Spending:
    """With the price that the recipe states, else that of the table for this machine's cards.

    Raises:
        RunFailed: the budget is spent.
        ValueError: there is a budget and no price.
    """
    config, plan = recipe.train, recipe.plan
    stated = [(config.price, "--price"), (plan.price, "plan.price of the recipe")]
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    price = hourly_price(stated, names, num_processes, price_table(plan.prices))
    return Spending(record, price, config.max_budget_usd, began, stop)
