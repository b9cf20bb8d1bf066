"""Worker processes that survive their clips: a crash or a hang costs one counted outcome, not the audit.

Native code can take its process down (a decoder that segfaults, the kernel that kills for memory) or never return.
Groups run in child processes; the clips of a group whose process died are tried one by one, and the one that does it
again is an outcome that says what happened.
"""

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import NamedTuple, Self

from caspi.config import Audit, Recipe
from caspi.model.aligners import Aligner, Description, build_aligner, describe
from caspi.model.aligners.battery import Task, default_num_processes, measure_group, plan_groups
from caspi.records import RunFailed
from caspi.speech.alignment.controls import ORIGINAL
from caspi.speech.alignment.quality import Outcome

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
MAX_DEATHS_IN_A_ROW = 5
"""Single clips that kill their worker without one that is measured in between: the tool is broken, not the clips."""
POLL_SECONDS = 1.0

Builder = Callable[[Recipe], Aligner]


class Refused(NamedTuple):
    """Why the backend cannot be loaded."""

    message: str


class Worker:
    """One child process, and the group that it is busy with."""

    def __init__(self, recipe: Recipe, build: Builder) -> None:
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_work, args=(theirs, recipe, build), daemon=True)
        with _environment(dict.fromkeys(ONE_THREAD, "1")):
            self.process.start()
        theirs.close()
        self.is_ready = False
        self.group: list[Task] = []
        self.deadline = float("inf")

    def begin(self, group: list[Task], settings: Audit) -> None:
        self.group = group
        seconds = sum(task.pair_seconds for task in group)
        self.deadline = time.monotonic() + len(group) * settings.clip_timeout_seconds
        self.deadline += settings.clip_timeout_factor * seconds
        self.pipe.send(group)

    def end(self) -> list[Task]:
        group, self.group, self.deadline = self.group, [], float("inf")
        return group

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


class LocalWorkers:
    """Processes on this machine, each with the backend loaded and one thread; see `Workers`."""

    def __init__(self, recipe: Recipe, build: Builder = build_aligner) -> None:
        """
        Args:
            build: called in each child.
        """
        self.recipe, self.build = recipe, build
        self.settings = recipe.audit
        self.num_processes = self.settings.num_processes or default_num_processes(self.settings.backend)
        self.workers: list[Worker] = []
        self.description: Description | None = None

    def __enter__(self) -> Self:
        try:
            # One first: what cannot be loaded is said once, and weights are read from disk once.
            self.workers = [Worker(self.recipe, self.build)]
            while self.description is None:
                self._listen()
            self.workers += [Worker(self.recipe, self.build) for _ in range(self.num_processes - 1)]
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Children end at once; what they had not handed over is lost, nothing else is."""
        for worker in self.workers:
            worker.kill()
        self.workers = []

    @property
    def model(self) -> Description:
        """What was loaded."""
        assert self.description is not None, "the workers have not been entered"
        return self.description

    def run(self, groups: Sequence[Sequence[Task]]) -> Iterator[list[Outcome]]:
        """Yield the outcomes of each group, or of parts of it, as they come."""
        waiting = deque(list(group) for group in groups)
        num_deaths = 0
        while waiting or any(worker.group for worker in self.workers):
            for worker in self.workers:
                if waiting and worker.is_ready and not worker.group:
                    worker.begin(waiting.popleft(), self.settings)
            for worker, outcomes in self._listen():
                group = worker.end()
                if isinstance(outcomes, list):
                    num_deaths = 0
                    yield outcomes
                elif len(group) > 1:
                    waiting.extendleft([task] for task in reversed(group))
                elif group:
                    num_deaths += 1
                    self._give_up(num_deaths, outcomes)
                    yield [Outcome(group[0].id, {}, {ORIGINAL: outcomes}, is_crash=True)]

    def _listen(self) -> list[tuple[Worker, list[Outcome] | str]]:
        """What arrived: outcomes of a group, or how its worker ended. Dead workers are replaced."""
        wait([worker.pipe for worker in self.workers], POLL_SECONDS)
        arrived: list[tuple[Worker, list[Outcome] | str]] = []
        for place, worker in enumerate(self.workers):
            message = self._receive(worker)
            if isinstance(message, Refused):
                raise ValueError(message.message)
            if isinstance(message, dict):
                worker.is_ready, self.description = True, message
            elif isinstance(message, list):
                arrived.append((worker, message))
            elif isinstance(message, str):
                if not worker.is_ready:
                    raise RunFailed(
                        f"a worker of backend {self.settings.backend} {message} while loading (out of memory?); "
                        f"try fewer with --num-processes, now {self.num_processes}"
                    )
                arrived.append((worker, message))
                worker.kill()
                self.workers[place] = Worker(self.recipe, self.build)
        return arrived

    def _receive(self, worker: Worker) -> Description | Refused | list[Outcome] | str | None:
        """A message, how the worker ended, or None while there is nothing."""
        try:
            if worker.pipe.poll():
                message: Description | Refused | list[Outcome] = worker.pipe.recv()
                return message
        except (EOFError, ConnectionResetError):
            worker.process.join()
            return _ending(worker.process.exitcode)
        if time.monotonic() > worker.deadline:
            return f"did not answer in time ({self.settings.clip_timeout_seconds:g} s and more)"
        return None

    def _give_up(self, num_deaths: int, ending: str) -> None:
        if num_deaths >= MAX_DEATHS_IN_A_ROW:
            raise RunFailed(
                f"{num_deaths} clips in a row killed their worker, the last one {ending}; this is not about the clips. "
                f"What was measured is kept; try fewer processes (--num-processes, now {self.num_processes})"
            )


def run_tasks(tasks: Sequence[Task], recipe: Recipe) -> Iterator[Outcome]:
    """Yield the outcome of each task, as they come, from workers that live as long as the loop.

    Raises:
        ValueError: the backend cannot be loaded.
        RunFailed: the workers cannot work.
    """
    with LocalWorkers(recipe) as workers:
        for outcomes in workers.run(plan_groups(tasks, recipe.audit)):
            yield from outcomes


def _ending(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    return f"its process ended with exit code {exit_code}"


def _work(pipe: Connection, recipe: Recipe, build: Builder) -> None:
    """Of a child: load the backend, say what it is, measure groups until there is no parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        aligner = build(recipe)
    except ValueError as error:
        pipe.send(Refused(str(error)))
        return
    pipe.send(describe(aligner))
    while True:
        try:
            group: list[Task] = pipe.recv()
        except EOFError:
            return
        pipe.send(measure_group(group, aligner, recipe))


def _end_with_parent() -> None:
    """A child whose parent was killed would go on to the end of its group."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for the children that start inside the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
