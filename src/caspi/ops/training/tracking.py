"""Where a run reports to: training.log and metrics.jsonl always, TensorBoard always, Weights & Biases if it is set up.

Reporting never stops a run: what cannot be reached is said once and left.
"""

import importlib.util
import json
import logging
import os
import socket
import sqlite3
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

from torch.utils.tensorboard import SummaryWriter
from transformers import TrainerCallback
from transformers.integrations.integration_utils import rewrite_logs

from caspi.config import Train
from caspi.records import dump_json, write_atomically

DEFAULT_PROJECT = "qwen3-asr-hebrew"
WANDB_URL = "https://api.wandb.ai"
PROBE_TIMEOUT_SECONDS = 5.0
START_SECONDS = 60.0
FINISH_SECONDS = 120.0
"""For W&B to begin, and to send the rest at the end: the GPUs are paid for meanwhile; `wandb sync` sends it later."""
TRUE_WORDS = frozenset({"1", "true", "yes", "on"})

FILE_ONLY = {"file_only": True}
"""`extra` of a message that the command line prints anyway."""

log = logging.getLogger(__name__)


class WandbPlan(NamedTuple):
    """Whether and how Weights & Biases is used, and why, for the user to read."""

    mode: Literal["online", "offline", "off"]
    reason: str


def plan_wandb(environment: Mapping[str, str]) -> WandbPlan:
    """Decide from the environment variables of the deployment guide, before any of it can fail."""
    if environment.get("WANDB_DISABLED", "").lower() in TRUE_WORDS:
        return WandbPlan("off", "WANDB_DISABLED is set")
    mode = environment.get("WANDB_MODE", "").lower()
    if mode in ("disabled", "dryrun"):
        return WandbPlan("off" if mode == "disabled" else "offline", f"WANDB_MODE={mode}")
    if mode == "offline":
        return WandbPlan("offline", "WANDB_MODE=offline")
    if not mode and not environment.get("WANDB_API_KEY") and not environment.get("WANDB_PROJECT"):
        return WandbPlan("off", "neither WANDB_PROJECT, WANDB_MODE nor WANDB_API_KEY is set")
    if not environment.get("WANDB_API_KEY") and not (Path.home() / ".netrc").exists():
        return WandbPlan("offline", "there is no WANDB_API_KEY; upload later with wandb sync")
    url = environment.get("WANDB_BASE_URL", WANDB_URL)
    if not is_reachable(url):
        return WandbPlan("offline", f"{url} cannot be reached; upload later with wandb sync")
    return WandbPlan("online", "WANDB_API_KEY is set")


def is_reachable(url: str) -> bool:
    parts = urlsplit(url)
    port = parts.port or (80 if parts.scheme == "http" else 443)
    try:
        with socket.create_connection((parts.hostname or "", port), timeout=PROBE_TIMEOUT_SECONDS):
            return True
    except OSError:
        return False


