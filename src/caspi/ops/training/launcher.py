"""Several processes from one command: torchrun's agent, and one outcome out of all of theirs.

torchrun itself ends with exit code 1 whatever happened; here every process leaves its outcome in a file, and the
launcher ends as they did: with the same exit code, or with the error that one of them met.
"""

import ctypes
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import psutil  # type: ignore[import-untyped]  # comes with accelerate
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.distributed.run import config_from_args, parse_args

from caspi.records import AnswerIsNo, RunFailed, write_json

ERRORS: dict[str, type[Exception]] = {"RunFailed": RunFailed, "AnswerIsNo": AnswerIsNo, "ValueError": ValueError}
AGENTS_SIGNALS = "SIGQUIT"
"""What torchrun's agent handles itself; it must have one. Not SIGHUP: a run under nohup outlives its terminal."""
SET_PARENT_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of prctl(2)."""


class Outcome(NamedTuple):
    """How one process ended."""

    exit_code: int
    error: str = ""
    """Kind of the error it met; empty: none."""
    message: str = ""


def is_launched() -> bool:
    """Whether this process was started by torchrun or by `launch`."""
    return "TORCHELASTIC_RUN_ID" in os.environ or "WORLD_SIZE" in os.environ


def has_other_machines() -> bool:
    return "PET_NNODES" in os.environ


def launch(code: str, job: dict[str, Any], num_processes: int, shutdown_seconds: int) -> int:
    """Run Python `code` in processes of their own, with the path of a file that holds `job` as argument.

    `code` must end in `report`. Ctrl+C and SIGTERM go on to the processes, which then have `shutdown_seconds`; at a
    second Ctrl+C they are killed. Several machines take part when the variables of torchrun (PET_NNODES, PET_NODE_RANK,
    PET_MASTER_ADDR ...) are set on each; they must share the output folder. Returns the exit code of the first process
    of this machine.

    Raises:
        RunFailed, AnswerIsNo, ValueError: what a process raised, or that one died.
    """
    with tempfile.TemporaryDirectory(prefix="caspi-launch-") as name:
        folder = Path(name)
        write_json(folder / "job.json", job)
        config = launch_config(num_processes, folder)
        failure: ChildFailedError | None = None
        with ForwardedSignals(shutdown_seconds) as signals:
            try:
                elastic_launch(config, sys.executable)("-c", code, str(folder / "job.json"))
            except ChildFailedError as error:
                failure = error
        return conclude(outcomes_in(folder), signals.first, failure)


class ForwardedSignals:
    """While the block runs, Ctrl+C and SIGTERM go on to the launched processes, which save and end by themselves.

    The agent's own handling would wait for them anew after a second Ctrl+C, and ends with an error in any case.
    """

    def __init__(self, shutdown_seconds: float) -> None:
        self.first: signal.Signals | None = None
        self.timer = threading.Timer(shutdown_seconds, send_to_processes, [signal.SIGKILL])
        self.timer.daemon = True

    def __enter__(self) -> "ForwardedSignals":
        self.previous = {number: signal.signal(number, self.receive) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        self.timer.cancel()
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def receive(self, number: int, _frame: FrameType | None) -> None:
        if self.first is None:
            self.first = signal.Signals(number)
            send_to_processes(number)
            self.timer.start()
        elif number == signal.SIGINT:
            send_to_processes(signal.SIGKILL)


def send_to_processes(number: int) -> None:
    """To the launched processes and theirs; each leads a group of its own."""
    for process in psutil.Process().children():
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            continue


def launch_config(num_processes: int, folder: Path) -> LaunchConfig:
    flags = ["--nproc-per-node", str(num_processes), "--max-restarts", "0", "--log-dir", str(folder / "logs")]
    flags += ["--signals-to-handle", AGENTS_SIGNALS]
    if not has_other_machines():
        flags += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "--rdzv-id", uuid.uuid4().hex]
        flags += ["--local-addr", "localhost"]
    for name in logging.root.manager.loggerDict:
        if name.startswith("torch.distributed"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # what they report, `conclude` says in one line
    config: LaunchConfig = config_from_args(parse_args([*flags, sys.executable]))[0]
    return config


def report(job_file: Path, work: Callable[[dict[str, Any]], int]) -> int:
    """In a launched process: do the work and leave its outcome beside the job; returns the process's exit code.

    It is 0 even after a signal, so that the agent does not end the others while they are still saving.
    """
    die_with_parent()
    rank = os.environ["RANK"]
    try:
        outcome = Outcome(work(json.loads(job_file.read_text(encoding="utf-8"))))
    except KeyboardInterrupt:
        outcome = Outcome(128 + signal.SIGINT)
    except tuple(ERRORS.values()) as error:
        kind = next(name for name, one in ERRORS.items() if isinstance(error, one))
        outcome = Outcome(1, kind, str(error))
    write_json(job_file.parent / f"outcome-{rank}.json", outcome._asdict())
    return 1 if outcome.error else 0


def die_with_parent() -> None:
    """Let the kernel kill this process when the launcher is killed: two runs must never write into one folder."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)


def outcomes_in(folder: Path) -> dict[int, Outcome]:
    """By rank."""
    paths = folder.glob("outcome-*.json")
    found = {int(path.stem.split("-")[1]): Outcome(**json.loads(path.read_text(encoding="utf-8"))) for path in paths}
    return dict(sorted(found.items()))


def conclude(outcomes: dict[int, Outcome], stop: signal.Signals | None, failure: ChildFailedError | None) -> int:
    for outcome in outcomes.values():
        if outcome.error:
            raise ERRORS[outcome.error](outcome.message)
    if stop is not None and failure is not None:
        return 128 + stop
    if failure is not None:
        rank, first = failure.get_first_failure()
        how = f"was killed by {signal.Signals(-first.exitcode).name}" if first.exitcode < 0 else "crashed"
        raise RunFailed(
            f"process {rank} {how} (exit code {first.exitcode}), the others were stopped. The newest checkpoint is "
            "intact; the same command goes on from it"
        )
    return next(iter(outcomes.values())).exit_code
