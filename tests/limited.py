"""The real command line in a forked process whose memory and time are limited."""

import contextlib
import importlib
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import NamedTuple, TextIO

from caspi.cli import main

for _step in ("audit", "compare", "evaluate", "gate", "plan", "prepare", "rollback", "watch"):
    importlib.import_module(f"caspi.{_step}")  # once here instead of in every fork

EXTRA_MEMORY_MIB = 1024
"""What a step may take beyond what the test process has: three times what it takes on good input."""
MAX_SECONDS = 120.0
"""What hangs is ended then; on an idle machine no step here takes more than two."""
MIB = 2**20


class Ended(NamedTuple):
    exit_code: int
    """Negative: the signal that ended it."""
    out: str
    err: str

    @property
    def printed(self) -> str:
        return self.out + self.err


def caspi(
    *arguments: str, folder: Path, extra_memory_mib: int = EXTRA_MEMORY_MIB, stdin: TextIO | None = None
) -> Ended:
    """Run a step in `folder`; a traceback, a kill for time and an ending by memory fail the test."""
    names = [folder / f".printed.{stream}" for stream in ("out", "err")]
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.chdir(folder)
            for descriptor, name in enumerate(names, start=1):
                os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
            leave_helpers_to_parent()
            sys.stdin = stdin or open(os.devnull)  # noqa: SIM115, PTH123  # ends with the process
            limit_memory(extra_memory_mib)
            with contextlib.redirect_stdout(open(1, "w")), contextlib.redirect_stderr(open(2, "w")):
                code = main(list(arguments))
        except SystemExit as ending:
            code = ending.code if isinstance(ending.code, int) else 1
        except BaseException:  # noqa: BLE001  # the child of a fork must never return into pytest
            traceback.print_exc()
        finally:
            os._exit(code)
    exit_code = wait(child)
    out, err = (name.read_text(encoding="utf-8", errors="replace") for name in names)
    for name in names:
        name.unlink()
    assert exit_code != -9, f"it took more than {MAX_SECONDS:g} s"
    assert "Traceback" not in out + err, out + err
    return Ended(exit_code, out, err)


def assert_refused(ended: Ended, expected: str) -> None:
    """One line that says what is wrong, and exit code 2."""
    assert ended.exit_code == 2, ended
    assert expected in ended.err
    assert ended.err.startswith("error: "), ended.err
    assert len(ended.err.strip().splitlines()) == 1, ended.err
    assert len(ended.err) < 2000


def put(data: Callable[[], bytes]) -> Callable[[Path], object]:
    """A maker of a file with these bytes."""
    return lambda path: path.write_bytes(data())


def sparse(path: Path, num_bytes: int, head: bytes = b"") -> None:
    """A file of any size that takes no room: after `head` it reads as zeros."""
    path.write_bytes(head)
    os.truncate(path, num_bytes)


def wait(child: int) -> int:
    deadline = time.monotonic() + MAX_SECONDS
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(child, 9)
        time.sleep(0.005)


def limit_memory(extra_mib: int) -> None:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + extra_mib * MIB
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def leave_helpers_to_parent() -> None:
    """The fork server and the resource tracker are children of the test process: this one starts its own."""
    nothing = {"_forkserver_pid": None, "_forkserver_alive_fd": None, "_forkserver_address": None}
    vars(vars(forkserver)["_forkserver"]).update(nothing)
    vars(vars(resource_tracker)["_resource_tracker"]).update({"_pid": None, "_fd": None})
