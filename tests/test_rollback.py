"""Rollback: what is backed up, what is chosen, what is served, and that the pointer moves last."""

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from made_runs import make_run

from caspi import cli, rollback
from caspi.config import Recipe, Rollback
from caspi.ops.release import archive as archive_module
from caspi.ops.release.archive import write_archive
from caspi.ops.release.registry import read_events, served_now
from caspi.ops.release.server import server_command
from caspi.ops.training.evaluations import evaluations
from caspi.records import RunFailed
from caspi.rollback import run

GUIDE_LINE = (
    "cat {run}/checkpoint-*/trainer_state.json | jq -r '.log_history[] | select(.eval_wer) | "
    '"\\(.eval_wer) \\(.step)"\' | sort -n | head -1'
)
HEALTHY_SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404); self.end_headers(); self.wfile.write(b"ok")
    def log_message(self, *args): pass
print("serving", sys.argv[1], flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("made"))


@pytest.fixture(autouse=True)
def quick_reload(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting torch takes long: only tests with `real_reload` load the model for the reload test."""
    if "real_reload" not in request.fixturenames:
        program = "import pathlib, sys; print('FOLDER', pathlib.Path(sys.argv[1]).resolve(strict=True))"
        monkeypatch.setattr(rollback, "RELOAD_TEST", program)


@pytest.fixture
def real_reload() -> None:
    """Load the model really."""


@pytest.fixture
def run_dir(made: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may change."""
    shutil.copytree(made.parent, tmp_path / "work")
    return tmp_path / "work" / "round2"


def section(run_dir: Path, **options: object) -> Recipe:
    folder = run_dir.parent
    fields = {"run_dir": run_dir, "registry": folder / "serving" / "registry.jsonl", "backup_dir": folder / "backups"}
    return Recipe(rollback=Rollback.model_validate({**fields, "serve": False, **options}))


def pointer(recipe: Recipe) -> str | None:
    event = served_now(read_events(recipe.rollback.registry))
    return event.model if event else None


def test_the_best_checkpoint_is_the_one_the_guides_command_names(run_dir: Path) -> None:
    if not shutil.which("jq"):
        pytest.skip("jq is not installed")
    done = subprocess.run(["bash", "-c", GUIDE_LINE.format(run=run_dir)], capture_output=True, text=True, check=True)
    wer, step = done.stdout.split()
    recipe = section(run_dir, option="best-checkpoint", backup="none")

    assert run(recipe) == 0

    assert evaluations(run_dir)[0][:1] == (float(wer),)
    assert pointer(recipe) == str(run_dir / f"checkpoint-{step}")
    (event,) = read_events(recipe.rollback.registry)
    assert event.why == "option best-checkpoint: lowest eval_wer 12.00% at step 200"
    assert event.command is event.pid is event.backup is None


def test_a_best_checkpoint_that_is_gone_or_torn_is_passed_over(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(run_dir / "checkpoint-200")
    (run_dir / "checkpoint-300" / "COMPLETE.json").unlink()
    recipe = section(run_dir, option="best-checkpoint", backup="none")

    assert run(recipe) == 0

    assert pointer(recipe) == str(run_dir / "checkpoint-100")
    out = capsys.readouterr().out
    assert "step 200 (eval_wer 12.00%): checkpoint-200 was deleted by rotation" in out
    assert "step 300 (eval_wer 18.00%): it has no COMPLETE.json" in out


def test_the_backup_holds_the_files_as_they_are(run_dir: Path) -> None:
    recipe = section(run_dir, option="best-checkpoint", backup="all")

    run(recipe)

    (event,) = read_events(recipe.rollback.registry)
    assert event.backup is not None
    path = Path(event.backup)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == event.backup_sha256
    subprocess.run(["sha256sum", "--quiet", "-c", f"{path.name}.sha256"], cwd=path.parent, check=True)
    with tarfile.open(path) as archive:
        archive.extractall(run_dir.parent / "unpacked", filter="data")
    subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=run_dir.parent / "unpacked" / "round2", check=True)
    there, here = (
        {str(one.relative_to(root)) for one in root.rglob("*") if one.is_file()}
        for root in (run_dir.parent / "unpacked" / "round2", run_dir)
    )
    assert there == here | {"SHA256SUMS"}
    assert (run_dir.parent / "unpacked" / "round2" / "wandb_run.txt").read_text() == "run id: abc123\n"


def test_the_usual_backup_keeps_best_and_newest_and_names_what_it_leaves_out(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = section(run_dir, option="best-checkpoint")

    run(recipe)

    (event,) = read_events(recipe.rollback.registry)
    assert event.backup is not None
    with tarfile.open(event.backup) as archive:
        folders = {name.split("/")[1] for name in archive.getnames()}
    assert folders == {"SHA256SUMS", "checkpoint-200", "checkpoint-300", "run.json", "training.log", "wandb_run.txt"}
    assert "left out: checkpoint-100" in capsys.readouterr().out


def test_a_backup_that_does_not_read_back_stops_everything(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = section(run_dir, option="best-checkpoint", backup="logs")
    honest = archive_module.pack

    def pack_while_the_run_writes(folder: Path, sums: dict[str, str], *rest: object) -> None:
        (folder / "training.log").write_text("changed meanwhile\n", encoding="utf-8")
        honest(folder, sums, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(archive_module, "pack", pack_while_the_run_writes)

    with pytest.raises(RunFailed, match=r"does not hold training\.log as it is on the disk"):
        run(recipe)

    assert pointer(recipe) is None
    assert not list(recipe.rollback.backup_dir.iterdir())


def test_a_backup_without_room_is_not_begun(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(run_dir)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))

    with pytest.raises(RunFailed, match="give another --backup-dir, or --backup logs"):
        write_archive(run_dir, [run_dir / "checkpoint-100" / "model.safetensors"], run_dir / "x", compression_level=1)


@pytest.mark.usefixtures("real_reload")
def test_a_model_that_does_not_load_does_not_move_the_pointer(run_dir: Path) -> None:
    broken = run_dir.parent / "broken"
    shutil.copytree(run_dir / "checkpoint-100", broken)
    config = json.loads((broken / "config.json").read_text(encoding="utf-8"))
    config["text_config"]["num_hidden_layers"] += 1
    config["text_config"]["layer_types"].append("full_attention")
    (broken / "config.json").write_text(json.dumps(config), encoding="utf-8")

    recipe = section(run_dir, to=str(broken), backup="none")

    with pytest.raises(RunFailed, match=r"does not load: .* missing.*; the pointer has not moved"):
        run(recipe)

    assert pointer(recipe) is None


@pytest.mark.usefixtures("real_reload")
def test_round1_that_is_not_there_does_not_move_the_pointer(run_dir: Path) -> None:
    recipe = section(run_dir, option="round1", round1_model="nobody/never-published", backup="none")

    with pytest.raises(RunFailed, match="neither a folder nor available from the Hub"):
        run(recipe)

    assert pointer(recipe) is None


def test_round1_from_a_folder_is_recorded_with_reason_and_hash(run_dir: Path) -> None:
    base = run_dir.parent / "base"
    recipe = section(run_dir, option="round1", round1_model=str(base), backup="none", reason="WER rose on WhatsApp")

    run(recipe)
    run(recipe)

    first, second = read_events(recipe.rollback.registry)
    assert (first.model, first.reason) == (str(base), "WER rose on WhatsApp")
    assert first.model_sha256 == second.model_sha256
    assert first.model_sha256 is not None
    assert len(first.model_sha256) == 64


def test_the_conservative_option_records_a_training_and_serves_nothing_else(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "conservative.toml").write_text("[train]\n", encoding="utf-8")
    before = section(run_dir, to=str(run_dir), backup="none")
    run(before)
    recipe = section(run_dir, option="conservative", conservative_recipe=tmp_path / "conservative.toml", backup="none")

    assert run(recipe) == 0

    assert f"caspi train --recipe {tmp_path / 'conservative.toml'}" in capsys.readouterr().out
    assert [event.event for event in read_events(recipe.rollback.registry)] == ["serve", "retrain"]
    assert pointer(recipe) == str(run_dir / "checkpoint-200")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_healthy_server_is_started_and_left_running(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "my server.py").write_text(HEALTHY_SERVER, encoding="utf-8")
    command = f"{sys.executable} '{tmp_path / 'my server.py'}' {{model}} {{port}} 127.0.0.1"
    options = {"serve": True, "serve_command": command, "port": free_port(), "backup": "none"}
    recipe = section(run_dir, option="best-checkpoint", **options)

    assert run(recipe) == 0

    (event,) = read_events(recipe.rollback.registry)
    assert event.pid is not None
    assert event.command is not None
    try:
        assert event.url == f"http://127.0.0.1:{options['port']}"
        assert event.command[2:] == [str(run_dir / "checkpoint-200"), str(options["port"]), "127.0.0.1"]
        assert is_running(event.pid)
        with pytest.raises(RunFailed, match="something listens on port"):
            run(recipe)
    finally:
        os.kill(event.pid, signal.SIGTERM)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("print('no GPU found'); raise SystemExit(7)", "ended with exit code 7; .*no GPU found"),
        ("import time; print('loading', flush=True); time.sleep(600)", "was not healthy after 2 s and was stopped"),
    ],
)
def test_a_server_that_does_not_come_up_is_gone_and_the_pointer_unmoved(
    program: str, message: str, run_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "server.py").write_text(f"import os; print('PID', os.getpid(), flush=True)\n{program}\n")
    command = f"{sys.executable} {tmp_path / 'server.py'} {{model}} {{port}} 127.0.0.1"
    options = {"serve_command": command, "port": free_port(), "health_timeout_seconds": 2.0, "serve": True}
    recipe = section(run_dir, option="best-checkpoint", backup="none", **options)

    with pytest.raises(RunFailed, match=message):
        run(recipe)

    assert pointer(recipe) is None
    (log,) = recipe.rollback.registry.parent.glob("server-*.log")
    pid = int(log.read_text().split()[1])
    deadline = time.monotonic() + 30
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_running(pid)


def test_a_server_that_is_not_installed_is_one_line_and_exit_code_3(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = run_dir.parent / "registry.jsonl"
    flags = ["--option", "best-checkpoint", "--run-dir", str(run_dir), "--registry", str(registry)]

    assert cli.main(["rollback", *flags, "--serve-command", "no-such-server {model} 127.0.0.1:{port}"]) == 3

    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "no-such-server is not installed here" in line
    assert not registry.exists()


def test_a_model_name_never_becomes_several_words() -> None:
    command = server_command("vllm serve {model} --port {port}", "/models/my model; rm -rf ~", 8000)

    assert command == ["vllm", "serve", "/models/my model; rm -rf ~", "--port", "8000"]


def test_a_placeholder_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match=r"use \{model\} and \{port\}"):
        server_command("vllm serve {folder}", "m", 8000)


def test_without_an_option_what_is_served_is_shown(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(section(run_dir)) == 0
    assert "nothing has been served yet" in capsys.readouterr().out
    run(section(run_dir, to=str(run_dir), backup="none"))
    capsys.readouterr()

    assert run(section(run_dir)) == 0

    assert f"served now: {run_dir / 'checkpoint-200'}" in capsys.readouterr().out


def test_a_damaged_registry_is_named_and_not_added_to(run_dir: Path) -> None:
    recipe = section(run_dir, to=str(run_dir), backup="none")
    run(recipe)
    with recipe.rollback.registry.open("a") as file:
        file.write('{"torn')
    before = recipe.rollback.registry.read_bytes()

    with pytest.raises(ValueError, match=r"registry\.jsonl line 2"):
        run(recipe)

    assert recipe.rollback.registry.read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--option", "best-checkpoint", "--run-dir", "/nowhere"], "run folder /nowhere does not exist"),
        (["--option", "round1", "--run-dir", "/nowhere", "--round1-model", "/"], "give --run-dir, or --backup none"),
        (["--option", "conservative", "--conservative-recipe", "/nowhere.toml"], "does not exist"),
    ],
)
def test_a_wrong_request_is_one_line_and_exit_code_2(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--registry", str(tmp_path / "registry.jsonl"), "--no-serve", "--backup-dir", str(tmp_path / "backups")]

    assert cli.main(["rollback", *flags, *common]) == 2

    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
