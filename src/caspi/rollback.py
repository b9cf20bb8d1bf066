"""`caspi rollback`: back up, choose a model that works, prove that it loads, serve it, record it.

The registry's last line that names a model is the pointer: what is served now. It moves only after everything else has
succeeded. Without an option, what is served now is shown.
"""

import getpass
import hashlib
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from caspi.config import Recipe, Rollback
from caspi.ops.comparison.criteria import read_object
from caspi.ops.release.archive import Archive, write_archive
from caspi.ops.release.registry import Event, append_event, read_events, served_now
from caspi.ops.release.server import Server, check_can_start, require_loopback, server_command, start_server
from caspi.ops.training.artifacts import checkpoint_folders
from caspi.ops.training.evaluations import last_checkpoint, rank_checkpoints
from caspi.ops.training.run_folder import MODEL_FILES, RUN_FILE, model_files
from caspi.records import ExitCode, RunFailed, dump_json, write_atomically

RELOAD_TEST = "import sys; from caspi.model.checkpoints.checkpoint import load_asr, local_folder; \
folder = local_folder(sys.argv[1]); load_asr(folder); print('FOLDER', folder.resolve())"
WANDB_NOTE = "wandb_run.txt"


class Target(NamedTuple):
    """A model to serve."""

    model: str
    """Absolute folder, or Hub id."""
    why: str


class Loads(NamedTuple):
    """A model that was loaded just now."""

    folder: Path
    sha256: str


def run(recipe: Recipe) -> int:
    """Roll back as asked.

    Raises:
        ValueError: the run or the model cannot be used.
        RunFailed: the backup, the reload test or the server failed; the pointer has not moved.
    """
    section = recipe.rollback
    events = read_events(section.registry)
    if not section.option and not section.to:
        show(events, section.registry)
        return ExitCode.DONE
    if section.option == "conservative":
        return recommend_training(section)
    target = choose_target(section)
    command = server_command(section.serve_command, target.model, section.port) if section.serve else None
    if command:
        require_loopback(command, "rollback.serve_command")
        check_can_start(command, section.port)
    print(f"going back to {target.model}: {target.why}")
    archive = back_up(section)
    loads = reload_test(target, section.reload_timeout_seconds)
    server = serve(section, command) if command else None
    record(section, target, loads, archive, server)
    print(f"now served: {target.model}" + (f" at {server.url} (pid {server.pid})" if server else " (pointer only)"))
    return ExitCode.DONE


def show(events: list[Event], registry: Path) -> None:
    now = served_now(events)
    print(f"served now: {now.model} since {now.time}" if now else f"{registry}: nothing has been served yet")
    for event in events:
        reason = f" ({event.reason})" if event.reason else ""
        print(f"  {event.time}  {event.event:8} {event.model or '-'}: {event.why}{reason}")


def recommend_training(section: Rollback) -> ExitCode:
    """The guide's option 3 needs GPUs and hours: it is recorded and printed, not started."""
    if not section.conservative_recipe.is_file():
        raise ValueError(f"recipe {section.conservative_recipe} does not exist: give --conservative-recipe")
    archive = back_up(section)
    command = ["caspi", "train", "--recipe", str(section.conservative_recipe)]
    why = "option conservative: smaller learning rates, fewer epochs"
    append_event(section.registry, event_of(section, "retrain", why, archive, command=command))
    print(f"what is served has not changed; train again with:\n  {shlex.join(command)}")
    return ExitCode.DONE


def choose_target(section: Rollback) -> Target:
    """
    Raises:
        ValueError: there is no such model, or no complete checkpoint.
    """
    if section.option == "round1":
        return Target(absolute(section.round1_model), "option round1: the model from before Round 2")
    if section.option == "best-checkpoint":
        return best_of(section.run_dir, "option best-checkpoint")
    assert section.to is not None
    folder = Path(section.to)
    if checkpoint_folders(folder):
        return best_of(folder, f"--to {section.to}")
    return Target(absolute(section.to), f"--to {section.to}")


def absolute(model: str) -> str:
    return str(Path(model).resolve()) if Path(model).is_dir() else model


def best_of(run_dir: Path, asked: str) -> Target:
    ranking = rank_checkpoints(run_dir)
    for line in ranking.passed_over:
        print(f"note: passed over {line}")
    best = ranking.best[0]
    return Target(str(best.folder.resolve()), f"{asked}: lowest eval_wer {best.eval_wer:.2%} at step {best.step}")


