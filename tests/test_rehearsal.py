"""The rehearsal: it proves what it says, it notices what is lost, and the real one runs in the slow tests."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from caspi.ops.rehearsing import RUN, UNREACHABLE_KEY, Rehearsal, flip_a_bit, page
from caspi.records import RunFailed
from caspi.rehearsal import UNDISTURBED, compare_runs

FILES = ("model.safetensors", "checkpoint-8/model.safetensors", "checkpoint-8/optimizer.safetensors")


def write_run(folder: Path) -> None:
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode() * 100)
    lines = [{"step": step, "loss": 3.0 / step, "time": 7.0} for step in range(1, 9)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def rehearsed(tmp_path: Path) -> Rehearsal:
    """Two runs that are equal."""
    write_run(tmp_path / RUN)
    write_run(tmp_path / UNDISTURBED)
    return Rehearsal(tmp_path)


def test_equal_runs_are_told_with_their_proof(rehearsed: Rehearsal) -> None:
    compare_runs(rehearsed)
    assert [event.outcome for event in rehearsed.events] == [
        "equal: final model, weights and optimizer state of checkpoint-8, 8 losses",
        "in none of the files",
    ]
    assert "| the disturbed run against an undisturbed one | equal: final model" in page(rehearsed.events, 1.0)


@pytest.mark.parametrize("name", FILES)
def test_one_bit_that_differs_fails_the_rehearsal(name: str, rehearsed: Rehearsal) -> None:
    flip_a_bit(rehearsed.run_dir / name)
    with pytest.raises(RunFailed, match=name):
        compare_runs(rehearsed)


def test_a_lost_step_fails_the_rehearsal(rehearsed: Rehearsal) -> None:
    path = rehearsed.run_dir / "metrics.jsonl"
    path.write_text("".join(line for line in path.open() if '"step": 5' not in line))
    with pytest.raises(RunFailed, match="its losses differ"):
        compare_runs(rehearsed)


def test_a_key_in_any_file_fails_the_rehearsal(rehearsed: Rehearsal) -> None:
    (rehearsed.run_dir / "debug.log").write_text(f"key={UNREACHABLE_KEY}")
    with pytest.raises(RunFailed, match=r"debug\.log"):
        compare_runs(rehearsed)


def test_a_step_that_ends_otherwise_than_rehearsed_fails_with_its_last_lines(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="there is no audit report"):
        Rehearsal(tmp_path).caspi("gate", codes=(0,))


@pytest.mark.slow
@pytest.mark.espeak
@pytest.mark.timeout(3000)
def test_the_guides_timeline_with_everything_that_goes_wrong_loses_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "caspi", "demo", "--rehearse", "--output", "here"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "nothing lost" in done.stdout
    told = (tmp_path / "here" / "rehearsal" / "rehearsal.md").read_text(encoding="utf-8")
    for event in ("SIGTERM", "SIGKILL", "one bit of checkpoint", "W&B cannot be reached", "rollback to Round 1"):
        assert event in told
