"""Checkpoints in object storage: committed ones only, the marker last, and a lost machine that costs nothing else."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from tiny_training import (
    NUM_STEPS,
    build_inputs,
    kill_before_step,
    train,
    train_in_child,
    train_in_children,
    weights_hash,
)

from caspi.ops.mirroring import mirror, process
from caspi.ops.mirroring.remote import Remote
from caspi.ops.training.artifacts import MARKER, commit, newest_checkpoint, rotate, withdraw

LAST = f"checkpoint-{NUM_STEPS}"
FACTS: dict[str, Any] = {
    "stage": "B",
    "trainable": [],
    "world_size": 1,
    "recipe": {},
    "data_sha256": "",
    "versions": {},
}
TOKEN = "hf_" + "a1B2" * 10


def make_checkpoint(run_folder: Path, step: int, best: int | None = None) -> Path:
    """With a file in a folder of its own, and a few bytes that are this step's."""
    folder = run_folder / f"checkpoint-{step}"
    (folder / "adapters").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(f"weights of step {step}".encode() * 1000)
    (folder / "adapters" / "a.json").write_text(str(step))
    (folder / "trainer_state.json").write_text(json.dumps({"best_global_step": best or step}))
    commit(folder, step=step, **FACTS)
    return folder


@pytest.fixture(params=["file", "memory"])
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> Remote:
    return Remote(f"file://{tmp_path}/bucket/run" if request.param == "file" else f"memory://{uuid4().hex}/run")


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text('{"paid_seconds": 5}')
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_comes_back_is_what_was_there(remote: Remote, run_folder: Path, tmp_path: Path) -> None:
    folder = make_checkpoint(run_folder, 3)
    process.push_all(remote, run_folder)
    fresh = tmp_path / "fresh"
    process.pull_all(remote, fresh, [3])
    assert contents(fresh / "checkpoint-3") == contents(folder)
    assert (fresh / "run.json").read_text() == '{"paid_seconds": 5}'
    assert not list(fresh.glob(".pulling*"))
    assert remote.push(folder) is False, "it is there already"


def test_only_committed_checkpoints_are_mirrored_and_what_is_gone_here_goes_there(
    remote: Remote, run_folder: Path
) -> None:
    for step in (3, 6, 9):
        make_checkpoint(run_folder, step)
    process.push_all(remote, run_folder)
    shutil.rmtree(run_folder / "checkpoint-3")
    withdraw(run_folder / "checkpoint-9")
    make_checkpoint(run_folder, 12)
    process.push_all(remote, run_folder)
    assert [marker.step for marker in remote.complete()] == [6, 12]
    assert remote.steps() == [6, 12]


