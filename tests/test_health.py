"""Alerts: each rule fires on what it is for, stays silent otherwise, and speaks once."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from caspi.config import Health
from caspi.ops.training.health import RULES, HealthMonitor, Watch, find_alerts

LIMITS = Health(expected_samples_per_second=6.0)
SWITCH = 1000
GOOD = {
    "loss": 0.2,
    "grad_norm_max": 3.0,
    "samples_per_second": 6.5,
    "data_wait_fraction": 0.01,
    "gpu_memory_fraction": 0.8,
    "learning_rate_projector": 2e-4,
    "learning_rate_llm_top": 5e-5,
}


def entry(step: int, **changes: float) -> dict[str, Any]:
    return {**GOOD, **changes, "step": step}


def evaluations(*rates: float) -> list[dict[str, Any]]:
    return [{"eval_wer": rate, "step": 500 * number} for number, rate in enumerate(rates, start=1)]


BAD: dict[str, tuple[list[dict[str, Any]], str]] = {
    "GRAD_NORM_HIGH": ([entry(50, grad_norm_max=50.1)], "--max-grad-norm"),
    "GRAD_NORM_LOW": ([entry(50, grad_norm_max=0.009)], "--stages.0.learning-rates"),
    "LOSS_NOT_RECOVERED": (
        [entry(1000, loss=0.20), entry(1050, loss=0.35), entry(1150, loss=0.30), entry(1200, loss=0.26)],
        "--stages.1.learning-rates.audio-top 1e-5",
    ),
    "GPU_MEMORY_HIGH": ([entry(50, gpu_memory_fraction=0.96)], "--batch-size 1"),
    "SPEED_LOW": ([entry(50, samples_per_second=2.9), entry(100, samples_per_second=2.9)], "--num-loader-workers"),
    "LEARNING_RATES_ZERO": ([entry(50, learning_rate_projector=0.0, learning_rate_llm_top=0.0)], "--lr-schedule"),
    "EVAL_WER_RISING": ([entry(50), *evaluations(0.12, 0.121, 0.125)], "--early-stop-evaluations"),
    "DATA_WAIT_HIGH": (
        [entry(50, data_wait_fraction=0.11), entry(100, data_wait_fraction=0.2)],
        "--num-loader-workers",
    ),
}
HEALTHY: dict[str, list[dict[str, Any]]] = {
    "nothing yet": [],
    "a good run": [entry(50), entry(100), *evaluations(0.18, 0.15, 0.12)],
    "at the limits": [entry(50, grad_norm_max=50.0, gpu_memory_fraction=0.95), entry(100, grad_norm_max=0.01)],
    "a spike that recovers": [
        entry(1000, loss=0.2),
        entry(1050, loss=0.4),
        entry(1150, loss=0.24),
        entry(1200, loss=0.3),
    ],
    "a spike that may still recover": [entry(1000, loss=0.2), entry(1150, loss=0.4)],
    "one slow interval": [entry(50, samples_per_second=1.0, data_wait_fraction=0.5), entry(100)],
    "one learning rate of zero": [entry(50, learning_rate_projector=0.0)],
    "WER rises once": [entry(50), *evaluations(0.12, 0.13, 0.125)],
    "WER stays": [entry(50), *evaluations(0.12, 0.12, 0.12)],
}


def kinds(history: list[dict[str, Any]]) -> list[str]:
    return [alert.kind for alert in find_alerts(Watch(history, LIMITS, [SWITCH]))]


@pytest.mark.parametrize("kind", RULES)
def test_each_rule_fires_alone_and_names_the_flag_that_helps(kind: str) -> None:
    history, flag = BAD[kind]
    (alert,) = find_alerts(Watch(history, LIMITS, [SWITCH]))
    assert alert.kind == kind
    assert flag in alert.message


@pytest.mark.parametrize("case", HEALTHY)
def test_a_healthy_run_raises_nothing(case: str) -> None:
    assert kinds(HEALTHY[case]) == []


def test_without_a_plan_no_speed_is_too_low() -> None:
    history, _ = BAD["SPEED_LOW"]
    assert find_alerts(Watch(history, Health(), [SWITCH])) == []


def monitor(folder: Path, stops: list[int], **limits: Any) -> HealthMonitor:
    made = HealthMonitor(Health(**limits), [SWITCH], folder / "metrics.jsonl", lambda: stops.append(1))
    made.on_train_begin(None, SimpleNamespace(is_world_process_zero=True), None)
    return made


def log_entry(made: HealthMonitor, history: list[dict[str, Any]]) -> None:
    state = SimpleNamespace(is_world_process_zero=True, log_history=history, global_step=history[-1]["step"])
    made.on_log(None, state, None)


def test_an_alert_is_raised_once_also_after_a_resume(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    history, _ = BAD["GRAD_NORM_HIGH"]
    with caplog.at_level(logging.WARNING, "caspi"):
        for _ in range(2):
            made = monitor(tmp_path, [])
            log_entry(made, history)
            log_entry(made, history)
    assert caplog.text.count("ALERT GRAD_NORM_HIGH at step 50") == 1
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert (json.loads(line)["alert"], json.loads(line)["step"]) == ("GRAD_NORM_HIGH", 50)


def test_an_alert_stops_the_run_only_where_that_is_asked(tmp_path: Path) -> None:
    history, _ = BAD["GRAD_NORM_HIGH"]
    stops: list[int] = []
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    log_entry(monitor(tmp_path / "a", stops), history)
    assert stops == []
    log_entry(monitor(tmp_path / "b", stops, stop_on=("GRAD_NORM_HIGH",)), history)
    assert stops == [1]
