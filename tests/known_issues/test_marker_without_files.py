"""A COMPLETE.json that named no file, or not the weights, made a checkpoint count whose weights nobody had hashed."""

import json
from pathlib import Path

import pytest

from caspi.ops.training.artifacts import MARKER, commit, read_marker


@pytest.mark.parametrize("left", [[], ["config.json"]])
def test_a_marker_must_name_the_weights(left: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    for name in ("model.safetensors", "config.json"):
        (folder / name).write_text(name)
    facts = {"step": 1, "stage": "B", "trainable": [], "world_size": 1, "recipe": {}, "data_sha256": "", "versions": {}}
    commit(folder, **facts)
    assert read_marker(folder).files.keys() == {"model.safetensors", "config.json"}
    marker = json.loads((folder / MARKER).read_text())
    marker["files"] = {name: marker["files"][name] for name in left}
    (folder / MARKER).write_text(json.dumps(marker))
    with pytest.raises(ValueError, match="files"):
        read_marker(folder)
