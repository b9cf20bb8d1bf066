"""`caspi launch TASK`: what a task of `cloud/` will cost and the command that starts it; with `--go`, start it.

Secrets are passed by name: SkyPilot takes their values from the environment, so that they are in no file, in no
command and in no list of processes.

Exit code: 0 printed or started, 1 it would cost more than the budget or was not confirmed, 2 the task cannot work,
3 SkyPilot failed.
"""

import os
import shlex
import shutil
import subprocess
import sys
from typing import Any, NamedTuple

from caspi.config import Launch, Price, Recipe
from caspi.ops.cloud_task import Machines, Task, machines_of, problems, read_task
from caspi.ops.cost import find_price, price_table
from caspi.ops.mirroring.remote import check_address
from caspi.ops.offers import Offer, as_json
from caspi.plan import offer
from caspi.records import AnswerIsNo, ExitCode, RunFailed, dump_json

WITHOUT_MIRROR = "the machine is given back with its disk when the task ends: give --mirror, as s3://BUCKET/round2"


class Priced(NamedTuple):
    machines: Machines
    offer: Offer | None
    """None: no price is known."""


def run(recipe: Recipe) -> int:
    """Print, or start.

    Raises:
        AnswerIsNo: it would cost more than the budget, or was not confirmed.
        RunFailed: SkyPilot failed.
        ValueError: the task cannot work, or a secret is missing.
    """
    settings = recipe.launch
    task = read_task(settings.task)
    machines = machines_of(task)
    refuse(task, machines, settings)
    priced = [Priced(one, priced_offer(recipe, one)) for one in machines]
    command = sky_command(task, settings, priced)
    if settings.json_output and not settings.go:
        print(dump_json(content(task, priced, command), indent=2))
        return ExitCode.DONE
    show(task, priced, settings, command)
    if not settings.go:
        print("\nNothing was started; --go starts it.")
        return ExitCode.DONE
    start(command, priced, settings)
    return ExitCode.DONE


def refuse(task: Task, machines: list[Machines], settings: Launch) -> None:
    """
    Raises:
        ValueError: all that is wrong with the task, in one line.
    """
    found = list(dict.fromkeys(problems(task, machines)))
    if settings.mirror is not None:
        check_address(settings.mirror)
    if settings.go:
        found += [] if settings.mirror else [WITHOUT_MIRROR]
        needed = (*settings.required_secrets, *(name for name, value in task.secrets.items() if value is None))
        found += [f"{name} is not set here" for name in dict.fromkeys(needed) if not os.environ.get(name)]
    if found:
        raise ValueError(f"task {settings.task}: {'; '.join(found)}")


def priced_offer(recipe: Recipe, machines: Machines) -> Offer | None:
    """None: nobody has said what these machines cost."""
    given = recipe.launch.price
    if given is not None:
        facts = {"provider": machines.provider, "gpu": machines.card, "date": "today", "source": "--price"}
        price = Price(num_gpus=machines.num_gpus, is_spot=machines.is_spot, usd_per_hour=given, **facts)
        return offer(recipe, price.model_copy(update={"num_gpus": machines.num_gpus * machines.num_machines}))
    table = [price for price in price_table(recipe.plan.prices) if price.provider == machines.provider]
    try:
        one = find_price(machines.card, machines.num_gpus, table, machines.is_spot)
    except ValueError:
        return None
    all_of_them = {
        "num_gpus": machines.num_gpus * machines.num_machines,
        "usd_per_hour": one.usd_per_hour * machines.num_machines,
    }
    return offer(recipe, one.model_copy(update=all_of_them))


def sky_command(task: Task, settings: Launch, priced: list[Priced]) -> list[str]:
    """With the names of secrets, never their values."""
    command = [settings.sky, "jobs", "launch"] if task.is_managed else [settings.sky, "launch"]
    command += ["--name" if task.is_managed else "--cluster", settings.name, "--detach-run", "--yes"]
    names = (*settings.required_secrets, *task.secrets, *settings.optional_secrets)
    for name in dict.fromkeys(names):
        if name not in settings.optional_secrets or os.environ.get(name):
            command += ["--secret", name]
    for name, value in environment(settings, priced).items():
        command += ["--env", f"{name}={value}"]
    return [*command, str(settings.task)]


def environment(settings: Launch, priced: list[Priced]) -> dict[str, str]:
    """What `cloud/train.sh` reads, and what is passed on."""
    found = {name: os.environ[name] for name in settings.passed_on if os.environ.get(name)}
    prices = [one.offer.price.usd_per_hour for one in priced if one.offer]
    if settings.mirror:
        found["CASPI_MIRROR"] = settings.mirror
    if prices:
        found["CASPI_USD_PER_HOUR"] = f"{max(prices):g}"
    if settings.max_budget_usd is not None and prices:
        found["CASPI_MAX_BUDGET_USD"] = f"{settings.max_budget_usd:g}"
    return found


def show(task: Task, priced: list[Priced], settings: Launch, command: list[str]) -> None:
    kind = "managed job, started again when a machine is lost" if task.is_managed else "on demand"
    print(f"Task {settings.task}: {kind}, {task.num_nodes} machine(s)")
    for machines, found in priced:
        if found is None:
            print(f"  {machines.describe()}: no price is known, so there is no budget; give --price")
        elif found.usd is None:
            print(f"  {machines.describe()}: would never end at the assumed rate of interruptions")
        else:
            price = found.price
            cost = f"${price.usd_per_hour:.2f}/h, {found.hours:.1f} h predicted, ${found.usd:.2f}"
            fit = "" if found.fits else "; the model does not fit"
            print(f"  {machines.describe()}: {cost} ({price.provider} {price.date}, {price.source}){fit}")
    budget = settings.max_budget_usd
    print(f"Budget: {'none' if budget is None else f'${budget:.2f}, then the run saves and stops'}")
    print(f"Mirror: {settings.mirror or 'none; ' + WITHOUT_MIRROR}")
    print(f"\n{shlex.join(command)}")


def content(task: Task, priced: list[Priced], command: list[str]) -> dict[str, Any]:
    """An offer of None has no price."""
    return {
        "task": task.model_dump(),
        "machines": [one.machines._asdict() for one in priced],
        "offers": [as_json([one.offer])[0] if one.offer else None for one in priced],
        "command": command,
    }


def start(command: list[str], priced: list[Priced], settings: Launch) -> None:
    """
    Raises:
        AnswerIsNo: it would cost more than the budget, or was not confirmed.
        RunFailed: SkyPilot failed.
        ValueError: SkyPilot is not installed, or there is a budget and no price.
    """
    if shutil.which(command[0]) is None:
        raise ValueError(f"{command[0]} is not there: uv tool install 'skypilot[lambda,runpod,verda]', or give --sky")
    budget = settings.max_budget_usd
    if budget is not None:
        unknown = [one.machines.describe() for one in priced if one.offer is None]
        if unknown:
            raise ValueError(f"no price is known for {unknown[0]}, so --max-budget cannot be kept: give --price")
        dearest = max((one.offer.usd or float("inf") for one in priced if one.offer), default=0.0)
        if dearest > budget:
            raise AnswerIsNo(
                f"${dearest:.2f} are predicted, the budget is ${budget:.2f}: raise --max-budget, or see caspi plan"
            )
    if sys.stdin.isatty() and not settings.yes and input("Start it? (y/n): ").strip().lower() not in ("y", "yes"):
        raise AnswerIsNo("not confirmed; nothing was started")
    code = subprocess.run(command, check=False).returncode
    if code:
        raise RunFailed(f"{command[0]} ended with exit code {code}; what it says above is the reason")
