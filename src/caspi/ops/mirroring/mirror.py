"""Mirroring beside training: a process copies each checkpoint; what it cannot do is an alert, and the run goes on."""

import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from caspi.config import Mirroring, Train
from caspi.ops.mirroring.process import best_step
from caspi.ops.mirroring.remote import Remote
from caspi.ops.training.artifacts import Checkpoint, Marker, checkpoint_folders, newest_checkpoint, step_of
from caspi.ops.training.signals import StopRequest
from caspi.records import RunFailed

ALERT = "MIRROR_FAILED"
LOG_FILE = "mirror.log"
STDERR = 2
POLL_SECONDS = 0.2

log = logging.getLogger(__name__)


def copying(command: str, url: str, folder: Path, *steps: int) -> list[str]:
    return [sys.executable, "-m", "caspi.ops.mirroring.process", command, url, str(folder), *map(str, steps)]


class Mirror(TrainerCallback):
    """Only the main process has one."""

    def __init__(self, url: str, folder: Path, settings: Mirroring) -> None:
        """
        Raises:
            ValueError: the address cannot be used.
        """
        self.url = Remote(url).url
        self.folder = folder
        self.settings = settings
        self.tell: Callable[[str, str, int], None] | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.claimed: frozenset[int] = frozenset()
        self.is_due = False
        """There is something that no process was started for."""
        self.failed_at: float | None = None

    def in_use(self) -> frozenset[int]:
        """Steps that a resume elsewhere would need: they must stay while they are being copied."""
        return self.claimed if self.process is not None and self.process.poll() is None else frozenset()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.is_due = True
        self.advance(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.advance(state.global_step)

    def advance(self, step: int) -> None:
        """See how the process is doing, and start one if that is due; never waits."""
        if self.process is not None:
            if self.process.poll() is None:
                return
            self.conclude(self.process.returncode, step)
            self.process = None
        if self.failed_at is not None and time.monotonic() - self.failed_at >= self.settings.retry_seconds:
            self.is_due = True
        if self.is_due:
            self.start()

    def start(self) -> None:
        self.is_due = False
        self.claimed = needed_steps(self.folder)
        with (self.folder / LOG_FILE).open("ab") as output:
            # A session of its own: Ctrl+C stops training, not the copy of what it has just saved.
            self.process = subprocess.Popen(
                copying("push", self.url, self.folder),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def conclude(self, exit_code: int, step: int) -> None:
        if not exit_code:
            if self.failed_at is not None:
                log.info("✓ Checkpoints are mirrored to %s again", self.url)
            self.failed_at = None
            return
        is_first = self.failed_at is None
        self.failed_at = time.monotonic()
        if is_first:
            assert self.tell is not None
            reason = last_line(self.folder / LOG_FILE) or f"exit code {exit_code}"
            self.tell(
                ALERT,
                f"checkpoints are not mirrored to {self.url}: {reason}; tried again after the next checkpoint and "
                f"every {self.settings.retry_seconds:g} s, training goes on (see {LOG_FILE})",
                step,
            )

    def finish(self, stop: StopRequest) -> None:
        """Wait until everything is mirrored, within the time for it; a signal ends the waiting, not the copying."""
        self.is_due = True
        step = max((step_of(folder) for folder in checkpoint_folders(self.folder)), default=0)
        deadline = time.monotonic() + self.settings.finish_seconds
        was_stopped = bool(stop)
        self.advance(step)
        log.info("Mirroring to %s...", self.url)
        while self.process is not None and time.monotonic() < deadline and bool(stop) == was_stopped:
            time.sleep(POLL_SECONDS)
            self.advance(step)
        if self.process is not None:
            log.warning("WARNING: process %d still copies to %s; this machine must stay", self.process.pid, self.url)
        elif self.failed_at is not None:
            log.warning("WARNING: the newest checkpoint is on this machine only, not in %s", self.url)
        else:
            log.info("✓ Everything is in %s", self.url)


def needed_steps(folder: Path) -> frozenset[int]:
    """The newest checkpoint and the best one that it names; others may go while they are being copied."""
    folders = checkpoint_folders(folder)
    if not folders:
        return frozenset()
    best = best_step(folders[-1])
    return frozenset({step_of(folders[-1])} | ({best} if best is not None else set()))


def last_line(path: Path) -> str:
    """Of a log, which ends with what went wrong."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def restore_newer(config: Train, found: Checkpoint | None, check: Callable[[Checkpoint], None]) -> Checkpoint | None:
    """The newest checkpoint after those of the mirror that are newer have been fetched, if there are any.

    Args:
        found: the newest complete checkpoint of the run's folder.
        check: refuses a checkpoint of another run before it is fetched.

    Raises:
        RunFailed: the mirror cannot be read and written, or nothing that is newer in it is whole.
        ValueError: the newest checkpoint is of another run.
    """
    url, folder, settings = str(config.mirror), config.output_dir, config.mirroring
    answer = json.loads(run_process(copying("list", url, folder), settings, subprocess.PIPE))
    markers = [Marker.model_validate(marker) for marker in answer["markers"]]
    for step in sorted(set(answer["steps"]) - {marker.step for marker in markers}):
        log.warning("WARNING: checkpoint-%d in %s is not complete: its copy was interrupted", step, url)
    newer = [marker for marker in reversed(markers) if found is None or marker.step > found.marker.step]
    if not newer:
        log.info("✓ The mirror %s holds no newer checkpoint", url)
        return found
    check(Checkpoint(Path(url) / f"checkpoint-{newer[0].step}", newer[0]))
    log.info("Fetching checkpoint-%d from %s...", newer[0].step, url)
    run_process(copying("pull", url, folder, *(marker.step for marker in newer)), settings, STDERR)
    return newest_checkpoint(folder)[0]


def run_process(command: list[str], settings: Mirroring, output: int) -> str:
    """What it printed, unless that goes elsewhere.

    Raises:
        RunFailed: it failed or took too long.
    """
    try:
        done = subprocess.run(
            command, stdout=output, stderr=subprocess.PIPE, text=True, timeout=settings.restore_seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise RunFailed(f"the mirror did not answer within {settings.restore_seconds:g} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise RunFailed(f"the mirror cannot be used: {lines[-1]}; repair it, or leave --mirror out to go without")
    return done.stdout or ""
