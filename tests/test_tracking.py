"""Reporting: what is written, and that nothing of it can stop a run."""

import importlib.util
import json
import logging
import os
import signal
import sqlite3
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb
from tiny_training import build_inputs, train_in_child

from caspi import train
from caspi.cli import main
from caspi.model.training.trainer import StageTrainer
from caspi.ops.training import tracking
from caspi.ops.training.tracking import MetricsFile, WandbPlan, WeightsAndBiases, plan_wandb

KEY = {"WANDB_API_KEY": "0" * 40}
UNREACHABLE = {"WANDB_BASE_URL": "http://127.0.0.1:9"}


@pytest.mark.parametrize(
    ("environment", "mode"),
    [
        ({}, "off"),
        ({"WANDB_DISABLED": "true", **KEY}, "off"),
        ({"WANDB_DISABLED": "false"}, "off"),
        ({"WANDB_MODE": "disabled", **KEY}, "off"),
        ({"WANDB_MODE": "offline"}, "offline"),
        ({"WANDB_MODE": "dryrun"}, "offline"),
        ({**KEY, **UNREACHABLE}, "offline"),
        ({"WANDB_PROJECT": "x", **UNREACHABLE}, "offline"),
    ],
)
def test_the_mode_follows_from_the_guides_variables(
    environment: dict[str, str], mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    plan = plan_wandb(environment)
    assert plan.mode == mode
    assert plan.reason


def logged(made: MetricsFile, step: int) -> None:
    made.on_log(None, SimpleNamespace(is_world_process_zero=True, global_step=step), None, {"loss": 1.0 / step})


def steps_in(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_steps_that_a_resumed_run_takes_again_are_written_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    made = MetricsFile(path)
    for step in (1, 2, 3):
        logged(made, step)
    made.on_train_begin(None, SimpleNamespace(is_world_process_zero=True, global_step=2), None)
    logged(made, 3)
    assert steps_in(path) == [1, 2, 3]


def test_a_last_line_that_was_cut_off_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    made = MetricsFile(path)
    for step in (1, 2):
        logged(made, step)
    path.write_text(path.read_text() + '{"loss": 0.3, "st')
    made.on_train_begin(None, SimpleNamespace(is_world_process_zero=True, global_step=2), None)
    logged(made, 3)
    assert steps_in(path) == [1, 2, 3]


def test_a_number_that_is_not_one_is_an_error_and_not_json(tmp_path: Path) -> None:
    state = SimpleNamespace(is_world_process_zero=True, global_step=1)
    with pytest.raises(ValueError, match="not JSON compliant"):
        MetricsFile(tmp_path / "metrics.jsonl").on_log(None, state, None, {"loss": float("nan")})


class BrokenWandb(SimpleNamespace):
    """Stands for its functions; the run it makes fails from the second call on."""

    def __init__(self, fails_at_start: bool) -> None:
        super().__init__()
        self.fails_at_start = fails_at_start
        self.calls: list[str] = []

    def init(self, **_: Any) -> Any:
        if self.fails_at_start:
            raise wandb.Error("429 Too Many Requests")
        return SimpleNamespace(log=self.log, finish=lambda exit_code: self.calls.append("finish"), url=None)

    def log(self, _: Any) -> None:
        self.calls.append("log")
        if len(self.calls) > 1:
            raise wandb.Error("429 Too Many Requests")


@pytest.mark.parametrize("fails_at_start", [True, False])
def test_a_wandb_that_fails_is_left_with_one_warning(
    fails_at_start: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = BrokenWandb(fails_at_start)
    monkeypatch.setattr(wandb, "init", broken.init)
    monkeypatch.setattr(wandb, "teardown", lambda: None)
    with caplog.at_level(logging.WARNING, "caspi"):
        reporter = WeightsAndBiases(WandbPlan("online", ""), tmp_path, "id", {})
        for step in range(4):
            reporter.on_log(None, SimpleNamespace(global_step=step), None, {"loss": 1.0})
        reporter.finish(0)
    assert caplog.text.count("429 Too Many Requests") == (2 if fails_at_start else 1)  # online, then offline
    assert broken.calls == ([] if fails_at_start else ["log", "log"])


def test_a_real_offline_run_holds_metrics_recipe_and_the_phase_0_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = build_inputs(tmp_path)
    report = tmp_path / "report" / "alignment_report.json"
    report.parent.mkdir()
    report.write_text('{"decision": "PROCEED"}')
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    output = tmp_path / "out"

    def open_the_gate() -> None:
        setattr(train, "pass_gate", lambda recipe: {})  # noqa: B010  # the report is not a whole one

    assert train_in_child(recipe, output, "--gate-report", str(report), prepare=open_the_gate) == 0
    (folder,) = (output / "wandb").glob("offline-run-*")
    run_id = json.loads((output / "run.json").read_text())["wandb_run_id"]
    assert folder.name.endswith(run_id)
    (file,) = folder.glob("*.wandb")
    content = file.read_bytes()
    data_hash = json.loads((output / "run.json").read_text())["data_sha256"]
    for expected in ("train/learning_rate_projector", "eval/wer", "train/samples_per_second", data_hash):
        assert expected.encode() in content, expected
    assert (folder / "files" / "alignment_report.json").read_text() == report.read_text()


class Refusing(BaseHTTPRequestHandler):
    """A W&B that answers every request with 429."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(429)
        self.end_headers()
        self.wfile.write(b"rate limit exceeded")

    do_GET = do_PUT = do_POST  # noqa: N815  # the names of the standard library

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def refusing_server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_real_client_whose_server_only_refuses_goes_on_offline(
    refusing_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in (KEY | {"WANDB_BASE_URL": refusing_server, "WANDB_SILENT": "true"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(tracking, "START_SECONDS", 3.0)
    plan = plan_wandb(os.environ)
    assert plan.mode == "online"
    with caplog.at_level(logging.WARNING, "caspi"):
        reporter = WeightsAndBiases(plan, tmp_path, "abc", {"seed": 1})
        reporter.on_log(None, SimpleNamespace(global_step=1), None, {"loss": 1.0})
        assert reporter.url is None
        reporter.finish(0)
    assert caplog.text.count("W&B could not start online") == 1
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    assert folder.name.endswith("abc")
    assert list(folder.glob("*.wandb"))


def test_trackio_that_is_not_installed_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["train", "--output-dir", str(tmp_path / "out"), "--trackio-project", "hebrew"]) == 2
    assert "trackio is not installed: uv pip install" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("trackio") is None, reason="the extra `trackio` is not installed")
def test_a_real_trackio_holds_both_stages_and_both_starts_as_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, output = build_inputs(tmp_path), tmp_path / "out"
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    flags = ("--trackio-project", "hebrew")
    assert train_in_child(recipe, output, *flags, "--stages.1.num-epochs", "1", prepare=stop_after_three_steps) == 143
    assert train_in_child(recipe, output, *flags, "--stages.1.num-epochs", "1") == 0
    (database,) = (tmp_path / "trackio").glob("hebrew*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT run_name, step, metrics FROM metrics ORDER BY step").fetchall()
    run_id = json.loads((output / "run.json").read_text())["wandb_run_id"]
    assert {name for name, _, _ in rows} == {run_id}
    losses = [step for _, step, metrics in rows if "train/loss" in json.loads(metrics)]
    assert sorted(set(losses)) == list(range(1, 9))
    assert any("eval/wer" in json.loads(metrics) for _, _, metrics in rows)


def stop_after_three_steps() -> None:
    original = StageTrainer.training_step

    def training_step(self: StageTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *args, **kwargs)

    StageTrainer.training_step = training_step  # type: ignore[method-assign]
