"""The task files before the real SkyPilot, offline, in an environment of its own; docs/results/cloud.md has a run."""

import csv
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from other_environments import environment_with

from caspi.cli import main
from caspi.config import PRICES
from caspi.ops.cloud_task import CARDS, PROVIDERS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

SKYPILOT = "skypilot[lambda,runpod]==0.14.1"
TASKS = sorted((Path(__file__).parents[1] / "cloud").glob("*.yaml"))
COLUMNS = ["InstanceType", "UpstreamCloudId", "AcceleratorName", "AcceleratorCount", "vCPUs", "MemoryGiB"]
COLUMNS += ["Region", "AvailabilityZone", "Price", "SpotPrice", "GpuInfo"]
ASK = """
import json, sys
import sky
from sky.clouds import CloudImplementationFeatures as Feature

def machines(task):
    for resources in task.resources:
        features = resources.get_required_cloud_features()
        features |= {Feature.MULTI_NODE} if task.num_nodes > 1 else set()
        features |= {Feature.AUTODOWN} if resources.autostop_config and resources.autostop_config.enabled else set()
        type(resources.cloud).check_features_are_supported(resources, features)
        found = resources.cloud.get_feasible_launchable_resources(resources, task.num_nodes).resources_list
        yield str(resources.cloud), resources.use_spot, min(one.get_cost(3600) for one in found) * task.num_nodes

answers = {}
for path in sys.argv[1:]:
    try:
        task = sky.Task.from_yaml(path)
        task.validate()
        answers[path] = {"machines": sorted(machines(task)), "problem": None}
    except Exception as error:
        answers[path] = {"machines": [], "problem": f"{type(error).__name__}: {error}"}
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Catalogs of the prices that we know, where SkyPilot would put those that it fetches."""
    home = tmp_path_factory.mktemp("home")
    catalogs = home / ".sky" / "catalogs" / "v8"
    sky_names = {ours: name for name, ours in reversed(CARDS.items())} | {"H200-141GB": "H200-SXM"}
    for cloud, provider in PROVIDERS.items():
        rows: dict[tuple[str, int], dict[str, Any]] = {}
        for price in PRICES:
            if price.provider == provider:
                name, count = sky_names[price.gpu], price.num_gpus
                kind = f"{count}x_{name}_SECURE"
                empty = {"InstanceType": kind, "UpstreamCloudId": kind, "AcceleratorName": name, "Region": "US"}
                sizes = {"AcceleratorCount": count, "vCPUs": 16, "MemoryGiB": 200, "AvailabilityZone": "US-1"}
                row = rows.setdefault((name, count), empty | sizes)
                row["SpotPrice" if price.is_spot else "Price"] = price.usd_per_hour
        write_csv(catalogs / cloud / "vms.csv", COLUMNS, list(rows.values()))
    cards = [{"AcceleratorName": name, "Clouds": "[]"} for name in CARDS]
    write_csv(catalogs / "common" / "accelerators.csv", ["AcceleratorName", "Clouds"], cards)
    write_csv(catalogs / "common" / "metadata.csv", ["GPU", "MemoryGB", "Manufacturer"], [])
    return home


def write_csv(path: Path, columns: list[str], rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def ask_sky(home: Path, *paths: Path) -> dict[str, dict[str, Any]]:
    python = environment_with("sky", SKYPILOT) / "python"
    environment = os.environ | {"HOME": str(home), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
    command = [str(python), "-c", ASK, *map(str, paths)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answers: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return answers


def test_sky_accepts_every_task_and_finds_the_machines_at_our_price(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = ask_sky(home, *TASKS)
    monkeypatch.chdir(tmp_path)
    for path in TASKS:
        answer = answers[str(path)]
        assert answer["problem"] is None, path
        assert main(["launch", str(path), "--json"]) == 0
        ours = json.loads(capsys.readouterr().out)
        expected = [
            [PROVIDERS[machine["cloud"]], machine["is_spot"], pytest.approx(offer["price"]["usd_per_hour"])]
            for machine, offer in zip(ours["machines"], ours["offers"], strict=True)
        ]
        assert sorted(answer["machines"]) == sorted(expected, key=lambda one: [*one[:2], float(one[2].expected)]), path


CHANGES: dict[str, dict[str, Any]] = {
    "spot on Lambda": {"resources": {"infra": "lambda", "accelerators": "A100:2", "use_spot": True}},
    "several machines of RunPod": {"resources": {"infra": "runpod", "accelerators": "A100-80GB:2"}, "num_nodes": 2},
    "several machines of Verda": {"resources": {"infra": "verda", "accelerators": "H100:1"}, "num_nodes": 2},
    "a misspelt key": {"resource": {}},
    "a recovery that does not exist": {"resources": {"infra": "lambda", "job_recovery": {"strategy": "PRAY"}}},
    "an exit code beyond 255": {"resources": {"job_recovery": {"recover_on_exit_codes": [300]}}},
    "a cloud that does not exist": {"resources": {"infra": "nimbus"}},
}


def test_sky_refuses_what_we_say_that_it_refuses(home: Path, tmp_path: Path) -> None:
    base = yaml.safe_load(TASKS[0].read_text(encoding="utf-8")) | {"workdir": str(tmp_path)}
    paths = {}
    for index, (name, change) in enumerate(CHANGES.items()):
        paths[name] = tmp_path / f"{index}.yaml"
        paths[name].write_text(yaml.safe_dump(base | change))
    answers = ask_sky(home, *paths.values())
    for name, path in paths.items():
        print(f"{name}: {answers[str(path)]['problem']}")  # pytest -s shows it
    assert [name for name, path in paths.items() if answers[str(path)]["problem"] is None] == []
