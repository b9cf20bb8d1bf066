"""`caspi watch RUN_DIR`: how a training run is doing, while it runs and afterwards.

The run's files are only read; `--page` adds one. `--max-budget` sends the run a signal when its budget is spent.

Exit code: 0 healthy, 1 something deserves a look, 2 there is no run.
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.live import Live

from caspi.config import Recipe, Watch
from caspi.ops.watching.bug_report import write_bundle
from caspi.ops.watching.run_metrics import read_run
from caspi.ops.watching.run_state import ALIVE
from caspi.ops.watching.run_terminal import one_line, panel, plain_lines
from caspi.ops.watching.run_view import RunView, look, view_of
from caspi.records import ExitCode, dump_json, write_atomically

PAGE_FILE = "run.html"


def run(recipe: Recipe) -> int:
    """Show the run, or write its page or a bug report.

    Raises:
        ValueError: there is no training run, or its files are damaged.
    """
    settings = recipe.watch
    if settings.page or settings.bundle is not None:
        return write_files(settings)
    if settings.json_output:
        view = look(settings.run_dir, settings, time.time())
        print(dump_json(view.model_dump(mode="json"), indent=2))
        return exit_code(view)
    if sys.stdout.isatty() and not settings.once:
        return follow_on_terminal(settings, Console())
    return follow_in_lines(settings, time.sleep)


def keep_budget(view: RunView) -> None:
    """Ask a run that has spent its budget to save and end; asking again changes nothing."""
    if view.process and any(alert.kind == "BUDGET_REACHED" for alert in view.alerts):
        with contextlib.suppress(ProcessLookupError):
            os.kill(view.process, signal.SIGTERM)


def exit_code(view: RunView) -> int:
    return ExitCode.NO if view.alerts else ExitCode.DONE


def write_files(settings: Watch) -> int:
    if settings.page:
        print(write_page(settings.run_dir, settings))
    if settings.bundle is not None:
        files = read_run(settings.run_dir)
        names = write_bundle(settings.bundle, files, view_of(files, settings, time.time()), settings)
        print(f"{settings.bundle}: {', '.join(names)}")
        print("Secrets were taken out by pattern; look through it before you send it.")
    return ExitCode.DONE


def write_page(run_dir: Path, settings: Watch) -> Path:
    """Write RUN_DIR/run.html and return its path.

    Raises:
        ValueError: there is no training run, or its files are damaged.
    """
    from caspi.ops.watching.run_page import run_page  # jinja2 is half of the time to start

    files = read_run(run_dir)
    write_atomically(run_dir / PAGE_FILE, run_page(files, view_of(files, settings, time.time())))
    return run_dir / PAGE_FILE


def follow_in_lines(settings: Watch, wait: Callable[[float], None]) -> int:
    """Everything once; then, unless once was asked for, a line whenever the run has gone on, until it ends."""
    view = look(settings.run_dir, settings, time.time())
    print("\n".join(plain_lines(view)), flush=True)
    keep_budget(view)
    while view.state in ALIVE and not settings.once:
        wait(settings.refresh_seconds)
        before, view = view, look(settings.run_dir, settings, time.time())
        keep_budget(view)
        if (view.step, view.state) != (before.step, before.state) or len(view.alerts) > len(before.alerts):
            print(one_line(view), flush=True)
            for alert in view.alerts[len(before.alerts) :]:
                print(f"ALERT {alert.kind} at step {alert.step}: {alert.message}", flush=True)
    return exit_code(view)


def follow_on_terminal(settings: Watch, console: Console) -> int:
    """Redraw until the run ends; Ctrl+C ends the watching, not the run."""
    view = look(settings.run_dir, settings, time.time())
    with Live(panel(view), console=console, auto_refresh=False) as live:
        try:
            while view.state in ALIVE:
                time.sleep(settings.refresh_seconds)
                view = look(settings.run_dir, settings, time.time())
                keep_budget(view)
                live.update(panel(view), refresh=True)
        except KeyboardInterrupt:
            pass
    return exit_code(view)
