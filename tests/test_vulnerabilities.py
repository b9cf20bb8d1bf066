"""`make check` asks for known vulnerabilities where it can, and says so where it cannot."""

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


class Silent(http.server.BaseHTTPRequestHandler):
    """Somebody answers, and does not know the question."""

    def do_GET(self) -> None:
        self.send_error(405)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    with http.server.HTTPServer(("127.0.0.1", 0), Silent) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def ask(address: str, folder: Path, answer: str = "") -> subprocess.CompletedProcess[str]:
    """With a `uv` in whose place a script notes its arguments and gives pip-audit's answer."""
    uv = folder / "uv"
    uv.write_text(f"#!/bin/sh\nprintf '%s\\n' \"$@\" > {folder}/arguments\ncat <<'END'\n{answer}\nEND\n")
    uv.chmod(0o755)
    command = [sys.executable, str(ROOT / "requirements" / "vulnerabilities.py"), str(uv)]
    environment = os.environ | {"OSV_URL": address, "no_proxy": "127.0.0.1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_without_network_it_says_that_nothing_was_checked(tmp_path: Path) -> None:
    asked = ask("http://127.0.0.1:9", tmp_path)
    assert asked.returncode == 0
    assert "NOT CHECKED: http://127.0.0.1:9 cannot be reached" in asked.stdout


def test_a_known_vulnerability_fails_and_names_the_way_out(address: str, tmp_path: Path) -> None:
    vulns = [{"id": "PYSEC-1", "fix_versions": ["2.0"]}]
    answer = {"dependencies": [{"name": "a", "version": "1.0", "vulns": vulns}, {"name": "b", "skip_reason": "?"}]}
    asked = ask(address, tmp_path, json.dumps(answer))
    assert asked.returncode == 1
    assert "a 1.0: PYSEC-1, fixed in 2.0" in asked.stdout
    arguments = (tmp_path / "arguments").read_text().split()
    assert arguments.count("--requirement") == 2
    assert arguments[arguments.index("--osv-url") + 1] == address


def test_none_known_passes_and_a_broken_tool_does_not(address: str, tmp_path: Path) -> None:
    assert ask(address, tmp_path, '{"dependencies": []}').returncode == 0
    broken = ask(address, tmp_path, "Traceback")
    assert broken.returncode == 3
    assert "pip-audit failed" in broken.stderr
