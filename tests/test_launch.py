"""`caspi launch` and the files of `cloud/`: price before start, secrets by name only, what cannot work is refused."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from caspi.cli import main
from caspi.ops.cloud_task import machines_of, problems, read_task

ROOT = Path(__file__).parents[1]
TASKS = sorted((ROOT / "cloud").glob("*.yaml"))
MIRROR = ("--mirror", "s3://bucket/run")
SECRET = "not-a-secret-of-anyone"


@pytest.fixture(autouse=True)
def no_secrets_and_no_manifest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def sky(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """A program of that name; returns what it was called with, after its value of HF_TOKEN."""
    program = tmp_path / "bin" / "sky"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$HF_TOKEN" "$@" > {tmp_path}/called\nexit ${{SKY_EXIT:-0}}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return lambda: (tmp_path / "called").read_text().splitlines() if (tmp_path / "called").exists() else []


@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
def test_every_task_file_has_cards_with_a_price_and_no_problem(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", str(path), *MIRROR, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["machines"]
    assert len(content["offers"]) == len(content["machines"])
    for offer in content["offers"]:
        assert offer["fits"]
        assert 0 < offer["usd"] < 50, "the default budget is enough"
    assert content["command"][-1] == str(path)
    assert content["task"]["secrets"] == {"HF_TOKEN": None}


def test_the_spot_task_is_a_managed_job_that_does_not_restart_what_is_an_answer() -> None:
    task = read_task(ROOT / "cloud" / "spot_recovering.yaml")
    assert task.is_managed
    assert all(one.is_spot for one in machines_of(task))
    assert task.resources.job_recovery["recover_on_exit_codes"] == [143]
    assert "max_restarts_on_errors" not in task.resources.job_recovery


def test_nothing_is_started_without_go_and_the_command_says_all(
    sky: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("WANDB_PROJECT", "hebrew")
    assert main(["launch", str(ROOT / "cloud/two_machines.yaml"), *MIRROR, "--max-budget", "40"]) == 0
    out = capsys.readouterr().out
    assert "2 machines of 1x H100-80GB on Lambda: $8.58/h" in out
    assert "sky launch --cluster caspi-round2 --detach-run --yes --secret HF_TOKEN --env WANDB_PROJECT=hebrew" in out
    assert "CASPI_MAX_BUDGET_USD=40" in out
    assert SECRET not in out
    assert sky() == []


def test_go_starts_sky_with_secrets_in_the_environment_only(
    sky: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    path = str(ROOT / "cloud/spot_recovering.yaml")
    assert main(["launch", path, *MIRROR, "--go", "--yes"]) == 0
    token, *arguments = sky()
    assert token == SECRET
    assert arguments[:2] == ["jobs", "launch"]
    assert not [argument for argument in arguments if SECRET in argument]
    assert [arguments[i + 1] for i, one in enumerate(arguments) if one == "--secret"] == [
        "HF_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
    ]
    assert SECRET not in capsys.readouterr().out
    monkeypatch.setenv("SKY_EXIT", "7")
    assert main(["launch", path, *MIRROR, "--go", "--yes"]) == 3


@pytest.mark.parametrize(
    ("flags", "token", "code", "says"),
    [
        ([*MIRROR, "--max-budget", "5"], SECRET, 1, "are predicted, the budget is $5.00"),
        ([], SECRET, 2, "give --mirror"),
        (MIRROR, "", 2, "HF_TOKEN is not set here"),
        ([*MIRROR, "--sky", "no-such-program"], SECRET, 2, "no-such-program is not there"),
        (["--mirror", "s3://a:b@bucket/x"], SECRET, 2, "holds credentials"),
    ],
)
def test_what_must_not_start_does_not(
    flags: list[str],
    token: str,
    code: int,
    says: str,
    sky: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    assert main(["launch", str(ROOT / "cloud/lambda_2x_a100_40gb.yaml"), "--go", "--yes", *flags]) == code
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert sky() == []


TASK = "run: x\nresources: {{infra: {infra}, accelerators: {cards}{more}}}\n{rest}"


@pytest.mark.parametrize(
    ("infra", "cards", "more", "rest", "says"),
    [
        ("lambda", "A100:2", ", use_spot: true, job_recovery: {}", "", "Lambda has no spot machines"),
        ("verda", "H100:1", ", use_spot: true", "", "needs a managed job"),
        ("runpod", "H200-SXM:1", "", "num_nodes: 2", "does not connect several machines"),
        ("runpod", "H200-SXM:1", "", "file_mounts: {/d: {source: s3://b}}", "cannot mount a bucket at /d"),
        ("lambda", "A100:2", "", "secrets: {HF_TOKEN: hf_x}", "secret HF_TOKEN has a value in the file"),
        ("lambda", "A100:2", "", "secrets: {A: null}\nenvs: {A: '1'}", "A is both in envs and in secrets"),
    ],
)
def test_what_sky_would_find_out_late_is_found_before(
    infra: str, cards: str, more: str, rest: str, says: str, tmp_path: Path
) -> None:
    path = tmp_path / "task.yaml"
    path.write_text(TASK.format(infra=infra, cards=cards, more=more, rest=rest))
    task = read_task(path)
    assert says in "; ".join(problems(task, machines_of(task)))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("run: [", "is not YAML"),
        ("run: x", "resources: Field required"),
        ("- x", "Input should be"),
        ("run: x\nresources: {infra: lambda, accelerators: TPU:4}", "expected a cloud and one of A100"),
        ("run: x\nresources: {accelerators: A100:2}", "expected a cloud"),
        ("run: x\nnum_nodes: 0\nresources: {}", "num_nodes"),
    ],
)
def test_a_file_that_is_no_task_is_one_clear_line(
    text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "task.yaml"
    path.write_text(text)
    assert main(["launch", str(path)]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert main(["launch", str(tmp_path / "missing.yaml")]) == 2


@pytest.fixture
def machine(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs cloud/train.sh where `caspi` only says how it was called."""
    for path in ("cloud", ".venv/bin", "data"):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / "cloud" / "train.sh").write_bytes((ROOT / "cloud" / "train.sh").read_bytes())
    (tmp_path / "data" / "manifest.jsonl").touch()
    program = tmp_path / ".venv" / "bin" / "caspi"
    program.write_text('#!/bin/sh\necho "caspi $*"\nenv | grep ^PET_ | sort\n')
    program.chmod(0o755)

    def run(**variables: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": "/usr/bin:/bin"} | variables
        command = ["bash", str(tmp_path / "cloud" / "train.sh")]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    return run


@pytest.mark.parametrize(("gpus", "accumulation"), [("1", 32), ("2", 16), ("8", 4)])
def test_the_effective_batch_is_64_on_any_number_of_cards(
    gpus: str, accumulation: int, machine: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = machine(SKYPILOT_NUM_NODES="1", SKYPILOT_NUM_GPUS_PER_NODE=gpus, CASPI_MIRROR="s3://b/r")
    assert 2 * accumulation * int(gpus) == 64
    expected = f"train --yes --batch-size 2 --gradient-accumulation-steps {accumulation} --mirror s3://b/r"
    assert done.stdout == f"caspi {expected}\n"
    assert machine(SKYPILOT_NUM_GPUS_PER_NODE="3").returncode == 2


def test_several_machines_get_the_variables_of_torchrun(
    machine: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    addresses = "10.0.0.1\n10.0.0.2"
    facts = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NODE_IPS": addresses}
    budget = {"CASPI_USD_PER_HOUR": "8.58", "CASPI_MAX_BUDGET_USD": "50", "CASPI_OUTPUT_DIR": "/mnt/caspi/run"}
    command, *variables = machine(SKYPILOT_NUM_GPUS_PER_NODE="1", **facts, **budget).stdout.splitlines()
    assert "--gradient-accumulation-steps 16 --output-dir /mnt/caspi/run --price 8.58 --max-budget 50" in command
    assert variables == ["PET_MASTER_ADDR=10.0.0.1", "PET_MASTER_PORT=29500", "PET_NNODES=2", "PET_NODE_RANK=1"]