def back_up(section: Rollback) -> Archive | None:
    """Before anything changes.

    Raises:
        ValueError: there is no run to back up.
        RunFailed: the archive could not be written or does not read back.
    """
    if section.backup == "none":
        print("no backup was asked for")
        return None
    if not section.run_dir.is_dir():
        raise ValueError(f"run folder {section.run_dir} does not exist: give --run-dir, or --backup none")
    note = wandb_note(section.run_dir)
    if note:
        write_atomically(section.run_dir / WANDB_NOTE, note)
    kept, left_out = chosen_files(section.run_dir, section.backup)
    if not kept:
        raise ValueError(f"run folder {section.run_dir} is empty: give --run-dir, or --backup none")
    target = section.backup_dir / f"{section.run_dir.resolve().name}-{timestamp('%Y%m%dT%H%M%SZ')}.tar.gz"
    archive = write_archive(section.run_dir, kept, target, compression_level=section.compression_level)
    print(f"backed up {archive.num_files} files, {archive.num_bytes:,} bytes, to {archive.path}; read back and equal")
    for name in left_out:
        print(f"  left out: {name}")
    return archive


def chosen_files(run_dir: Path, extent: str) -> tuple[list[Path], list[str]]:
    """Files to keep, and what is left out: whole checkpoints by name, and weights in the run folder itself."""
    checkpoints = checkpoint_folders(run_dir)
    keep = set(checkpoints)
    if extent != "all":
        keep = valuable(run_dir) if extent == "best" and checkpoints else set()
    dropped = [folder for folder in checkpoints if folder not in keep]
    final = set() if extent == "all" else {path for pattern in MODEL_FILES for path in run_dir.glob(pattern)}
    kept = []
    for path in sorted(run_dir.rglob("*")):
        is_dropped = path in final or any(folder in path.parents for folder in dropped)
        if path.is_file() and not path.is_symlink() and not is_dropped:
            kept.append(path)
    left_out = [folder.name for folder in dropped] + sorted(f"{path.name} (final model)" for path in final)
    left_out += [f"{path.relative_to(run_dir)} (link)" for path in sorted(run_dir.rglob("*")) if path.is_symlink()]
    return kept, left_out


def valuable(run_dir: Path) -> set[Path]:
    """The best and the newest complete checkpoint."""
    return {rank_checkpoints(run_dir).best[0].folder, last_checkpoint(run_dir).folder}


def wandb_note(run_dir: Path) -> str:
    """Where the run is on W&B; empty when it was not there."""
    run = read_object(run_dir / RUN_FILE)
    lines = [str(run["wandb_url"])] if run.get("wandb_url") else []
    if run.get("wandb_run_id"):
        lines.append(f"run id: {run['wandb_run_id']}")
    return "".join(f"{line}\n" for line in lines)


def reload_test(target: Target, timeout_seconds: float) -> Loads:
    """Load the model in a process of its own, with every tensor accounted for, and hash its files.

    Raises:
        RunFailed: it does not load.
    """
    print(f"reload test of {target.model} ...", flush=True)
    try:
        done = subprocess.run(
            [sys.executable, "-c", RELOAD_TEST, target.model], capture_output=True, text=True, timeout=timeout_seconds
        )
    except subprocess.TimeoutExpired:
        raise RunFailed(f"{target.model} did not load in {timeout_seconds:g} s; the pointer has not moved") from None
    if done.returncode:
        problem = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise RunFailed(
            f"{target.model} does not load: {problem.removeprefix('ValueError: ')}; the pointer has not moved"
        )
    folder = Path(done.stdout.strip().splitlines()[-1].removeprefix("FOLDER "))
    digest = hashlib.sha256(dump_json(model_files(folder)).encode()).hexdigest()
    return Loads(folder, digest)


def serve(section: Rollback, command: list[str]) -> Server:
    log = section.registry.parent / f"server-{timestamp('%Y%m%dT%H%M%SZ')}.log"
    print(f"starting {shlex.join(command)}\nwaiting for it to become healthy; its log is {log}", flush=True)
    try:
        return start_server(command, section.port, log, section.health_timeout_seconds)
    except RunFailed as error:
        raise RunFailed(f"{error}; the pointer has not moved") from error


def record(section: Rollback, target: Target, loads: Loads, archive: Archive | None, server: Server | None) -> None:
    event = event_of(
        section,
        "serve",
        target.why,
        archive,
        model=target.model,
        model_sha256=loads.sha256,
        command=list(server.command) if server else None,
        pid=server.pid if server else None,
        url=server.url if server else None,
    )
    append_event(section.registry, event)


def event_of(section: Rollback, kind: Any, why: str, archive: Archive | None, **facts: Any) -> Event:
    nothing = dict.fromkeys(("model", "model_sha256", "command", "pid", "url"))
    return Event(
        time=timestamp("%Y-%m-%dT%H:%M:%SZ"),
        event=kind,
        why=why,
        reason=section.reason,
        who=getpass.getuser(),
        backup=str(archive.path.resolve()) if archive else None,
        backup_sha256=archive.sha256 if archive else None,
        **(nothing | facts),
    )


def timestamp(pattern: str) -> str:
    return datetime.now(UTC).strftime(pattern)
