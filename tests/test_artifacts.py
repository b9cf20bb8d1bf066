"""A checkpoint counts only when all of it is there."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from caspi.ops.training.artifacts import (
    MARKER,
    checkpoint_folders,
    commit,
    differing_keys,
    newest_checkpoint,
    read_marker,
    rotate,
    set_aside,
    withdraw,
)


def write_checkpoint(run_folder: Path, step: int) -> Path:
    folder = run_folder / f"checkpoint-{step}"
    (folder / "deep").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 8)
    (folder / "deep" / "state.json").write_text(json.dumps({"step": step}))
    commit(
        folder,
        step=step,
        stage="B",
        trainable=["a.weight"],
        world_size=1,
        recipe={"seed": 1},
        data_sha256="d",
        versions={},
    )
    return folder


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda c: (c / "model.safetensors").write_bytes(b"x" * 100), "has 100 bytes instead of 2048"),
    "longer": (lambda c: (c / "model.safetensors").open("ab").write(b"x"), "has 2049 bytes instead of 2048"),
    "empty": (lambda c: (c / "model.safetensors").write_bytes(b""), "has 0 bytes instead of 2048"),
    "bit flipped": (lambda c: flip_a_bit(c / "model.safetensors"), "SHA-256 differs"),
    "bit flipped below": (lambda c: flip_a_bit(c / "deep" / "state.json"), "SHA-256 differs"),
    "missing": (lambda c: (c / "model.safetensors").unlink(), "model.safetensors is missing"),
    "no marker": (lambda c: (c / MARKER).unlink(), "saving was interrupted"),
    "empty marker": (lambda c: (c / MARKER).write_bytes(b""), "COMPLETE.json is damaged"),
    "half a marker": (lambda c: (c / MARKER).write_bytes((c / MARKER).read_bytes()[:99]), "COMPLETE.json is damaged"),
    "marker of something else": (lambda c: (c / MARKER).write_text('{"step": 8}'), "COMPLETE.json is damaged"),
    "binary marker": (lambda c: (c / MARKER).write_bytes(b"\xff\xfe\x00"), "COMPLETE.json is damaged"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_moved_aside_and_the_one_before_is_used(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_checkpoint(tmp_path, 4)
    newest = write_checkpoint(tmp_path, 10)
    spoil, message = DAMAGES[damage]
    spoil(newest)
    found, torn = newest_checkpoint(tmp_path)
    assert found is not None
    assert found.marker.step == 4
    assert [item.folder for item in torn] == [newest]
    assert message in torn[0].problem
    with caplog.at_level(logging.WARNING, "caspi"):
        set_aside(torn)
    assert "checkpoint-10 cannot be used" in caplog.text
    assert not newest.exists()
    assert (tmp_path / "torn-10").is_dir()


def test_a_whole_checkpoint_is_used_and_describes_itself(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, 4)
    marker = read_marker(folder)
    assert (marker.step, marker.stage, marker.trainable) == (4, "B", ["a.weight"])
    assert marker.files.keys() == {"model.safetensors", "deep/state.json"}
    assert newest_checkpoint(tmp_path)[1] == []


def test_the_newest_is_the_highest_step_whatever_the_times_say(tmp_path: Path) -> None:
    for step in (10, 9, 100):
        write_checkpoint(tmp_path, step)
    assert [folder.name for folder in checkpoint_folders(tmp_path)] == [
        "checkpoint-9",
        "checkpoint-10",
        "checkpoint-100",
    ]
    found, _ = newest_checkpoint(tmp_path)
    assert found is not None
    assert found.marker.step == 100


def test_an_empty_or_missing_folder_has_no_checkpoint(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) == (None, [])
    assert newest_checkpoint(tmp_path / "absent") == (None, [])


def test_a_second_torn_checkpoint_of_a_step_does_not_replace_the_first(tmp_path: Path) -> None:
    for _ in range(2):
        withdraw(write_checkpoint(tmp_path, 4))
        set_aside(newest_checkpoint(tmp_path)[1])
    assert {path.name for path in tmp_path.iterdir()} == {"torn-4", "torn-4-2"}


def test_rotation_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 5):
        write_checkpoint(tmp_path, step)
    deleted = rotate(tmp_path, 3, frozenset({1}))
    assert [path.name for path in deleted] == ["checkpoint-2", "checkpoint-3"]
    assert [path.name for path in checkpoint_folders(tmp_path)] == ["checkpoint-1", "checkpoint-4", "checkpoint-5"]


def test_rotation_never_deletes_the_newest_or_the_best_whatever_the_limit(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write_checkpoint(tmp_path, step)
    rotate(tmp_path, 1, frozenset({2}))
    assert [path.name for path in checkpoint_folders(tmp_path)] == ["checkpoint-2", "checkpoint-3"]


def test_differences_between_recipes_are_named() -> None:
    before = {"seed": 1, "stages": [{"name": "B"}], "same": 0}
    now = {"seed": 2, "stages": [{"name": "B"}], "same": 0, "added": True}
    assert differing_keys(before, now) == ["added: null -> true", "seed: 1 -> 2"]
