"""Is a training run still alive? Decided by the lock that it holds; where no lock can be seen, by its last write."""

import fcntl
import re
import struct
from pathlib import Path
from typing import Literal, NamedTuple

from caspi.ops.provenance import host_id
from caspi.ops.training.run_lock import LOCK_FILE
from caspi.ops.watching.run_metrics import RunRecord

State = Literal["starting", "training", "finished", "interrupted", "failed", "killed"]
ALIVE: tuple[State, ...] = ("starting", "training")
RECORD = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ([A-Z]+) ", re.MULTILINE)
"""Head of a message in training.log, which may go on over more lines."""
LOG_TAIL_BYTES = 1 << 20
FLOCK = "hhqqi4x"
"""`struct flock` of 64-bit Linux: type, whence, start, length, process."""


class Verdict(NamedTuple):
    state: State
    decided_by: str
    """The evidence, for the user."""
    process: int | None
    """Of the run, where the lock names one."""


class Holder(NamedTuple):
    process: int
    """0 where the run is in another container."""


def judge_state(run_dir: Path, record: RunRecord, silence_seconds: float, max_silence_seconds: float) -> Verdict:
    """`silence_seconds` is the age of the run's last write."""
    recorded = record.state
    elsewhere = f"the run is on another machine ({record.host})" if record.host not in (None, host_id()) else None
    unseen = elsewhere or why_lock_cannot_tell(run_dir)
    holder = None if unseen else lock_holder(run_dir / LOCK_FILE)
    if holder is not None:
        return judge_living(recorded, holder)
    if recorded == "done":
        return Verdict("finished", "run.json says done", None)
    if recorded == "interrupted":
        return Verdict("interrupted", f"run.json says interrupted, exit code {record.exit_code}", None)
    if last_error(run_dir) is not None:
        return Verdict("failed", "training.log ends with an error", None)
    if unseen is None:
        return Verdict("killed", f"run.json says {recorded or 'started'}, but no process holds the folder", None)
    age = f"the last write is {silence_seconds:,.0f} s old; {unseen}"
    if silence_seconds <= max_silence_seconds:
        return Verdict("training" if recorded == "training" else "starting", age, None)
    return Verdict("killed", f"run.json says {recorded or 'started'}, but {age}", None)


def judge_living(recorded: str | None, holder: Holder) -> Verdict:
    process = f"process {holder.process}" if holder.process else "a process in another container"
    evidence = f"{process} holds the folder"
    if recorded == "training":
        return Verdict("training", evidence, holder.process or None)
    if recorded == "done":
        return Verdict("finished", f"run.json says done; {evidence} for a moment longer", holder.process or None)
    if recorded == "interrupted":
        return Verdict(
            "interrupted", f"run.json says interrupted; {evidence}, to end or to begin again", holder.process
        )
    return Verdict("starting", evidence, holder.process or None)


def why_lock_cannot_tell(run_dir: Path) -> str | None:
    """None: the lock tells whether a run is alive."""
    path = run_dir / LOCK_FILE
    if not path.exists():
        return f"{LOCK_FILE} is missing, so the folder is a copy"
    try:
        lock_holder(path)
    except OSError as error:
        return f"{LOCK_FILE} cannot be asked ({error.strerror})"
    return None


def lock_holder(path: Path) -> Holder | None:
    """Who holds the run's lock, without taking it; None: nobody.

    Only for other processes: a process does not see its own locks, and asking loses them.

    Raises:
        OSError: the file cannot be read, or its file system has no locks.
    """
    question = struct.pack(FLOCK, fcntl.F_WRLCK, 0, 0, 0, 0)
    with path.open("rb") as file:
        kind, _, _, _, process = struct.unpack(FLOCK, fcntl.fcntl(file.fileno(), fcntl.F_GETLK, question))
    return None if kind == fcntl.F_UNLCK else Holder(max(process, 0))


def last_error(run_dir: Path) -> str | None:
    """The last message of training.log with what follows it, if it is an error; None if the log goes on after it."""
    log = log_tail(run_dir)
    records = list(RECORD.finditer(log))
    if not records:
        return None
    text = log[records[-1].start() :].strip()
    is_error = records[-1].group(1) in ("ERROR", "CRITICAL") or "\nTraceback (most recent call last):" in text
    return text if is_error else None


def log_tail(run_dir: Path) -> str:
    """The end of training.log, from the start of a line; empty if there is none."""
    path = run_dir / "training.log"
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - LOG_TAIL_BYTES))
        data = file.read()
    if size > LOG_TAIL_BYTES:
        data = data.partition(b"\n")[2]
    return data.decode("utf-8", errors="replace")
