"""Reporting: what is written, and that nothing of it can stop a run."""

import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_training import build_inputs, train_in_child

from caspi import train
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
    """Stands for the module; the run it makes fails from the second call on."""

    class Error(Exception):
        pass

    def __init__(self, fails_at_start: bool) -> None:
        super().__init__()
        self.fails_at_start = fails_at_start
        self.calls: list[str] = []

    def init(self, **_: Any) -> Any:
        if self.fails_at_start:
            raise self.Error("429 Too Many Requests")
        return SimpleNamespace(log=self.log, finish=lambda exit_code: self.calls.append("finish"), url=None)

    def log(self, _: Any) -> None:
        self.calls.append("log")
        if len(self.calls) > 1:
            raise self.Error("429 Too Many Requests")


@pytest.mark.parametrize("fails_at_start", [True, False])
def test_a_wandb_that_fails_is_left_with_one_warning(
    fails_at_start: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = BrokenWandb(fails_at_start)
    monkeypatch.setitem(sys.modules, "wandb", broken)
    with caplog.at_level(logging.WARNING, "caspi"):
        reporter = WeightsAndBiases(WandbPlan("online", ""), tmp_path, "id", {})
        for step in range(4):
            reporter.on_log(None, SimpleNamespace(global_step=step), None, {"loss": 1.0})
        reporter.finish(0)
    assert caplog.text.count("429 Too Many Requests") == 1
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
