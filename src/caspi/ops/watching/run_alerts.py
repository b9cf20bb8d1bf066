"""What deserves a look: the alerts that training raised, and what only an observer sees."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from caspi.config import Watch
from caspi.ops.watching.run_state import ALIVE
from caspi.records import Record

if TYPE_CHECKING:
    from caspi.ops.watching.run_view import RunView


class RunAlert(Record):
    kind: str
    """Upper-case code."""
    message: str
    step: int
    """Optimizer steps done when it was raised."""


def find_alerts(view: "RunView", raised: Sequence[Mapping[str, Any]], settings: Watch) -> list[RunAlert]:
    """`raised` are the entries of metrics.jsonl with an `alert`."""
    found = [RunAlert(kind=one["alert"], message=str(one.get("message", "")), step=one["step"]) for one in raised]
    observed = (*ended(view), *silent(view, settings), *hot(view, settings), *spent(view, settings), *damaged(view))
    return found + [RunAlert(kind=kind, message=message, step=view.step) for kind, message in observed]


def ended(view: "RunView") -> Iterator[tuple[str, str]]:
    newest = view.newest_checkpoint_step
    kept = "no checkpoint is complete" if newest is None else f"checkpoint-{newest} is complete"
    if view.state == "killed":
        yield "RUN_KILLED", f"the run ended without saving after step {view.step}; {kept}; the same command goes on"
    if view.state == "failed":
        first_line = (view.error or "see training.log").splitlines()[0]
        yield "RUN_FAILED", f"{first_line}; {kept}"


def silent(view: "RunView", settings: Watch) -> Iterator[tuple[str, str]]:
    if view.state in ALIVE and view.silence_seconds > settings.max_silence_seconds:
        yield "SILENT", f"nothing was written for {view.silence_seconds:,.0f} s: it may hang; look at nvidia-smi"


def hot(view: "RunView", settings: Watch) -> Iterator[tuple[str, str]]:
    for gpu in view.gpus if view.state in ALIVE else []:
        if gpu.temperature_celsius is not None and gpu.temperature_celsius > settings.max_temperature_celsius:
            limit = settings.max_temperature_celsius
            yield "GPU_HOT", f"GPU {gpu.index} has {gpu.temperature_celsius:g} °C, above {limit:g} °C it slows down"


def spent(view: "RunView", settings: Watch) -> Iterator[tuple[str, str]]:
    """Of the budget's limits only the highest that was passed."""
    if view.usd_spent is None:
        return
    passed = max((limit for limit in settings.budget_alerts_usd if view.usd_spent >= limit), default=None)
    if passed is not None:
        yield "BUDGET", f"${view.usd_spent:.2f} are spent, more than ${passed:g}: is the run where it should be?"
    if settings.max_budget_usd is not None and view.state in ALIVE and view.usd_spent >= settings.max_budget_usd:
        who = f"process {view.process} is asked to save and end" if view.process else "the run is not on this machine"
        yield "BUDGET_REACHED", f"${view.usd_spent:.2f} are spent, the budget is ${settings.max_budget_usd:.2f}: {who}"
    if view.usd_spent >= settings.rollback_hint_usd:
        limit = settings.rollback_hint_usd
        yield "BUDGET_ROLLBACK", f"${view.usd_spent:.2f} are spent, more than ${limit:g}: consider caspi rollback"


def damaged(view: "RunView") -> Iterator[tuple[str, str]]:
    if view.num_damaged_lines:
        yield "METRICS_DAMAGED", f"{view.num_damaged_lines} lines of metrics.jsonl are no entries and were passed over"