def test_the_best_checkpoint_arrives_before_the_newest_and_comes_back_with_it(
    remote: Remote, run_folder: Path, tmp_path: Path
) -> None:
    for step in (3, 6, 9):
        make_checkpoint(run_folder, step, best=3)
    assert [folder.name for folder in process.in_order_of_need(run_folder)] == [
        "checkpoint-3",
        "checkpoint-9",
        "checkpoint-6",
    ]
    process.push_all(remote, run_folder)
    process.pull_all(remote, tmp_path / "fresh", [9, 6, 3])
    assert sorted(path.name for path in (tmp_path / "fresh").glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-9"]


def test_a_checkpoint_that_was_written_again_is_mirrored_again(remote: Remote, run_folder: Path) -> None:
    make_checkpoint(run_folder, 3)
    process.push_all(remote, run_folder)
    shutil.rmtree(run_folder / "checkpoint-3")
    folder = make_checkpoint(run_folder, 3, best=2)
    process.push_all(remote, run_folder)
    assert remote.marker_bytes(3) == (folder / MARKER).read_bytes()


def test_a_damaged_mirror_is_not_used_and_the_older_checkpoint_is(
    remote: Remote, run_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (3, 6):
        make_checkpoint(run_folder, step)
    process.push_all(remote, run_folder)
    remote.files.pipe_file(remote.path("checkpoint-6", "model.safetensors"), b"weights of step 7" * 1000)
    caplog.set_level("INFO")
    process.pull_all(remote, tmp_path / "fresh", [6, 3])
    newest, _ = newest_checkpoint(tmp_path / "fresh")
    assert newest is not None
    assert newest.marker.step == 3
    assert "model.safetensors is not as it was written: its SHA-256 differs" in caplog.text
    with pytest.raises(ValueError, match="SHA-256 differs"):
        process.pull_all(remote, tmp_path / "fresh2", [6])


@pytest.mark.parametrize("content", [b"", b"{", b'{"step": 3}', b"\xff\xfe"])
def test_a_torn_marker_is_no_marker(content: bytes, remote: Remote, run_folder: Path) -> None:
    make_checkpoint(run_folder, 3)
    process.push_all(remote, run_folder)
    remote.files.pipe_file(remote.path("checkpoint-3", MARKER), content)
    assert (remote.steps(), remote.complete()) == ([3], [])


@pytest.mark.parametrize("name", ["../../evil", "/etc/evil", "a/../../evil", "..\\evil"])
def test_a_mirror_cannot_write_outside_of_the_checkpoint(
    name: str, remote: Remote, run_folder: Path, tmp_path: Path
) -> None:
    folder = make_checkpoint(run_folder, 3)
    marker = json.loads((folder / MARKER).read_text())
    marker["files"][name] = {"num_bytes": 1, "sha256": "0" * 64}
    remote.files.pipe_file(remote.path("checkpoint-3", MARKER), json.dumps(marker).encode())
    with pytest.raises(ValueError, match="not inside of it"):
        remote.pull(3, tmp_path / "fresh", print)
    assert not list(tmp_path.rglob("evil"))


def test_secrets_are_not_mirrored(remote: Remote, run_folder: Path) -> None:
    folder = make_checkpoint(run_folder, 3)
    withdraw(folder)
    (folder / "trainer_state.json").write_text(json.dumps({"token": TOKEN}))
    commit(folder, step=3, **FACTS)
    with pytest.raises(
        ValueError, match=r"trainer_state\.json holds a Hugging Face token: it is not mirrored"
    ) as caught:
        process.push_all(remote, run_folder)
    assert TOKEN not in str(caught.value)
    assert remote.complete() == []


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("s3://key:secret@bucket/run", "credentials"),
        ("hf://owner/name", "hf://buckets/OWNER/NAME"),
        ("nonsense://x", "nonsense"),
    ],
)
def test_an_address_that_does_not_suit_is_refused_in_one_line(url: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        Remote(url)
    assert "secret@" not in str(caught.value)


def test_a_protocol_without_its_library_says_what_to_install() -> None:
    with pytest.raises(ValueError, match="adlfs"):
        Remote("abfs://container/run")


def test_a_kill_in_the_middle_leaves_a_mirror_that_the_next_start_ignores(run_folder: Path, tmp_path: Path) -> None:
    make_checkpoint(run_folder, 3)
    url = f"file://{tmp_path}/bucket"
    process.push_all(Remote(url), run_folder)
    make_checkpoint(run_folder, 6)
    child = os.fork()
    if child == 0:
        original = Remote.put

        def put(self: Remote, source: Path, target: str, num_bytes: int) -> None:
            original(self, source, target, num_bytes)
            os.kill(os.getpid(), signal.SIGKILL)

        Remote.put = put  # type: ignore[method-assign]
        process.main(["push", url, str(run_folder)])
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    remote = Remote(url)
    assert (remote.steps(), [marker.step for marker in remote.complete()]) == ([3, 6], [3])
    process.pull_all(remote, tmp_path / "fresh", [3])
    process.push_all(remote, run_folder)
    assert [marker.step for marker in remote.complete()] == [3, 6]


def test_the_process_fails_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    command = mirror.copying("list", f"file://{tmp_path}/file/run", tmp_path)
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith(("NotADirectoryError", "FileExistsError"))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_inputs(tmp_path_factory.mktemp("inputs"))


def let_copies_fail() -> None:
    """What pushes fails as storage does; what lists works."""
    original = mirror.copying

    def copying(command: str, url: str, folder: Path, *steps: int) -> list[str]:
        failing = [sys.executable, "-c", "raise OSError('no room left in the bucket')"]
        return failing if command == "push" else original(command, url, folder, *steps)

    mirror.copying = copying


@pytest.fixture(scope="module")
def unmirrored(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run whose copies all fail."""
    output = tmp_path_factory.mktemp("unmirrored")
    assert train_in_child(recipe, output, "--mirror", str(output / "mirror"), prepare=let_copies_fail) == 0
    return output


def test_a_mirror_that_fails_is_one_alert_and_training_goes_on(unmirrored: Path) -> None:
    lines = (unmirrored / "metrics.jsonl").read_text().splitlines()
    (alert,) = [json.loads(line) for line in lines if '"MIRROR_FAILED"' in line]
    assert "OSError: no room left in the bucket; tried again" in alert["message"]
    log = (unmirrored / "training.log").read_text()
    assert "the newest checkpoint is on this machine only" in log
    assert "Training completed!" in log


def test_a_lost_machine_goes_on_elsewhere_with_the_same_command_to_the_same_bits(
    recipe: Path, unmirrored: Path, tmp_path: Path
) -> None:
    flags = ("--mirror", f"file://{tmp_path}/bucket", "--save-total-limit", "2")
    first, second = tmp_path / "first", tmp_path / "second"
    assert train_in_child(recipe, first, *flags, prepare=kill_after_copying) == -signal.SIGKILL
    starts = json.loads((first / "run.json").read_text())["starts"]
    shutil.rmtree(first)

    assert train_in_child(recipe, second, *flags) == 0
    assert "Fetching checkpoint-6 from" in (second / "training.log").read_text()
    assert weights_hash(second) == weights_hash(unmirrored)
    assert weights_hash(second / LAST) == weights_hash(unmirrored / LAST)
    record = json.loads((second / "run.json").read_text())
    assert record["starts"][:-1] == starts
    steps = [
        json.loads(line)["step"] for line in (second / "metrics.jsonl").read_text().splitlines() if '"loss"' in line
    ]
    assert steps == list(range(1, NUM_STEPS + 1))
    remote = Remote(flags[1])
    kept = sorted(int(path.name.split("-")[1]) for path in second.glob("checkpoint-*"))
    assert [marker.step for marker in remote.complete()] == remote.steps() == kept
    assert "✓ Everything is in file://" in (second / "training.log").read_text()


def kill_after_copying() -> None:
    """Before step 7; each copy is given the time that a longer run has."""
    kill_before_step(7)
    original = mirror.Mirror.on_step_end

    def on_step_end(self: mirror.Mirror, *arguments: Any, **more: Any) -> None:
        if self.process is not None:
            self.process.wait()
        original(self, *arguments, **more)

    mirror.Mirror.on_step_end = on_step_end  # type: ignore[method-assign]


def test_the_mirror_of_another_run_is_refused_before_it_is_fetched(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "other"
    make_checkpoint(folder, 3)
    process.push_all(Remote(str(tmp_path / "bucket")), folder)
    assert train(recipe, tmp_path / "run", "--mirror", str(tmp_path / "bucket")) == 2
    assert "was made with another recipe" in capsys.readouterr().err
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_a_mirror_that_cannot_be_written_stops_the_run_before_it_costs(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    assert train(recipe, tmp_path / "run", "--mirror", str(tmp_path / "file" / "bucket")) == 3
    assert "the mirror cannot be used: " in capsys.readouterr().err


def test_what_is_being_copied_stays_and_nothing_newer_goes_instead(run_folder: Path) -> None:
    for step in (3, 4, 6, 8):
        make_checkpoint(run_folder, step, best=4)
    assert mirror.needed_steps(run_folder) == {4, 8}
    assert rotate(run_folder, 2, frozenset({8}), in_use=frozenset({3})) == [run_folder / "checkpoint-4"]
    assert [folder.name for folder in rotate(run_folder, 2, frozenset({8}))] == ["checkpoint-3"]


@pytest.mark.slow
def test_two_processes_wait_for_the_one_that_fetches_and_end_with_the_same_bits(recipe: Path, tmp_path: Path) -> None:
    flags = ("--batch-size", "1", "--gradient-accumulation-steps", "3", "--mirror", f"file://{tmp_path}/bucket")
    assert train_in_children(recipe, tmp_path / "first", *flags) == [0, 0]
    expected = weights_hash(tmp_path / "first")
    shutil.rmtree(tmp_path / "first")
    assert Remote(flags[-1]).complete()[-1].step == NUM_STEPS
    Remote(flags[-1]).delete(NUM_STEPS)
    assert train_in_children(recipe, tmp_path / "second", *flags) == [0, 0]
    assert "Fetching checkpoint-6" in (tmp_path / "second" / "training.log").read_text()
    assert weights_hash(tmp_path / "second") == expected
