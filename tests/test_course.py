"""The course of a run: what it costs, what it says on the way, and when it ends before its last step."""

import json
import logging
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_training import STEPS_PER_EPOCH, build_inputs, train_in_child, weights_hash

from caspi.config import Train
from caspi.model.training.dev_set import DevSet
from caspi.model.training.flow import is_worn_out
from caspi.model.training.forecast import Forecast, in_words
from caspi.model.training.milestones import Milestones
from caspi.model.training.stages import stage_spans

SPANS = stage_spans(Train().stages, steps_per_epoch=1000)
"""Stage A begins after step 2000."""


def history(*rates: float, every: int = 500) -> list[dict[str, Any]]:
    return [{"eval_wer": rate, "step": every * number} for number, rate in enumerate(rates, start=1)]


@pytest.mark.parametrize(
    ("rates", "patience", "expected"),
    [
        ((0.3, 0.2, 0.2, 0.2, 0.3, 0.3), 0, False),
        ((0.3, 0.2, 0.21, 0.22), 1, False),  # all before stage A
        ((0.3, 0.2, 0.21, 0.22, 0.2), 1, True),  # an equal rate is no lower one
        ((0.3, 0.2, 0.21, 0.22, 0.23), 2, False),
        ((0.3, 0.2, 0.21, 0.22, 0.23, 0.24), 2, True),
        ((0.3, 0.2, 0.21, 0.22, 0.23, 0.19, 0.3), 2, False),
    ],
)
def test_patience_counts_evaluations_of_the_last_stage_in_a_row(
    rates: tuple[float, ...], patience: int, expected: bool
) -> None:
    assert is_worn_out(history(*rates), SPANS, patience) is expected


def plan_error_rates(*rates: float) -> None:
    """Evaluations find these, one after the other; the last one again and again."""
    original, left = DevSet.evaluate, list(rates)

    def evaluate(self: DevSet, *arguments: Any) -> dict[str, float]:
        return original(self, *arguments) | {"eval_wer": left.pop(0) if len(left) > 1 else left[0]}

    DevSet.evaluate = evaluate  # type: ignore[method-assign, assignment]


def test_a_run_that_no_longer_improves_ends_early_with_the_best_model_and_stays_ended(tmp_path: Path) -> None:
    recipe, output = build_inputs(tmp_path), tmp_path / "out"
    recipe.write_text(recipe.read_text() + "[plan]\nprice = 3.2\n")
    flags = ("--stages.1.num-epochs", "3", "--eval-steps", "2", "--early-stop-evaluations", "2")
    assert train_in_child(recipe, output, *flags, prepare=lambda: plan_error_rates(0.9, 0.8, 0.5, 0.7, 0.6)) == 0
    record = json.loads((output / "run.json").read_text())
    assert (record["state"], record["steps_done"], record["final_step"]) == ("done", STEPS_PER_EPOCH + 6, 6)
    assert weights_hash(output) == weights_hash(output / "checkpoint-6")
    before = weights_hash(output)
    assert train_in_child(recipe, output, *flags) == 0
    assert "Stopped early at step 10: no lower eval_wer in 2 evaluations" in (output / "training.log").read_text()
    assert weights_hash(output) == before
    check_what_is_said(output)


def test_time_and_dollars_left_follow_from_the_pace_of_this_start(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([1000.0, 1090.0, 1180.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    forecast = Forecast(usd_per_hour=4.0, paid_seconds=lambda: 3690.0)
    assert forecast.at(100, 130) == {}
    forecast.begin(100)
    found = forecast.at(110, 130)
    assert found == pytest.approx({"seconds_left": 180.0, "usd_spent": 4.1, "usd_left": 0.2})
    assert in_words(found) == "0:03:00 left, $4.10 spent, $0.20 left"
    forecast.begin(120)  # the next stage of the same process
    assert forecast.at(120, 130)["seconds_left"] == pytest.approx(90.0)


def test_without_a_price_there_are_no_dollars() -> None:
    forecast = Forecast()
    forecast.begin(0)
    assert forecast.at(5, 10).keys() == {"seconds_left"}


def test_a_long_wait_between_lines_has_a_sign_of_life(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    forecast = Forecast()
    forecast.begin(0)
    milestones = Milestones(4, 100, forecast)
    control = SimpleNamespace(should_log=False)
    with caplog.at_level(logging.INFO, "caspi"):
        for step in range(1, 5):
            now[0] += 25.0
            milestones.on_step_end(None, SimpleNamespace(global_step=step), control)
    assert [record.message for record in caplog.records] == ["  step 3/400 (0.8 %), 2:45:25 left"]


def check_what_is_said(output: Path) -> None:
    """On the console, in the metrics and in the record."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    losses = [line for line in lines if "loss" in line]
    assert all({"seconds_left", "usd_spent", "usd_left"} <= line.keys() for line in losses)
    assert losses[0]["seconds_left"] > 0
    assert losses[-1]["usd_left"] == pytest.approx(losses[-1]["seconds_left"] / 3600 * 3.2)
    log = (output / "training.log").read_text()
    assert "left, $0.0" in log
    record = json.loads((output / "run.json").read_text())
    assert {"gpus", "cpu", "num_cores", "memory_gib", "system"} <= record["hardware"].keys()
    assert socket.gethostname() not in (output / "run.json").read_text()
