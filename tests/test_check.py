"""`caspi check`: what is missing is named with its fix, what could not be asked is unknown, and nothing hangs."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from tiny_training import NUM_STEPS, build_inputs, train_in_child, weights

from caspi import check
from caspi.cli import main
from caspi.config import Check, Recipe, Train, load_recipe
from caspi.ops.readiness import downloads, machine, old_variables
from caspi.ops.readiness.collectives import gpus_talk


@pytest.fixture
def silent_server() -> Iterator[str]:
    """A server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


class Gatekeeper(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.answer(200)

    def do_GET(self) -> None:
        self.answer(401)

    def answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def date_time_string(self, timestamp: float | None = None) -> str:
        return super().date_time_string((timestamp or time.time()) - 3600)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def refusing_server() -> Iterator[str]:
    """A hub that refuses every question and whose clock is an hour behind."""
    server = HTTPServer(("127.0.0.1", 0), Gatekeeper)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def check_at(endpoint: str, *flags: str) -> dict[str, dict[str, str]]:
    """Run the command in a fresh process, since the hub's address is read when its library is imported."""
    environment = {name: value for name, value in os.environ.items() if name not in ("HF_TOKEN", "HF_HUB_OFFLINE")}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": "/nonexistent", "HF_TOKEN": "hf_not_a_token"}
    command = [sys.executable, "-m", "caspi", "check", "--json", *flags]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in result.stderr
    assert "hf_not_a_token" not in result.stdout + result.stderr
    return {item["subject"]: item for item in json.loads(result.stdout)}


def test_a_server_that_never_answers_is_unknown_and_does_not_hang(silent_server: str) -> None:
    findings = check_at(silent_server, "--timeout-seconds", "0.5")
    assert findings["Qwen/Qwen3-ASR-1.7B"]["status"] == "unknown"
    assert findings["Hugging Face token"]["status"] == "unknown"
    assert findings["Clock"]["status"] == "unknown"


def test_a_refusal_and_a_wrong_clock_fail_with_a_way_out(refusing_server: str) -> None:
    findings = check_at(refusing_server)
    assert findings["ivrit-ai/eval-d1"]["status"] == "fail"
    assert findings["ivrit-ai/eval-d1"]["fix"]
    assert findings["Clock"]["status"] == "fail"
    assert "off by 3" in findings["Clock"]["found"]


def test_a_machine_without_gpu_is_not_ready(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "remote_findings", lambda recipe: [])
    monkeypatch.setenv("PATH", "/nonexistent")
    assert main(["check", "--json"]) == 1
    findings = {item["subject"]: item for item in json.loads(capsys.readouterr().out)}
    assert findings["GPUs"]["status"] == "fail"
    assert findings["Decoder OGG"]["status"] == "ok"
    assert findings["torch"]["status"] == "ok"


def test_gpus_are_read_from_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\necho 'NVIDIA A100-SXM4-40GB, 40960, 40500, 31'\necho 'NVIDIA A100-SXM4-40GB, 40960, 9000, 60'\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    statuses = [(finding.subject, finding.status) for finding in machine.gpus(Check())]
    assert statuses == [("GPUs", "ok"), ("GPU 0", "ok"), ("GPU 1", "warn")]


def test_disk_is_counted_from_the_checkpoints_that_exist_at_once(tmp_path: Path) -> None:
    """3 kept and one being written, or with a mirror two more; strategy A with the tied matrix: 13.3 GiB each."""
    recipe = Recipe(check=Check(models_gib=1, datasets_gib=1_000_000), train=Train(output_dir=tmp_path / "run"))
    finding = check.disk(recipe)
    assert finding.status == "fail"
    assert "1000054 GiB needed (4 checkpoints of 13.3, models 1, corpora 1e+06)" in finding.found
    manifest = tmp_path / "manifest.jsonl"
    manifest.touch()
    train = Train(output_dir=tmp_path / "run", manifest=manifest, mirror="s3://b/r")
    found = check.disk(Recipe(check=Check(models_gib=1), train=train)).found
    assert "81 GiB needed (6 checkpoints of 13.3, models 1, corpora are here)" in found


def test_a_checkpoint_is_as_large_as_the_real_one(tmp_path: Path) -> None:
    recipe = load_recipe(build_inputs(tmp_path))
    assert train_in_child(tmp_path / "recipe.toml", tmp_path / "run") == 0
    folder = tmp_path / "run" / f"checkpoint-{NUM_STEPS}"
    written = sum((folder / name).stat().st_size for name in ("model.safetensors", "optimizer.safetensors"))
    # The tiny model's frozen weights are float32, and its files have headers.
    frozen = sum(value.numel() for value in weights(folder).values()) * 4
    assert written == pytest.approx(check.checkpoint_gib(recipe) * 2**30, abs=frozen)


def test_a_name_server_that_hangs_is_unknown_within_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*_: object, **__: object) -> None:
        time.sleep(30)
        raise socket.gaierror("it hung")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    start = time.monotonic()
    findings = check.remote_findings(Recipe(check=Check(deadline_seconds=1.0)))
    assert time.monotonic() - start < 10
    by_subject = {finding.subject: finding for finding in findings}
    assert by_subject["Clock"].status == "unknown"
    assert by_subject["Clock"].found == "no answer within 1 s"
    assert findings[0].subject == "Hugging Face token"


