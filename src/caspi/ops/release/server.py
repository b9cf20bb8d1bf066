"""Start a model server and wait until it is healthy; a server that does not get there is stopped."""

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from caspi.records import RunFailed

HOST = "127.0.0.1"
LOOPBACK = (HOST, "localhost", "::1")
POLL_SECONDS = 0.5
PROBE_TIMEOUT_SECONDS = 5.0
STOP_TIMEOUT_SECONDS = 20.0
NUM_LOG_LINES = 5
"""Of the server's log that an error message repeats."""


class Server(NamedTuple):
    pid: int
    url: str
    log: Path
    command: tuple[str, ...]


def server_command(template: str, model: str, port: int, setting: str = "rollback.serve_command") -> list[str]:
    """Words of the command; what is filled in never becomes more than one word. `setting`: where it comes from.

    Raises:
        ValueError: the template has another placeholder, or an open quotation mark.
    """
    try:
        return [word.format(model=model, port=port) for word in shlex.split(template)]
    except (ValueError, KeyError, IndexError) as error:
        raise ValueError(f"{setting} {template!r} cannot be filled in: {error}; use {{model}} and {{port}}") from None


def check_can_start(command: list[str], port: int) -> None:
    """
    Raises:
        RunFailed: the program is not installed, or something answers on the port already.
    """
    if shutil.which(command[0]) is None:
        raise RunFailed(
            f"{command[0]} is not installed here; install it in an environment of its own (uv tool install vllm), or "
            "give another --serve-command; caspi rollback can also move the pointer alone (--no-serve)"
        )
    with socket.socket() as probe:
        probe.settimeout(PROBE_TIMEOUT_SECONDS)
        if probe.connect_ex((HOST, port)) == 0:
            raise RunFailed(f"something listens on port {port} already; stop it, or give another --port")


def start_server(command: list[str], port: int, log: Path, timeout_seconds: float) -> Server:
    """Start it in a session of its own, so that it outlives this process, and wait for GET /health.

    Raises:
        RunFailed: it ended, or was not healthy in time; it does not run any more then.
    """
    process = launch(command, log, subprocess.DEVNULL)
    is_healthy = False
    try:
        wait_until_healthy(process, port, log, timeout_seconds)
        is_healthy = True
    finally:
        if not is_healthy:
            stop(process)
    return Server(process.pid, f"http://{HOST}:{port}", log, tuple(command))


@contextmanager
def running_server(command: list[str], port: int, log: Path, timeout_seconds: float) -> Iterator[Server]:
    """A healthy server for the time of the block; it ends with the block, or with this process however that ends.

    Raises:
        RunFailed: it ended before it was healthy, or was not healthy in time.
    """
    process = launch([sys.executable, "-m", "caspi.ops.release.supervise", *command], log, subprocess.PIPE)
    try:
        wait_until_healthy(process, port, log, timeout_seconds)
        yield Server(process.pid, f"http://{HOST}:{port}", log, tuple(command))
    finally:
        stop(process)
        assert process.stdin is not None
        process.stdin.close()


def launch(command: list[str], log: Path, stdin: int) -> subprocess.Popen[bytes]:
    """Start it in a session of its own with its output in the log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(command, stdin=stdin, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)


def free_port() -> int:
    """A port that nothing uses just now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def require_loopback(command: list[str], setting: str) -> None:
    """
    Raises:
        ValueError: no word of the command says that it serves this machine alone.
    """
    if not any(name in word for word in command for name in LOOPBACK):
        raise ValueError(f"{setting} must bind to this machine alone: add --host {HOST}")


def wait_until_healthy(process: subprocess.Popen[bytes], port: int, log: Path, timeout_seconds: float) -> None:
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        if (code := process.poll()) is not None:
            raise RunFailed(f"the server ended with exit code {code}; {last_lines(log)}")
        if answers(f"http://{HOST}:{port}/health"):
            return
        time.sleep(POLL_SECONDS)
    raise RunFailed(f"the server was not healthy after {timeout_seconds:g} s and was stopped; {last_lines(log)}")


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=PROBE_TIMEOUT_SECONDS) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def last_lines(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-NUM_LOG_LINES:]
    return f"end of {log}: {' | '.join(lines) or '(empty)'}"


def stop(process: subprocess.Popen[bytes]) -> None:
    """The whole group of the server's processes, first politely."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=STOP_TIMEOUT_SECONDS)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
        else:
            return
