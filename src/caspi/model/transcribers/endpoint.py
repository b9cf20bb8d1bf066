"""An OpenAI-compatible server: where it is, of which kind, and what it serves; no answer is read without end."""

import os
import time
from collections.abc import Iterator
from json import JSONDecodeError
from pathlib import Path
from typing import Any, Literal, NamedTuple

import httpx2
import openai

from caspi.config import Evaluate, Requests
from caspi.records import RunFailed

Dialect = Literal["vllm", "transformers"]
API_PATH = "/v1"
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")
PROBE_TIMEOUT_SECONDS = 10.0
CONNECT_TIMEOUT_SECONDS = 10.0
MAX_QUOTED_CHARACTERS = 300
"""Of a foreign answer in our messages."""
KEY_VARIABLE = "VLLM_API_KEY"
"""vLLM's own name. Not OPENAI_API_KEY: that one is for OpenAI, and must not go to whatever --server names."""


class Endpoint(NamedTuple):
    url: str
    """With `/v1`."""
    dialect: Dialect
    version: str | None
    """Of the server, where it tells."""
    model: str
    """Name to ask for."""
    folder: Path | None
    """The checkpoint, where it is on this machine."""


class AnswerTooLarge(httpx2.ReadError):
    """A server that does not stop sending."""


class BoundedStream(httpx2.SyncByteStream):
    """The body of an answer, as long as it stays within limits of size and time."""

    def __init__(self, stream: httpx2.SyncByteStream, max_bytes: int, timeout_seconds: float) -> None:
        self.stream = stream
        self.max_bytes = max_bytes
        self.deadline = time.monotonic() + timeout_seconds

    def __iter__(self) -> Iterator[bytes]:
        num_bytes = 0
        for chunk in self.stream:
            num_bytes += len(chunk)
            if num_bytes > self.max_bytes:
                raise AnswerTooLarge(f"the answer is longer than {self.max_bytes >> 10} KiB")
            if time.monotonic() > self.deadline:
                raise AnswerTooLarge("the answer did not end in time")
            yield chunk

    def close(self) -> None:
        self.stream.close()


def http_client(url: httpx2.URL, requests: Requests) -> httpx2.Client:
    """No redirects, no compressed answers, and no proxy to servers on this machine."""

    def bound(response: httpx2.Response) -> None:
        encoding = response.headers.get("content-encoding", "identity")
        if encoding != "identity":
            raise AnswerTooLarge(f"the answer is compressed ({encoding}), which nobody asked for")
        assert isinstance(response.stream, httpx2.SyncByteStream)
        response.stream = BoundedStream(response.stream, int(requests.max_answer_kib * 1024), requests.timeout_seconds)

    return httpx2.Client(
        headers={"Accept-Encoding": "identity"},
        timeout=httpx2.Timeout(requests.timeout_seconds, connect=CONNECT_TIMEOUT_SECONDS),
        limits=httpx2.Limits(max_connections=requests.num_concurrent + 1),
        follow_redirects=False,
        trust_env=url.host not in LOOPBACK_HOSTS,
        event_hooks={"response": [bound]},
    )


