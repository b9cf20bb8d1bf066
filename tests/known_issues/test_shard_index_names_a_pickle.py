"""An index of shards named a `.bin`: transformers handed it to torch.load, and the step ended in a traceback."""

import json
import shutil
from pathlib import Path

import pytest

from caspi.model.assets import TINY_BASE
from caspi.model.checkpoints.checkpoint import load_asr


@pytest.mark.parametrize("shard", ["pytorch_model-1.bin", "../other/model.safetensors", "/tmp/model.safetensors", 7])
def test_an_index_may_name_nothing_but_safetensors_beside_it(shard: object, tmp_path: Path) -> None:
    shutil.copytree(TINY_BASE, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"model.language_model.norm.weight": shard}}
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="as a shard, expected NAME"):
        load_asr(tmp_path / "model")