def open_logs(output_dir: Path, is_main: bool) -> list[logging.Handler]:
    """Send caspi's messages to the terminal as they are, and with times to training.log; returns what to close.

    Processes other than the main one only say what goes wrong.
    """
    logger = logging.getLogger("caspi")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    terminal = logging.StreamHandler(sys.stdout)
    terminal.setLevel(logging.INFO if is_main else logging.WARNING)
    terminal.addFilter(lambda record: not hasattr(record, "file_only"))
    handlers: list[logging.Handler] = [terminal]
    if is_main:
        output_dir.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(output_dir / "training.log", encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        handlers.append(file)
    for handler in handlers:
        logger.addHandler(handler)
    logging.captureWarnings(True)
    return handlers


def close_logs(handlers: list[logging.Handler]) -> None:
    logger = logging.getLogger("caspi")
    for handler in handlers:
        logger.removeHandler(handler)
        handler.close()


class MetricsFile(TrainerCallback):
    """metrics.jsonl: one line per log entry. Lines of steps that a resumed run takes again are removed first."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        kept = [line for line in lines if is_up_to(line, state.global_step)]
        write_atomically(self.path, "".join(f"{line}\n" for line in kept))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if state.is_world_process_zero:
            entry = {**logs, "step": state.global_step, "time": round(time.time(), 3)}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(dump_json(entry) + "\n")


def is_up_to(line: str, step: int) -> bool:
    """False also for the torn last line of a killed run, and for what is no entry at all."""
    try:
        return bool(json.loads(line)["step"] <= step)
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


class TensorBoard(TrainerCallback):
    """Scalars under OUTPUT_DIR/runs, by the names that the guide uses (`train/loss`, `eval/wer`)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writer: SummaryWriter | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            self.writer = SummaryWriter(str(self.folder), purge_step=state.global_step + 1)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if self.writer is not None:
            for name, value in rewrite_logs(logs).items():
                self.writer.add_scalar(name, value, state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None


def check_trackers(config: Train) -> None:
    """Before anything is loaded.

    Raises:
        ValueError: trackio is asked for and not installed.
    """
    if config.trackio_project and importlib.util.find_spec("trackio") is None:
        raise ValueError(
            "train.trackio_project is set, but trackio is not installed: uv pip install 'trackio>=0.40,<1', or leave "
            "it out"
        )


def open_trackers(config: Train, run_id: str, content: dict[str, Any]) -> list["Reporter"]:
    """Those that are set up. `content` is that of run.json: recipe, versions, hashes, gate."""
    plan = plan_wandb(os.environ)
    log.info("W&B: %s (%s)\n", plan.mode, plan.reason)
    found: list[Reporter] = []
    if config.trackio_project:
        found.append(Trackio(config.trackio_project, run_id, content))
    if plan.mode != "off":
        wandb_run = WeightsAndBiases(plan, config.output_dir, run_id, content)
        wandb_run.attach(config.gate_report)
        found.append(wandb_run)
    return found


class Reporter(TrainerCallback, ABC):
    """One run of a tracker for all stages and restarts; given up with a warning as soon as the tracker fails."""

    name: str
    errors: tuple[type[Exception], ...]
    """What it raises when it fails."""

    def __init__(self) -> None:
        self.run: Any = None

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        entry = {**rewrite_logs(logs), "train/global_step": state.global_step}
        self.try_to(lambda run: self.send(run, entry, state.global_step))

    @property
    def url(self) -> str | None:
        """Where the run can be looked at; None while it is nowhere but here."""
        return None

    @abstractmethod
    def send(self, run: Any, entry: dict[str, Any], step: int) -> None:
        """One line of figures."""

    @abstractmethod
    def finish(self, exit_code: int) -> None:
        """The run has ended, for now or for good."""

    def try_to(self, act: Callable[[Any], Any]) -> None:
        """After the first failure there is no tracker any more, and the run goes on."""
        if self.run is None:
            return
        try:
            act(self.run)
        except self.errors as error:
            log.warning("WARNING: %s failed (%s); training goes on without it", self.name, error)
            self.run = None


class WeightsAndBiases(Reporter):
    """Weights & Biases; where its server does not answer as it should, in offline mode."""

    name = "W&B"

    def __init__(self, plan: WandbPlan, folder: Path, run_id: str, recipe: dict[str, Any]) -> None:
        super().__init__()
        import wandb
        from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError
        from wandb.sdk.mailbox.mailbox_handle import ServerResponseError

        # What its background process answers is not under its own base class.
        self.errors = (wandb.Error, OSError, HandleAbandonedError, MailboxClosedError, ServerResponseError)
        for mode in dict.fromkeys((plan.mode, "offline")):
            try:
                self.run = wandb.init(
                    project=os.environ.get("WANDB_PROJECT", DEFAULT_PROJECT),
                    name=os.environ.get("WANDB_RUN_NAME"),
                    id=run_id,
                    resume="allow" if mode == "online" else None,
                    mode=mode,  # type: ignore[arg-type]  # "off" has no callback
                    dir=str(folder),
                    config=recipe,
                    settings=wandb.Settings(init_timeout=START_SECONDS, finish_timeout=FINISH_SECONDS),
                )
                return
            except self.errors as error:
                log.warning("WARNING: W&B could not start %s (%s); training goes on without it", mode, error)
                wandb.teardown()  # its background process would refuse the same run again

    @property
    def url(self) -> str | None:
        return self.run.url if self.run is not None else None

    def attach(self, report: Path) -> None:
        """Keep a file, the report of Phase 0, with the run."""
        if report.is_file():
            self.try_to(lambda run: run.save(str(report), base_path=str(report.parent), policy="now"))

    def send(self, run: Any, entry: dict[str, Any], step: int) -> None:
        run.log(entry)

    def finish(self, exit_code: int) -> None:
        self.try_to(lambda run: run.finish(exit_code=exit_code))
        self.run = None


class Trackio(Reporter):
    """trackio, which keeps its runs on this machine, in TRACKIO_DIR, unless its own variables name a Space."""

    name = "trackio"
    errors = (OSError, RuntimeError, ValueError, sqlite3.Error)

    def __init__(self, project: str, run_id: str, recipe: dict[str, Any]) -> None:
        super().__init__()
        import trackio  # type: ignore[import-not-found, import-untyped, unused-ignore]  # optional extra

        try:
            self.run = trackio.init(project=project, name=run_id, config=recipe, resume="allow", embed=False)
        except self.errors as error:
            log.warning("WARNING: trackio could not start (%s); training goes on without it", error)

    def send(self, run: Any, entry: dict[str, Any], step: int) -> None:
        run.log(metrics=entry, step=step)

    def finish(self, exit_code: int) -> None:
        self.try_to(lambda run: run.finish())
        self.run = None
