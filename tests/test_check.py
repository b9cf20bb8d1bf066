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

from caspi import check
from caspi.cli import main
from caspi.config import Check, Recipe


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
    statuses = [(finding.subject, finding.status) for finding in check.gpus(Check())]
    assert statuses == [("GPUs", "ok"), ("GPU 0", "ok"), ("GPU 1", "warn")]


def test_disk_is_counted_with_the_checkpoint_that_is_being_written() -> None:
    finding = check.disk(Recipe(check=Check(models_gib=1, datasets_gib=1, checkpoint_gib=10_000)))
    assert finding.status == "fail"
    assert "40002 GiB needed" in finding.found
