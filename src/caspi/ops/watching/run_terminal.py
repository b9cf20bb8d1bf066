"""A run's view as text: lines for a log or a pipe, a panel for a terminal."""

from collections.abc import Iterator
from datetime import timedelta

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from caspi.ops.watching.gpus_now import GpuNow
from caspi.ops.watching.run_view import Evaluation, RunView

STATE_STYLES = {"finished": "green", "training": "green", "starting": "yellow", "interrupted": "yellow"}
"""Others are red."""


def plain_lines(view: RunView) -> list[str]:
    return [f"{name:13} {text}" for name, text in rows(view)] + [f"ALERT {line}" for line in alert_lines(view)]


def one_line(view: RunView) -> str:
    """The course in one line, for a log."""
    parts = [view.time, view.state, progress(view), f"loss {number(view.loss, '.4f')}"]
    if view.last_evaluation is not None:
        parts.append(f"eval_wer {view.last_evaluation.wer:.2%}")
    parts += [f"{number(view.samples_per_second, '.1f')} samples/s", f"{duration(view.seconds_left)} left"]
    if view.usd_spent is not None:
        parts.append(f"${view.usd_spent:.2f} spent")
    return ", ".join([*parts, f"{len(view.alerts)} alerts"])


def panel(view: RunView) -> RenderableType:
    """What the terminal shows; all texts of the run are shown as they are, never as markup."""
    grid = Table.grid(padding=(0, 2))
    for name, text in rows(view):
        style = STATE_STYLES.get(view.state, "bold red") if name == "state" else ""
        grid.add_row(Text(name, style="dim"), Text(text, style=style))
    parts: list[RenderableType] = [grid]
    if view.num_steps:
        parts.insert(0, ProgressBar(total=view.num_steps, completed=view.step))
    parts += [Text(line, style="bold red") for line in alert_lines(view)]
    return Panel(Group(*parts), title=Text(view.run_dir), subtitle=Text(view.time))


def alert_lines(view: RunView) -> list[str]:
    return [f"{one.kind} at step {one.step}: {one.message}" for one in view.alerts]


def rows(view: RunView) -> Iterator[tuple[str, str]]:
    """Name and value of all that is shown; what is unknown is said to be so."""
    yield "state", f"{view.state} ({view.decided_by})"
    yield "progress", progress(view)
    yield "loss", f"{number(view.loss, '.4f')}, gradient norm {number(view.grad_norm, '.2f')}" + largest_norm(view)
    yield from evaluation_rows(view)
    rates = ", ".join(f"{group} {rate:.3g}" for group, rate in view.learning_rates.items())
    yield "learning", rates or "no learning rates yet"
    yield "speed", speed(view)
    yield "memory", memory(view)
    for gpu in view.gpus:
        yield f"GPU {gpu.index}", gpu_text(gpu)
    if not view.gpus:
        yield "GPUs", view.gpus_note
    yield "time", f"{duration(view.seconds_spent)} spent, {duration(view.seconds_left)} left"
    yield "cost", cost(view)
    yield "checkpoint", "none yet" if view.newest_checkpoint_step is None else f"step {view.newest_checkpoint_step}"
    if view.wandb_url:
        yield "W&B", view.wandb_url
    if view.has_torn_line:
        yield "metrics", "the last line of metrics.jsonl has no end and was left out"
    if view.error:
        yield "error", view.error


def evaluation_rows(view: RunView) -> Iterator[tuple[str, str]]:
    if view.last_evaluation is None or view.best_evaluation is None:
        yield "evaluation", "none yet"
        return
    yield "evaluation", evaluation(view.last_evaluation)
    yield "best", evaluation(view.best_evaluation)


def evaluation(one: Evaluation) -> str:
    cer = "" if one.cer is None else f", CER {one.cer:.2%}"
    domains = ", ".join(f"{name} {rate:.2%}" for name, rate in one.domain_wer.items())
    return f"WER {one.wer:.2%}{cer} at step {one.step}" + (f" ({domains})" if domains else "")


def progress(view: RunView) -> str:
    total = f" of {view.num_steps}" if view.num_steps else ""
    epochs = "" if view.epoch is None else f", epoch {view.epoch:.2f} of {view.num_epochs or '?'}"
    return f"stage {view.stage or '?'}, step {view.step}{total}{epochs}"


def largest_norm(view: RunView) -> str:
    return "" if view.grad_norm_max is None else f" (up to {view.grad_norm_max:.2f})"


def speed(view: RunView) -> str:
    waiting = "" if view.data_wait_fraction is None else f", {view.data_wait_fraction:.0%} of it waiting for audio"
    share = "" if view.mfu_fraction is None else f", {view.mfu_fraction:.1%} of the cards' peak rate (MFU)"
    return f"{number(view.samples_per_second, '.1f')} samples/s{share}{waiting}"


def memory(view: RunView) -> str:
    if view.gpu_memory_gib is None:
        return "no GPU memory measured by the run"
    share = "" if view.gpu_memory_fraction is None else f", {view.gpu_memory_fraction:.0%} of the GPU reserved"
    return f"peak {view.gpu_memory_gib:.1f} GiB{share}"


def gpu_text(gpu: GpuNow) -> str:
    return (
        f"{gpu.name}: {number(gpu.load_pct, '.0f')} % load, {number(gpu.memory_used_gib, '.1f')} of "
        f"{number(gpu.memory_total_gib, '.1f')} GiB, {number(gpu.temperature_celsius, '.0f')} °C, "
        f"{number(gpu.power_watts, '.0f')} W"
    )


def cost(view: RunView) -> str:
    if view.usd_per_hour is None:
        return f"unknown: {view.price_source.removeprefix('unknown: ')}"
    left = "" if view.usd_left is None else f", ${view.usd_left:.2f} left to spend"
    if view.max_budget_usd is not None and view.usd_spent is not None:
        left += f", ${view.max_budget_usd - view.usd_spent:.2f} of the budget of ${view.max_budget_usd:.2f} left"
    return f"${view.usd_spent:.2f} spent{left} (${view.usd_per_hour:.2f} per hour: {view.price_source})"


def duration(seconds: float | None) -> str:
    return "unknown" if seconds is None else str(timedelta(seconds=round(seconds)))


def number(value: float | None, spec: str) -> str:
    return "?" if value is None else format(value, spec)
