"""Upload to a fake Hub on loopback: what arrives, what is retried, what is refused and said."""

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from caspi.ops.release.hub import plan_upload
from caspi.ops.release.secret_search import secrets_in

ASSETS = Path("/work/shared/assets/qwen3-asr")
UPLOAD = """
import sys
from pathlib import Path
from caspi.ops.release.hub import upload
public = sys.argv[2] == "public"
commit = upload(Path(sys.argv[1]), "someone/model", public=public, message="m", attempts=3, wait_seconds=0.01)
print(commit.oid)
"""
OID = "1" * 40


class FakeHub(ThreadingHTTPServer):
    """Enough of the Hub's API for create, upload and commit; remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, str, Any]] = []
        self.failures: dict[str, list[int]] = {}
        """Status codes to answer first, by the end of the path."""
        self.is_private = True
        self.stored: dict[str, bytes] = {}
        """Weights by SHA-256, as the Hub keeps them."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def asked(self, end: str) -> list[Any]:
        return [body for _, path, body in self.requests if path.endswith(end)]


class Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def log_message(self, *_: Any) -> None:
        pass

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def answer(self, status: int, content: Any) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def handle_request(self) -> None:
        body = self.body()
        path = self.path.partition("?")[0]
        self.server.requests.append((self.command, path, body))
        for end, codes in self.server.failures.items():
            if path.endswith(end) and codes:
                self.answer(codes.pop(0), {"error": "so the test wants it"})
                return
        self.answer(*self.content_for(path, body))

    do_GET = do_POST = do_PUT = handle_request  # noqa: N815 - the names that http.server calls

    def content_for(self, path: str, body: bytes) -> tuple[int, Any]:
        if path.endswith("/api/repos/create"):
            return 200, {"url": f"{self.server.url}/someone/model"}
        if path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            modes = [
                {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular"}
                for f in files
            ]
            return 200, {"files": [mode | {"shouldIgnore": False} for mode in modes]}
        if path.endswith("/info/lfs/objects/batch"):
            return 200, {"transfer": "basic", "objects": [self.lfs_object(one) for one in json.loads(body)["objects"]]}
        if path.endswith("/api/validate-yaml"):
            return 200, {"errors": [], "warnings": []}
        if path.startswith("/store/"):
            self.server.stored[path.rpartition("/")[2]] = body
            return 200, {}
        if path.endswith("/commit/main"):
            url = f"{self.server.url}/someone/model/commit/{OID}"
            return 200, {"commitUrl": url, "commitOid": OID, "pullRequestUrl": None}
        if path.endswith("/api/models/someone/model"):
            return 200, {"id": "someone/model", "private": self.server.is_private, "siblings": [], "tags": []}
        return 404, {"error": f"the fake hub has no {path}"}

    def lfs_object(self, wanted: dict[str, Any]) -> dict[str, Any]:
        if wanted["oid"] in self.server.stored:
            return {"oid": wanted["oid"], "size": wanted["size"]}
        action = {"upload": {"href": f"{self.server.url}/store/{wanted['oid']}"}}
        return {"oid": wanted["oid"], "size": wanted["size"], "actions": action}


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    server = FakeHub()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"weights" * 1000)
    (model / "config.json").write_text("{}", encoding="utf-8")
    (model / "README.md").write_text("# Model\n", encoding="utf-8")
    return model


