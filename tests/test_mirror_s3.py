"""Mirroring to a real S3 server (PyPI's moto, in an environment of its own) by the programs that users run."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from other_environments import environment_with
from test_mirror import FACTS, contents, make_checkpoint
from tiny_training import build_inputs, train_in_child, weights_hash

from caspi.ops.mirroring import mirror
from caspi.ops.mirroring.remote import Remote
from caspi.ops.release.server import free_port
from caspi.ops.training.artifacts import commit

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

MOTO = "moto[server,s3]==5.2.5"
MANY_PARTS = 40_000_000
"""Bytes of a file that goes in several parts."""


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The server's address; its variables are set, and it holds the bucket `runs`."""
    port = free_port()
    program = environment_with("moto", MOTO) / "moto_server"
    log = (tmp_path_factory.mktemp("moto") / "log").open("w")
    server = subprocess.Popen([str(program), "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    variables = {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "access",
        "AWS_SECRET_ACCESS_KEY": "not-a-secret-of-anyone",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        for _ in range(100):
            try:
                httpx2.put(f"{address}/runs", timeout=5.0).raise_for_status()
                break
            except httpx2.HTTPError:
                time.sleep(0.3)
        yield address
    server.kill()
    server.wait()


def copy(command: str, url: str, folder: Path, *steps: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(mirror.copying(command, url, folder, *steps), capture_output=True, text=True, env=os.environ)


def test_a_large_checkpoint_comes_back_from_s3_and_a_killed_copy_does_not_count(s3: str, tmp_path: Path) -> None:
    run, url = tmp_path / "run", "s3://runs/large/run"
    folder = make_checkpoint(run, 3)
    (folder / "model.safetensors").write_bytes(os.urandom(MANY_PARTS))
    commit(folder, step=3, **FACTS)
    assert copy("push", url, run).returncode == 0
    process = subprocess.Popen(mirror.copying("push", url, broken_off(run, 6)))
    while Remote(url).steps() != [3, 6]:
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    found = json.loads(copy("list", url, run).stdout)
    assert found["steps"] == [3, 6]
    assert [marker["step"] for marker in found["markers"]] == [3]
    assert copy("pull", url, tmp_path / "fresh", 3).returncode == 0
    assert contents(tmp_path / "fresh" / "checkpoint-3") == contents(folder)


def broken_off(run: Path, step: int) -> Path:
    """A run with a newer checkpoint that takes seconds to copy."""
    folder = make_checkpoint(run, step)
    for number in range(8):
        (folder / f"shard{number}.safetensors").write_bytes(os.urandom(MANY_PARTS))
    commit(folder, step=step, **FACTS)
    return run


def test_a_bucket_that_does_not_exist_is_one_line(s3: str, tmp_path: Path) -> None:
    done = copy("list", "s3://no-such-bucket/run", tmp_path)
    assert done.returncode == 1
    assert "NO_SUCH_BUCKET" in done.stderr.strip().splitlines()[-1]


def test_training_goes_on_from_s3_on_a_fresh_machine(s3: str, tmp_path: Path) -> None:
    recipe = build_inputs(tmp_path)
    flags = ("--mirror", "s3://runs/training")
    assert train_in_child(recipe, tmp_path / "first", *flags) == 0
    expected = weights_hash(tmp_path / "first")
    shutil.rmtree(tmp_path / "first")
    assert train_in_child(recipe, tmp_path / "second", *flags) == 0
    assert "Fetching checkpoint-8 from s3://runs/training" in (tmp_path / "second" / "training.log").read_text()
    assert weights_hash(tmp_path / "second") == expected
    for path in (tmp_path / "second").glob("*.*"):
        assert b"not-a-secret-of-anyone" not in path.read_bytes(), path
