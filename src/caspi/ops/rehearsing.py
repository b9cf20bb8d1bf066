"""What a rehearsal needs: commands in processes of their own, disturbed at a chosen moment, and what came of them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from caspi.ops.provenance import versions
from caspi.records import RunFailed

RECIPE_NAME = "rehearsal.toml"
FLAGS = ("--recipe", RECIPE_NAME)
RUN = "qwen3-asr-hebrew-round2"
MAX_STEP_SECONDS = 1800.0
"""Time that one command may take."""
POLL_SECONDS = 0.05
UNREACHABLE_KEY = "0123456789abcdef0123456789abcdef01234567"
"""A W&B key of the right shape that opens nothing; it must appear in no file."""


class Event(NamedTuple):
    happened: str
    outcome: str
    proof: str


class Rehearsal:
    """Runs commands in one folder and remembers what came of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run_dir = folder / RUN
        self.events: list[Event] = []
        self.start = time.monotonic()

    def note(self, happened: str, outcome: str, proof: str) -> None:
        self.events.append(Event(happened, outcome, proof))
        print(f"  * {happened}: {outcome} [{proof}]", flush=True)

    def caspi(
        self, *arguments: str, codes: Sequence[int] = (0,), answers: str = "", environment: dict[str, str] | None = None
    ) -> str:
        """Run a step to its end; returns what it printed.

        Raises:
            RunFailed: it ended with another exit code than the rehearsed one.
        """
        begin = time.monotonic()
        print(f"$ caspi {' '.join(arguments)}", flush=True)
        done = subprocess.run(
            [sys.executable, "-m", "caspi", *arguments],
            cwd=self.folder,
            env=self.environment(environment),
            input=answers,
            capture_output=True,
            text=True,
            timeout=MAX_STEP_SECONDS,
        )
        printed = done.stdout + done.stderr
        print(f"  exit code {done.returncode}, {time.monotonic() - begin:.0f} s", flush=True)
        self.keep(arguments[0], printed)
        if done.returncode not in codes:
            last = "\n".join(printed.strip().splitlines()[-10:])
            raise RunFailed(
                f"caspi {arguments[0]} ended with exit code {done.returncode}, rehearsed is {codes}:\n{last}"
            )
        return printed

    def train_until(self, moment: Callable[[], bool], number: signal.Signals | None) -> tuple[int, str]:
        """Start training, send it a signal at a moment, wait for its end; exit code, and what it printed.

        Raises:
            RunFailed: it ended before the moment came.
        """
        path = self.folder / "printed" / f"train-{len(list((self.folder / 'printed').glob('train-*'))) + 1}.txt"
        print(f"$ caspi train {' '.join(FLAGS)}", flush=True)
        with path.open("w", encoding="utf-8") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "caspi", "train", *FLAGS],
                cwd=self.folder,
                env=self.environment(self.outage),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            try:
                if number is not None:
                    wait_for(moment, process)
                    print(f"  step {newest_step(self.run_dir)}: {number.name}", flush=True)
                    process.send_signal(number)
                code = process.wait(MAX_STEP_SECONDS)
            finally:
                process.kill()
        print(f"  exit code {code}", flush=True)
        return code, path.read_text(encoding="utf-8")

    def environment(self, changes: dict[str, str] | None) -> dict[str, str]:
        """This process's, without settings for W&B and Hugging Face other than those of the rehearsal."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "HF_TOKEN"))}
        quiet = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "WANDB_DISABLED": "true"}
        return kept | (quiet if changes is None else {**quiet, "WANDB_DISABLED": "false", **changes})

    @property
    def outage(self) -> dict[str, str]:
        """W&B is wanted, and nobody listens at its address."""
        return {"WANDB_API_KEY": UNREACHABLE_KEY, "WANDB_BASE_URL": f"http://127.0.0.1:{self.dead_port}"}

    def keep(self, name: str, printed: str) -> None:
        folder = self.folder / "printed"
        folder.mkdir(exist_ok=True)
        with (folder / f"{name}.txt").open("a", encoding="utf-8") as file:
            file.write(printed)

    dead_port = 0


def flip_a_bit(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def newest_step(run_dir: Path) -> int:
    """Of the last whole line of metrics.jsonl; 0 before the first."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    return int(json.loads(lines[-1])["step"]) if lines else 0


def losses_of(run_dir: Path) -> dict[int, float]:
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return {entry["step"]: entry["loss"] for entry in map(json.loads, lines) if "loss" in entry}


def wait_for(moment: Callable[[], bool], process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + MAX_STEP_SECONDS
    while not moment():
        if process.poll() is not None:
            raise RunFailed(f"training ended with exit code {process.returncode} before it could be disturbed")
        if time.monotonic() > deadline:
            raise RunFailed(f"training did not come so far in {MAX_STEP_SECONDS:g} s")
        time.sleep(POLL_SECONDS)


def page(events: Sequence[Event], seconds: float) -> str:
    """Markdown."""
    used = ", ".join(f"{name} {version}" for name, version in versions().items() if name in ("torch", "transformers"))
    where = f"{datetime.now(UTC):%d %B %Y}, {len(os.sched_getaffinity(0))} CPU cores, {used}: {seconds:.0f} s"
    what = "Tiny real models, synthetic speech, real processes."
    head = f"# The rehearsal\n\n`caspi demo --rehearse` on {where}. {what}\n\n"
    rows = ["| what happened | what came of it | how it is known |", "|---|---|---|"]
    rows += [f"| {one.happened} | {one.outcome} | {one.proof} |" for one in events]
    return head + "\n".join(rows) + "\n"
