"""Ctrl+C and preemption: save at the next step, then leave; a second Ctrl+C leaves at once."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


class StopRequest:
    """Whether a signal has asked the run to stop, and with which exit code."""

    def __init__(self) -> None:
        self.exit_code = 0

    def __bool__(self) -> bool:
        return self.exit_code != 0

    def receive(self, signal_number: int, _frame: FrameType | None) -> None:
        if self and signal_number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self:
            # A signal handler may run inside another print: nothing but a bare write is safe here.
            self.exit_code = EXIT_CODES[signal.Signals(signal_number)]


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Collect SIGINT and SIGTERM while the block runs; the previous handlers come back afterwards."""
    request = StopRequest()
    previous = {number: signal.signal(number, request.receive) for number in EXIT_CODES}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block as an exception, with exit code 143, so that what it started is put away.

    For work that keeps what is done as it goes. Outside of the main thread, where Python takes no handlers, nothing is
    changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(EXIT_CODES[signal.SIGTERM]))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
