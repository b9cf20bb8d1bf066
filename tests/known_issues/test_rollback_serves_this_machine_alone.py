"""`caspi rollback` started a server that the whole network could reach; `caspi evaluate` had refused to."""

from pathlib import Path

import pytest

from caspi.cli import main


@pytest.mark.parametrize("flags", ["--bind 0.0.0.0", "", "--host ::"])
def test_a_command_that_would_serve_the_whole_network_is_refused(
    flags: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = f"python3 -m http.server {{port}} {flags}"
    assert main(["rollback", "--to", "round1", "--backup", "none", "--serve-command", command]) == 2
    assert "must bind to this machine alone: add --host 127.0.0.1" in capsys.readouterr().err
    assert not list(tmp_path.iterdir()), "nothing was started or recorded"
