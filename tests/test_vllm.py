"""Evaluation through a real vLLM, in an environment of its own; the result of one run is in docs/results/vllm.md."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from vllm_environment import VLLM_VERSION, vllm_program

from caspi import cli
from caspi.model.tiny import tiny_base
from caspi.ops.release.server import free_port, running_server, server_command
from caspi.records import Prediction, read_jsonl

pytestmark = [pytest.mark.slow, pytest.mark.espeak, pytest.mark.timeout(1800)]

START_TIMEOUT_SECONDS = 900.0
SETTINGS = "env VLLM_CPU_KVCACHE_SPACE=1 HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 OMP_NUM_THREADS=1"
FLAGS = "--enforce-eager --dtype float32 --max-model-len 2048 --max-num-seqs 4"
TOKENS = ("--max-new-tokens", "64")
WITHOUT_TOKEN_LIMIT = ("--requests.beam-tokens", "64")
"""Beams on vLLM are otherwise limited by the length of the audio, which is not so in process."""


class Results(NamedTuple):
    code: int
    predictions: list[Prediction]
    run: dict[str, Any]


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of the checkpoint that ships; yields its address."""
    port = free_port()
    template = f"{SETTINGS} {vllm_program()} serve {{model}} --host 127.0.0.1 --port {{port}} {FLAGS}"
    command = server_command(template, str(tiny_base()), port)
    with running_server(command, port, tmp_path_factory.mktemp("vllm") / "server.log", START_TIMEOUT_SECONDS) as server:
        yield f"{server.url}/v1"


def evaluate(output: Path, test_sets: dict[str, Path], *options: str) -> Results:
    """`caspi evaluate` as a user types it."""
    sources = [f"{name}={path}" for name, path in test_sets.items()]
    arguments = ["evaluate", "--model", str(tiny_base()), "--output", str(output), *TOKENS, *options]
    code = cli.main([*arguments, "--test-sets", *sources])
    predictions = list(read_jsonl(output / "predictions.jsonl", Prediction))
    return Results(code, predictions, json.loads((output / "run.json").read_text(encoding="utf-8")))


@pytest.mark.parametrize(("num_beams", "forcing"), [(1, "variable"), (1, "prefill"), (1, "none"), (5, "variable")])
def test_vllm_gives_the_texts_of_the_model_in_process(
    num_beams: int, forcing: str, vllm: str, tmp_path: Path, asr_corpus: Any
) -> None:
    sets = asr_corpus.test_sets
    decoding = ("--num-beams", str(num_beams), "--language-forcing", forcing)
    local = evaluate(tmp_path / "local", sets, *decoding, "--batch-size", "1")
    served = evaluate(tmp_path / "served", sets, *decoding, "--server", vllm, *WITHOUT_TOKEN_LIMIT)

    assert local.code == served.code == 0
    described = served.run["settings"]["transcriber"]
    assert (described["dialect"], described["prompt_check"]) == ("vllm", "token ids equal")
    assert described["server_version"].startswith(VLLM_VERSION)
    assert described["prompt"] == local.run["settings"]["transcriber"]["prompt"]
    assert len({one.hypothesis for one in local.predictions}) > len(sets), "the clips must not all give one text"
    different = {
        one.id: (one.hypothesis, other.hypothesis)
        for one, other in zip(local.predictions, served.predictions, strict=True)
        if one != other
    }
    # With beams the two rank by other rules (docs/results/vllm.md), which agree on these clips.
    assert different == {}
