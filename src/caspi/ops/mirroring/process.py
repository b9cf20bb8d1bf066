"""The process that copies: `python -m caspi.ops.mirroring.process push|list|pull URL RUN_FOLDER [STEP ...]`.

A process of its own: it takes nothing from training but bandwidth, whatever library fails in it is one line for the
user, and it outlives a training process that is killed.
"""

import fcntl
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from caspi.ops.mirroring.remote import Remote
from caspi.ops.training.artifacts import MARKER, checkpoint_folders, step_of
from caspi.records import dump_json

LOCK_FILE = ".mirror.lock"
STATE_FILE = "trainer_state.json"

log = logging.getLogger(__name__)


def main(arguments: list[str]) -> int:
    command, url, folder, *steps = arguments
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", stream=sys.stdout)
    log.setLevel(logging.INFO)
    try:
        remote = Remote(url)
        if command == "push":
            with only_one_for(Path(folder)):
                push_all(remote, Path(folder))
        elif command == "pull":
            pull_all(remote, Path(folder), [int(step) for step in steps])
        else:
            remote.prove_writable()
            markers = [marker.model_dump(mode="json") for marker in remote.complete()]
            print(dump_json({"steps": remote.steps(), "markers": markers}))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


@contextmanager
def only_one_for(folder: Path) -> Iterator[None]:
    """Wait for the process that a killed run has left behind."""
    with (folder / LOCK_FILE).open("a") as file:
        fcntl.lockf(file.fileno(), fcntl.LOCK_EX)
        yield


def push_all(remote: Remote, run_folder: Path) -> None:
    """Make the mirror hold what the folder holds: first what a resume needs, at last remove what is gone here.

    Raises:
        ValueError: a checkpoint is damaged here, or a file holds a secret.
    """
    remote.push_run_files(run_folder)
    folders = in_order_of_need(run_folder)
    for folder in folders:
        try:
            if remote.push(folder):
                log.info("%s is complete in %s", folder.name, remote.url)
        except (FileNotFoundError, ValueError):
            if (folder / MARKER).exists():
                raise
            log.info("%s was deleted here while it was being copied", folder.name)
    kept = {step_of(folder) for folder in folders}
    for step in remote.steps() if folders else ():
        if step not in kept:
            remote.delete(step)


def in_order_of_need(run_folder: Path) -> list[Path]:
    """Committed checkpoints: the newest after the best one that it names, so that no complete mirror lacks its best."""
    committed = [folder for folder in checkpoint_folders(run_folder) if (folder / MARKER).is_file()]
    if not committed:
        return []
    newest = committed[-1]
    best = [folder for folder in committed if step_of(folder) == best_step(newest) and folder != newest]
    return [*best, newest, *(folder for folder in reversed(committed[:-1]) if folder not in best)]


def best_step(checkpoint: Path) -> int | None:
    """Of all steps up to this checkpoint, by its state file."""
    path = checkpoint / STATE_FILE
    state = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    step: int | None = state.get("best_global_step")
    return step


def pull_all(remote: Remote, run_folder: Path, steps: list[int]) -> None:
    """Fetch the first of these checkpoints that is whole, the best one that it names, and the run's small files.

    Raises:
        ValueError: none is whole.
    """
    problems = []
    for step in steps:
        try:
            folder = remote.pull(step, run_folder, log.info)
            best = best_step(folder)
            if best is not None and best != step and not (run_folder / f"checkpoint-{best}" / MARKER).is_file():
                remote.pull(best, run_folder, log.info)
        except ValueError as error:
            log.info("%s", error)
            problems.append(str(error))
            continue
        remote.pull_run_files(run_folder)
        return
    raise ValueError("; ".join(problems))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