def test_a_test_sets_split_is_no_part_of_its_name() -> None:
    names = check.dataset_ids(Recipe())
    assert "imvladikon/hebrew_speech_kan" in names
    assert not [name for name in names if ":" in name]


def test_a_real_sum_over_processes_is_the_check_of_gpus_that_talk() -> None:
    finding = gpus_talk(Check(collective_mib=1), 2, backend="gloo")
    assert finding.status == "ok", finding
    assert "GB/s" in finding.found


def test_gpus_that_do_not_answer_fail_within_the_time() -> None:
    finding = gpus_talk(Check(collective_mib=1, collective_seconds=0.2), 2, backend="gloo")
    assert (finding.status, finding.found) == ("fail", "no sum within 0.2 s")


def test_the_guides_old_variables_have_their_effect_and_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_ENABLE_HF_TRANSFER", "1")
    monkeypatch.setenv("HF_DATASETS_DOWNLOAD_TIMEOUT", "300")
    assert [finding.subject for finding in old_variables.old_variables()] == [
        "HF_HUB_ENABLE_HF_TRANSFER",
        "HF_DATASETS_DOWNLOAD_TIMEOUT",
    ]
    environment = {"HF_HUB_ENABLE_HF_TRANSFER": "1", "HF_DATASETS_DOWNLOAD_TIMEOUT": "300"}
    old_variables.translate(environment)
    assert environment["HF_XET_HIGH_PERFORMANCE"] == "1"
    assert environment["HF_HUB_DOWNLOAD_TIMEOUT"] == "300"
    kept = {"HF_DATASETS_DOWNLOAD_TIMEOUT": "300", "HF_HUB_DOWNLOAD_TIMEOUT": "60"}
    old_variables.translate(kept)
    assert kept["HF_HUB_DOWNLOAD_TIMEOUT"] == "60"


def test_fetching_without_a_network_tries_nothing(silent_server: str) -> None:
    findings = check_at(silent_server, "--timeout-seconds", "0.5", "--fetch")
    fetched = findings["Fetched Qwen/Qwen3-ASR-1.7B"]
    assert (fetched["status"], fetched["found"]) == ("fail", "not tried: no server has answered")


def test_an_interrupted_download_is_tried_again_and_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tries: list[str] = []

    def snapshot_download(name: str, repo_type: str) -> str:
        tries.append(repo_type)
        if len(tries) < 3:
            raise ConnectionError("cut off")
        return "/cache"

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setattr(downloads.time, "sleep", lambda seconds: None)
    assert downloads.fetch("a/b", "model", Check(fetch_attempts=5)).status == "ok"
    assert tries == ["model"] * 3
    assert "a/b: try 2 of 5 failed: cut off" in capsys.readouterr().err
    tries.clear()
    finding = downloads.fetch("a/b", "dataset", Check(fetch_attempts=2))
    assert (finding.status, len(tries)) == ("fail", 2)
    assert "continues it" in finding.fix
