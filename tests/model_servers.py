"""Servers for tests: the real `transformers serve`, and one that answers in the recorded forms of vLLM 0.32."""

import base64
import hashlib
import http.server
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import wave
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from caspi.ops.release.server import free_port

RECORDED: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent / "data" / "vllm_0.32_answers.json").read_text(encoding="utf-8")
)
"""Answers of a real vLLM 0.32.0 by name; request and response of each were recorded together."""
START_TIMEOUT_SECONDS = 240


@contextmanager
def transformers_serve(model: Path, folder: Path) -> Iterator[str]:
    """The real server with a checkpoint; yields its address."""
    port = free_port()
    (folder / "hub").mkdir(parents=True)  # it answers 500 to everything when its cache does not exist
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(folder / "hub"), "OMP_NUM_THREADS": "1"}
    program = str(Path(sys.executable).with_name("transformers"))
    command = [program, "serve", str(model), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        wait_for(lambda: process.poll() is not None or is_healthy(port), START_TIMEOUT_SECONDS)
        assert process.poll() is None, (folder / "log").read_text()[-2000:]
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


def is_healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def wait_for(condition: Callable[[], bool], timeout_seconds: float = 120) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


class Request:
    """One POST as the server got it."""

    def __init__(self, path: str, headers: Any, body: bytes) -> None:
        self.path = path
        self.headers = headers
        self.raw = body
        self.json: dict[str, Any] = json.loads(body) if path.endswith("/chat/completions") else {}
        self.audio = b""
        if self.json:
            (part,) = [part for part in self.json["messages"][0]["content"] if part["type"] == "input_audio"]
            self.audio = base64.b64decode(part["input_audio"]["data"])

    @property
    def audio_sha256(self) -> str:
        return hashlib.sha256(self.audio).hexdigest()

    @property
    def samples(self) -> np.ndarray:
        with wave.open(io.BytesIO(self.audio)) as file:
            assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 16_000)
            return np.frombuffer(file.readframes(file.getnframes()), dtype="<i2").astype(np.float32) / 32768

    @property
    def is_check(self) -> bool:
        """A made-up clip, sent before the others."""
        return self.json.get("max_tokens") == 8


class RecordedVllm(http.server.ThreadingHTTPServer):
    """Answers like vLLM 0.32: recorded bodies, with the text that `text_of` gives and the prompt ids of `ids_of`."""

    daemon_threads = True

    def __init__(self, model: str = "caspi-tiny") -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.model = model
        self.requests: list[Request] = []
        self.lock = threading.Lock()
        self.text_of: Callable[[Request], str] = lambda request: f"שלום {len(request.samples)}"
        self.ids_of: Callable[[Request], list[int]] | None = None
        self.before_answer: Callable[[Handler, Request], bool] = lambda handler, request: False
        """May answer itself, and returns True then."""
        self.is_dead = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    @property
    def sent(self) -> list[Request]:
        """Requests about clips of test sets."""
        with self.lock:
            return [request for request in self.requests if not request.is_check]

    def die(self) -> None:
        """From now on nothing is answered and nobody listens."""
        self.is_dead = True
        self.shutdown()
        self.socket.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the tests."""

    def chat_body(self, request: Request) -> dict[str, Any]:
        beams = request.json.get("use_beam_search", False)
        body: dict[str, Any] = json.loads(RECORDED["chat prefill beam5" if beams else "chat prefill"]["body"])
        body["choices"][0]["message"]["content"] = self.text_of(request)
        if not request.json.get("return_token_ids"):
            body["prompt_token_ids"] = body["choices"][0]["token_ids"] = None
        elif self.ids_of:
            body["prompt_token_ids"] = self.ids_of(request)
        return body


class Handler(http.server.BaseHTTPRequestHandler):
    server: RecordedVllm
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        name = {"/health": "health", "/version": "version", "/v1/models": "models"}.get(self.path)
        if name is None:
            self.answer(404, b'{"detail":"Not Found"}')
            return
        body = RECORDED[name]["body"].replace('"id":"caspi-tiny"', json.dumps({"id": self.server.model})[1:-1])
        self.answer(200, body.encode(), RECORDED[name]["content_type"] or "text/plain")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        request = Request(self.path, self.headers, body)
        with self.server.lock:
            self.server.requests.append(request)
        if self.server.before_answer(self, request):
            return
        if self.path == "/v1/audio/transcriptions":
            self.answer_transcription(request)
        elif request.json["model"] != self.server.model:
            self.answer(404, b'{"error":{"message":"The model does not exist.","type":"NotFoundError","code":404}}')
        else:
            self.answer(200, json.dumps(self.server.chat_body(request)).encode())

    def answer_transcription(self, request: Request) -> None:
        def has(name: str, value: str) -> bool:
            return f'name="{name}"\r\n\r\n{value}\r\n'.encode() in request.raw

        name = "tr beam" if has("use_beam_search", "true") else "tr he"
        if has("language", "xx"):
            name = "tr bad language"
        elif has("max_completion_tokens", "2"):
            name = "tr truncated"
        self.answer(RECORDED[name]["status"], RECORDED[name]["body"].encode())

    def answer(self, status: int, body: bytes, content_type: str = "application/json", **headers: str) -> None:
        if self.server.is_dead:
            self.close_connection = True
            return
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def recorded_vllm(model: str = "caspi-tiny") -> Iterator[RecordedVllm]:
    server = RecordedVllm(model)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
