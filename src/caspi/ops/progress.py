"""How far a long loop is: a bar with the time left on a terminal, a plain line now and then in a log."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

import rich.console
import rich.progress

T = TypeVar("T")
SECONDS_BETWEEN_LINES = 10.0


def track(
    iterable: Iterable[T],
    total: int | None,
    description: str,
    *,
    seconds_between_lines: float = SECONDS_BETWEEN_LINES,
    stream: TextIO | None = None,
) -> Iterator[T]:
    """Yield the items, reporting on stderr (or `stream`) how many there were, how fast, and the time left.

    Args:
        total: number of items; None if unknown, then there is no time left to tell.
        description: what is being done, for example "probing audio".
        seconds_between_lines: where there is no terminal; loops that end sooner print nothing.
    """
    stream = sys.stderr if stream is None else stream
    if stream.isatty():
        yield from track_with_bar(iterable, total, description, stream)
    else:
        yield from track_with_lines(iterable, total, description, seconds_between_lines, stream)


def track_with_bar(iterable: Iterable[T], total: int | None, description: str, stream: TextIO) -> Iterator[T]:
    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TimeRemainingColumn(),
    )
    with rich.progress.Progress(*columns, console=rich.console.Console(file=stream)) as bar:
        yield from bar.track(iterable, total=total, description=description)


def track_with_lines(
    iterable: Iterable[T], total: int | None, description: str, seconds_between_lines: float, stream: TextIO
) -> Iterator[T]:
    start = last = time.monotonic()
    for num_done, item in enumerate(iterable, start=1):
        yield item
        now = time.monotonic()
        if now - last >= seconds_between_lines:
            last = now
            print(f"{description}: {progress_text(num_done, total, now - start)}", file=stream, flush=True)


def progress_text(num_done: int, total: int | None, elapsed_seconds: float) -> str:
    """For example `1200/20000 (6 %), 350/s, 0:53 left`."""
    per_second = num_done / max(elapsed_seconds, 1e-9)
    rate = f"{per_second:.0f}/s" if per_second >= 10 else f"{per_second:.2g}/s"
    if not total:
        return f"{num_done}, {rate}"
    seconds_left = max(0, total - num_done) / per_second
    return f"{num_done}/{total} ({100 * num_done / total:.0f} %), {rate}, {clock(seconds_left)} left"


def clock(seconds: float) -> str:
    """Hours, minutes and seconds as 1:02:03, or 2:03 below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