def parse_url(text: str) -> httpx2.URL:
    """The API's address, ending in `/v1`.

    Raises:
        ValueError: it is not an http or https address.
    """
    try:
        url = httpx2.URL(text)
    except httpx2.InvalidURL as error:
        raise ValueError(f"--server {text!r}: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(f"--server {text!r}: expected an address such as http://localhost:8000/v1")
    if url.userinfo:
        raise ValueError(f"--server: give the key in {KEY_VARIABLE}, not in the address, which is written to run.json")
    path = url.path.rstrip("/")
    return url.copy_with(path=path if path.endswith(API_PATH) else path + API_PATH, query=None, fragment=None)


def openai_client(url: httpx2.URL, http: httpx2.Client, requests: Requests) -> openai.OpenAI:
    """The official client; it tries again after time-outs, lost connections and the answers 408, 409, 429 and 5xx."""
    return openai.OpenAI(
        base_url=str(url),
        api_key=os.environ.get(KEY_VARIABLE) or "none",
        organization="",
        project="",
        timeout=http.timeout,
        max_retries=requests.max_retries,
        http_client=http,
    )


def find_endpoint(section: Evaluate, url: httpx2.URL, client: openai.OpenAI, http: httpx2.Client) -> Endpoint:
    """Ask the server what it is and what it serves.

    Raises:
        RunFailed: it does not answer.
        ValueError: it is of an unknown kind, or does not serve `section.model`.
    """
    dialect, version = find_dialect(section, url, http)
    if dialect == "transformers":
        return Endpoint(str(url), dialect, version, section.model, existing_folder(section.model))
    model, root = find_model(section, client)
    is_here = url.host in LOOPBACK_HOSTS
    folder = existing_folder(section.model) or (existing_folder(root or model) if is_here else None)
    return Endpoint(str(url), dialect, version, model, folder)


def find_dialect(section: Evaluate, url: httpx2.URL, http: httpx2.Client) -> tuple[Dialect, str | None]:
    root = url.copy_with(path=url.path.removesuffix(API_PATH) or "/")
    answer = get_json(http, root, "version")
    version = answer.get("version") if isinstance(answer, dict) else None
    if section.dialect != "auto":
        return section.dialect, version if isinstance(version, str) else None
    if isinstance(version, str):
        return "vllm", version
    if get_json(http, root, "health") == {"status": "ok"}:
        return "transformers", None
    raise ValueError(f"{url} answers neither like vLLM nor like transformers serve: give --dialect")


def get_json(http: httpx2.Client, root: httpx2.URL, path: str) -> Any:
    """What GET answers; None where it is not JSON with status 200.

    Raises:
        RunFailed: nothing answers.
    """
    address = root.copy_with(path=f"{root.path.rstrip('/')}/{path}")
    try:
        answer = http.get(address, timeout=PROBE_TIMEOUT_SECONDS)
    except httpx2.HTTPError as error:
        raise RunFailed(f"nothing usable answers at {address}: {reason_of(error)}; start the server first") from None
    try:
        return answer.json() if answer.status_code == httpx2.codes.OK else None
    except (JSONDecodeError, UnicodeDecodeError):
        return None


def find_model(section: Evaluate, client: openai.OpenAI) -> tuple[str, str | None]:
    """Name and root of the model to ask for.

    Raises:
        RunFailed: the server does not list its models.
        ValueError: it serves others.
    """
    try:
        served = {model.id: (model.model_extra or {}).get("root") for model in client.models.list().data}
    except openai.OpenAIError as error:
        raise RunFailed(f"{client.base_url}models: {reason_of(error)}") from None
    for name, root in served.items():
        if same_model(section.model, name) or (isinstance(root, str) and same_model(section.model, root)):
            return name, root if isinstance(root, str) else None
    if len(served) == 1 and section.model == Evaluate().model:
        ((name, root),) = served.items()
        return name, root if isinstance(root, str) else None
    listed = ", ".join(sorted(served))[:MAX_QUOTED_CHARACTERS] or "no model"
    raise ValueError(f"the server serves {listed}, not {section.model}: give --model")


def same_model(asked: str, served: str) -> bool:
    return asked == served or os.path.normpath(asked) == os.path.normpath(served)


def existing_folder(name: str) -> Path | None:
    return Path(name) if Path(name, "config.json").is_file() else None


def reason_of(error: Exception) -> str:
    """One line about what went wrong, with the beginning of what the server said."""
    if isinstance(error, openai.APIStatusError):
        return f"HTTP {error.status_code} {quoted(error.response.text)}".rstrip()
    if isinstance(error, openai.APITimeoutError | httpx2.TimeoutException):
        return "no answer in time"
    cause = error.__cause__ if isinstance(error, openai.APIConnectionError) else None
    return quoted(str(cause or error)) or type(error).__name__


def quoted(text: str) -> str:
    """The beginning of a foreign text as one printable line."""
    printable = "".join(character if character.isprintable() else " " for character in text[:10_000])
    return " ".join(printable.split())[:MAX_QUOTED_CHARACTERS]
