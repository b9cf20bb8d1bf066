"""The battery over a Ray cluster, for corpora that outgrow one machine.

Ray Data hands each group of clips to one of its actors, and each actor runs a `LocalWorkers` of one process on its
node: a clip that crashes or hangs is counted exactly as on one machine, and a node that is lost has its groups done
again by the others. Every node must see the audio files under the same paths.
"""

import json
import logging
import os
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self

from caspi.config import Recipe
from caspi.model.aligners import MODEL_BACKENDS, Description, build_aligner
from caspi.model.aligners.battery import MAX_MODEL_PROCESSES, Task
from caspi.model.aligners.outcome_record import outcome_json, outcome_of
from caspi.model.aligners.workers import Builder, LocalWorkers
from caspi.records import RunFailed, dump_json
from caspi.speech.alignment.controls import PlannedPair
from caspi.speech.alignment.quality import Outcome

MAX_MESSAGE_CHARACTERS = 500


class GroupAligner:
    """On a node: one local worker process, called by Ray Data with one group at a time."""

    def __init__(self, recipe_json: str, build: Builder) -> None:
        self.workers = node_workers(recipe_json, build)
        self.workers.__enter__()

    def __call__(self, row: dict[str, str]) -> dict[str, str]:
        outcomes = [outcome for part in self.workers.run([tasks_of(row["group"])]) for outcome in part]
        return {"outcomes": dump_json([[o.id, o.is_crash, outcome_json(o)] for o in outcomes])}


def node_workers(recipe_json: str, build: Builder) -> LocalWorkers:
    recipe = Recipe.model_validate_json(recipe_json)
    audit = recipe.audit.model_copy(update={"num_processes": 1, "engine": "local"})
    return LocalWorkers(recipe.model_copy(update={"audit": audit}), build)


def description_or_refusal(recipe_json: str, build: Builder) -> Description | str:
    """Load the backend on some node once, so that what cannot be loaded is said before anything is planned."""
    try:
        with node_workers(recipe_json, build) as workers:
            return workers.model
    except ValueError as error:
        return str(error)


class RayWorkers:
    """Actors of a Ray cluster; see `Workers`. Without an address a cluster of this machine alone is started."""

    def __init__(self, recipe: Recipe, build: Builder = build_aligner) -> None:
        """
        Raises:
            ValueError: Ray Data is not installed.
        """
        self.recipe_json, self.build = recipe.model_dump_json(), build
        self.settings = recipe.audit
        self.description: Description | None = None
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        if self.settings.ray_address is None:
            # Read when ray is imported: a cluster of one machine then listens on the loopback interface only.
            os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        try:
            import ray.data
        except ModuleNotFoundError as error:
            raise ValueError(
                f"--engine ray needs Ray Data, which is not installed ({error}): install the extra `ray` "
                "(uv sync --extra ray, or pip install 'caspi[ray]'), or use --engine local"
            ) from None
        self.ray = ray

    def __enter__(self) -> Self:
        address = self.settings.ray_address
        options: dict[str, Any] = {"address": address or "local", "log_to_driver": False}
        if address is None:
            options["include_dashboard"] = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        try:
            self.ray.init(logging_level=logging.ERROR, **options)
            self.description = self._describe()
        except ConnectionError as error:
            raise ValueError(f"audit.ray_address {address}: {' '.join(str(error).split())}") from None
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.ray.shutdown()

    @property
    def model(self) -> Description:
        assert self.description is not None, "the workers have not been entered"
        return self.description

    def run(self, groups: Sequence[Sequence[Task]]) -> Iterator[list[Outcome]]:
        if not groups:
            return
        context = self.ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        rows = [{"group": group_json(group)} for group in groups]
        num_actors = min(self.num_actors(), len(rows))
        dataset = self.ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            GroupAligner,  # type: ignore[arg-type]  # a class is made once per actor, and then called
            fn_constructor_args=(self.recipe_json, self.build),
            compute=self.ray.data.ActorPoolStrategy(size=num_actors),
            num_cpus=1,
            num_gpus=self.gpus_per_actor(),
        )
        try:
            for row in dataset.iter_rows():
                yield [
                    outcome_of(id_, value)._replace(is_crash=is_crash)
                    for id_, is_crash, value in json.loads(row["outcomes"])
                ]
        except self.ray.exceptions.RayError as error:
            raise RunFailed(f"the Ray cluster could not finish: {first_words(error)}") from error

    def gpus_per_actor(self) -> int:
        has_gpu = self.ray.cluster_resources().get("GPU", 0) >= 1
        return 1 if has_gpu and self.settings.backend in MODEL_BACKENDS else 0

    def num_actors(self) -> int:
        """`num_processes`, else one per GPU, or one per core; few per node where each holds weights."""
        if self.settings.num_processes:
            return self.settings.num_processes
        resources = self.ray.cluster_resources()
        if self.gpus_per_actor():
            return int(resources["GPU"])
        cores = max(1, int(resources.get("CPU", 1)))
        if self.settings.backend not in MODEL_BACKENDS:
            return cores
        return min(cores, MAX_MODEL_PROCESSES * len(self.ray.nodes()))

    def _describe(self) -> Description:
        load = self.ray.remote(description_or_refusal).options(num_cpus=1, num_gpus=self.gpus_per_actor())
        try:
            answer: Description | str = self.ray.get(load.remote(self.recipe_json, self.build))
        except self.ray.exceptions.RayError as error:
            raise RunFailed(f"the Ray cluster cannot load the backend: {first_words(error)}") from error
        if isinstance(answer, str):
            raise ValueError(answer)
        return answer


def first_words(error: Exception) -> str:
    """Ray's messages hold whole traces of other machines."""
    return " ".join(str(error).split())[:MAX_MESSAGE_CHARACTERS]


def group_json(tasks: Sequence[Task]) -> str:
    return dump_json([task._asdict() for task in tasks])


def tasks_of(text: str) -> list[Task]:
    """The tasks that `group_json` wrote."""
    tasks = []
    for value in json.loads(text):
        planned = tuple(PlannedPair(control, tuple(words), *rest) for control, words, *rest in value["planned"])
        tasks.append(Task(**(value | {"planned": planned, "spoken": tuple(value["spoken"])})))
    return tasks