def upload(url: str, folder: Path, visibility: str = "private", **variables: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the Hub's address is read when its library is imported."""
    environment = os.environ | {
        "HF_ENDPOINT": url,
        "HF_TOKEN": "a-token-for-tests",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
    }
    command = [sys.executable, "-c", UPLOAD, str(folder), visibility]
    return subprocess.run(command, capture_output=True, text=True, env=environment | variables, timeout=120)


def committed(hub: FakeHub) -> dict[str, Any]:
    """What the last commit holds, by path: content, or the hash of weights."""
    lines = [json.loads(line) for line in hub.asked("/commit/main")[-1].splitlines()]
    files = {one["value"]["path"]: base64.b64decode(one["value"]["content"]) for one in lines if one["key"] == "file"}
    return files | {one["value"]["path"]: one["value"]["oid"] for one in lines if one["key"] == "lfsFile"}


def test_everything_arrives_in_one_private_commit(hub: FakeHub, folder: Path) -> None:
    done = upload(hub.url, folder)

    assert done.stdout.strip() == OID, done.stderr
    (created,) = hub.asked("/api/repos/create")
    assert json.loads(created)["visibility"] == "private"
    files = committed(hub)
    assert files["README.md"] == b"# Model\n"
    assert files.keys() == {"README.md", "config.json", "model.safetensors"}
    assert hub.stored[files["model.safetensors"]] == b"weights" * 1000
    assert len(hub.asked("/commit/main")) == 1


def test_a_server_error_is_tried_again_and_weights_are_not_sent_twice(hub: FakeHub, folder: Path) -> None:
    hub.failures["/commit/main"] = [500, 500]

    done = upload(hub.url, folder)

    assert done.stdout.strip().splitlines()[-1] == OID, done.stderr
    assert "500" in done.stdout
    assert len(hub.asked("/commit/main")) == 3
    assert sum(path.startswith("/store/") for _, path, _ in hub.requests) == 1


def test_a_lasting_server_error_fails_after_the_attempts_and_a_later_upload_goes_on(hub: FakeHub, folder: Path) -> None:
    hub.failures["/commit/main"] = [500] * 3

    done = upload(hub.url, folder)

    assert "UploadFailed: upload to someone/model failed after 3 attempts: 500" in done.stderr
    assert upload(hub.url, folder).stdout.strip() == OID
    assert sum(path.startswith("/store/") for _, path, _ in hub.requests) == 1, "the weights were there already"


def test_a_wrong_token_is_said_at_once(hub: FakeHub, folder: Path) -> None:
    hub.failures |= {"/api/repos/create": [401] * 9, "/api/models/someone/model": [401] * 9}

    done = upload(hub.url, folder)

    assert "failed: 401 Unauthorized: the token is missing or not valid; hf auth login, or set HF_TOKEN" in done.stderr
    assert not hub.asked("/preupload/main")


def test_a_token_without_write_permission_is_said_at_once(hub: FakeHub, folder: Path) -> None:
    hub.failures["/preupload/main"] = [403] * 9

    done = upload(hub.url, folder)

    assert "failed: 403: the token may not write there" in done.stderr
    assert len(hub.asked("/preupload/main")) == 1


def test_without_network_it_fails_after_the_attempts(folder: Path) -> None:
    done = upload("http://127.0.0.1:9", folder)

    assert "failed after 3 attempts: no connection" in done.stderr


def test_offline_mode_is_named(hub: FakeHub, folder: Path) -> None:
    assert "HF_HUB_OFFLINE is set" in upload(hub.url, folder, HF_HUB_OFFLINE="1").stderr


def test_a_public_repository_is_not_written_unless_asked(hub: FakeHub, folder: Path) -> None:
    hub.is_private = False

    assert "the repository is public; --public allows that" in upload(hub.url, folder).stderr
    assert not hub.asked("/preupload/main")
    assert upload(hub.url, folder, "public").stdout.strip() == OID
    assert json.loads(hub.asked("/api/repos/create")[-1])["visibility"] == "public"


@pytest.mark.parametrize("name", ["training_args.bin", "optimizer.pt", ".env", "training.log"])
def test_files_that_are_not_listed_are_refused(name: str, folder: Path) -> None:
    (folder / name).write_bytes(b"x")

    with pytest.raises(ValueError, match="is not uploaded: expected only regular files"):
        plan_upload(folder)


def test_a_link_is_refused_whatever_it_is_called(folder: Path) -> None:
    (folder / "vocab.json").symlink_to("/etc/hostname")

    with pytest.raises(ValueError, match=r"vocab\.json is not uploaded"):
        plan_upload(folder)


@pytest.mark.parametrize(
    ("secret", "kind"),
    [
        ("hf_" + "aB3" * 12, "Hugging Face token"),
        ("ghp_" + "a1B" * 12, "GitHub token"),
        ("sk-proj-" + "x9_" * 16, "OpenAI key"),
        ("AKIA" + "ABCD1234" * 2, "AWS key"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----", "private key"),
        ('WANDB_API_KEY="' + "0af3" * 10 + '"', "W&B key"),
    ],
)
def test_secrets_are_found_in_text_and_in_the_header_of_weights(secret: str, kind: str, folder: Path) -> None:
    for name in ("README.md", "model.safetensors"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(b"\x00" * 9 + content + f" {secret} ".encode() + content)

        assert list(secrets_in(folder / name, {})) == [kind]
        with pytest.raises(ValueError, match=f"holds a {kind}"):
            plan_upload(folder)
        (folder / name).write_bytes(content)


def test_the_value_of_a_secret_variable_is_found(folder: Path) -> None:
    (folder / "README.md").write_text("my key is correct-horse-battery", encoding="utf-8")

    found = list(secrets_in(folder / "README.md", {"WANDB_API_KEY": "correct-horse-battery"}))

    assert found == ["value of WANDB_API_KEY"]
    assert list(secrets_in(folder / "README.md", {"WANDB_API_KEY": "my key"})) == [], "too short to be one"


def test_the_published_vocabulary_and_hashes_hold_no_secret(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"sha256": "0af3" * 16, "commit": "0af3" * 10}), encoding="utf-8")
    assert not list(secrets_in(folder / "config.json", {}))
    if not ASSETS.is_dir():
        pytest.skip(f"the published vocabulary is not at {ASSETS}")
    for path in ASSETS.iterdir():
        assert not list(secrets_in(path, {})), path
