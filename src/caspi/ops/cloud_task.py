"""SkyPilot's task files as far as we must understand them: which cards, on which cloud, and what cannot work there.

SkyPilot's own schema accepts a spot machine on a cloud that has none, an unknown card and a secret in the file; it
finds out later, or never.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from caspi.config import one_line
from caspi.files import read_text

CARDS = {
    "A100": "A100-40GB",
    "A100-80GB": "A100-80GB",
    "A100-80GB-SXM": "A100-80GB",
    "H100": "H100-80GB",
    "H100-SXM": "H100-80GB",
    "H200": "H200-141GB",
    "H200-SXM": "H200-141GB",
    "L40S": "L40S-48GB",
}
"""SkyPilot's names and those of `ops.cost.GPUS`."""
PROVIDERS = {"lambda": "Lambda", "runpod": "RunPod", "verda": "Verda"}
WITHOUT_SPOT = frozenset({"lambda"})
WITHOUT_MOUNTS = frozenset({"runpod", "verda"})
WITHOUT_MULTI_NODE = frozenset({"runpod", "verda"})
"""What SkyPilot 0.14.1 says of these clouds (tests/test_cloud_sky.py asks it)."""


class Part(BaseModel):
    """What is not needed here may be there."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Resources(Part):
    infra: str | None = None
    accelerators: str | None = None
    use_spot: bool | None = None
    job_recovery: Any = None
    any_of: list["Resources"] = []


class Task(Part):
    name: str | None = None
    num_nodes: int = Field(default=1, ge=1)
    resources: Resources
    envs: dict[str, str | int | float | None] = {}
    secrets: dict[str, str | None] = {}
    file_mounts: dict[str, Any] = {}
    run: str

    @property
    def is_managed(self) -> bool:
        """SkyPilot starts a managed job again on another machine when one is lost."""
        return self.resources.job_recovery is not None


class Machines(NamedTuple):
    """One of the kinds of machines that a task may run on."""

    cloud: str
    card: str
    """As in `ops.cost.GPUS`."""
    num_gpus: int
    """Of each machine."""
    num_machines: int
    is_spot: bool

    @property
    def provider(self) -> str:
        return PROVIDERS.get(self.cloud, self.cloud)

    def describe(self) -> str:
        several = f"{self.num_machines} machines of " if self.num_machines > 1 else ""
        return f"{several}{self.num_gpus}x {self.card} on {self.provider}{', spot' if self.is_spot else ''}"


def read_task(path: Path) -> Task:
    """
    Raises:
        ValueError: the file is missing or no task.
    """
    try:
        return Task.model_validate(yaml.safe_load(read_text(path)))
    except FileNotFoundError:
        raise ValueError(f"task {path} does not exist; caspi's own are in cloud/") from None
    except yaml.YAMLError as error:
        raise ValueError(f"task {path} is not YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        raise ValueError(f"task {path}: {one_line(error)}") from None


def machines_of(task: Task) -> list[Machines]:
    """
    Raises:
        ValueError: a cloud or card is missing or unknown.
    """
    outer = task.resources
    wanted = [inner.model_copy(update=missing(inner, outer)) for inner in outer.any_of] or [outer]
    return [machine(resources, task.num_nodes) for resources in wanted]


def missing(inner: Resources, outer: Resources) -> dict[str, Any]:
    names = ("infra", "accelerators", "use_spot")
    return {name: getattr(outer, name) for name in names if getattr(inner, name) is None}


def machine(resources: Resources, num_nodes: int) -> Machines:
    cloud = (resources.infra or "").split("/")[0].lower()
    name, _, count = (resources.accelerators or "").partition(":")
    if not cloud or name not in CARDS or not (count or "1").isdecimal():
        raise ValueError(
            f"resources: infra {resources.infra!r}, accelerators {resources.accelerators!r}: expected a cloud and one "
            f"of {', '.join(CARDS)} with a number, for example A100:2"
        )
    return Machines(cloud, CARDS[name], int(count or 1), num_nodes, bool(resources.use_spot))


def problems(task: Task, machines: list[Machines]) -> Iterator[str]:
    """Why the task cannot work or is not safe, one line each."""
    for name, value in task.secrets.items():
        if value is not None:
            yield f"secret {name} has a value in the file: write `{name}: null`, the value comes from the environment"
    for name in task.envs.keys() & task.secrets.keys():
        yield f"{name} is both in envs and in secrets"
    mounts = [target for target, source in task.file_mounts.items() if is_mounted(source)]
    for one in machines:
        if one.is_spot and one.cloud in WITHOUT_SPOT:
            yield f"{one.provider} has no spot machines"
        if one.is_spot and not task.is_managed:
            yield "a spot machine needs a managed job: add resources.job_recovery"
        if mounts and one.cloud in WITHOUT_MOUNTS:
            yield f"{one.provider} cannot mount a bucket at {mounts[0]}: use mode: COPY"
        if task.num_nodes > 1 and one.cloud in WITHOUT_MULTI_NODE:
            yield f"{one.provider} does not connect several machines"


def is_mounted(source: Any) -> bool:
    return isinstance(source, dict) and str(source.get("mode", "MOUNT")).upper() != "COPY"
