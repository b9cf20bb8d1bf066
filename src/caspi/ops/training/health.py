"""Alerts: what in a run's history deserves a look, each once, with the flag that helps.

Every rule is a function of the history that `trainer_state.json` keeps, so a resumed run judges as the first one did.
Fractions and norms come from `config.Health`.
"""

import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformers import TrainerCallback

from caspi.config import Health
from caspi.records import dump_json

History = Sequence[dict[str, Any]]

log = logging.getLogger(__name__)


class Alert(NamedTuple):
    kind: str
    message: str


class Watch(NamedTuple):
    """What the rules look at: the log entries so far, the limits, and the steps after which stages changed."""

    history: History
    limits: Health
    switch_steps: Sequence[int]

    def training(self) -> list[dict[str, Any]]:
        return [entry for entry in self.history if "loss" in entry]

    def last_two(self, key: str) -> list[float]:
        """Values of the two newest training entries; empty while there are not two."""
        values = [entry[key] for entry in self.training()[-2:] if key in entry]
        return values if len(values) == 2 else []


def grad_norm_high(watch: Watch) -> str | None:
    norm = watch.training()[-1].get("grad_norm_max", 0.0)
    if norm <= watch.limits.max_grad_norm:
        return None
    return (
        f"the gradient norm reached {norm:.1f}: training is unstable; lower the learning rates or --max-grad-norm 0.5"
    )


def grad_norm_low(watch: Watch) -> str | None:
    norm = watch.training()[-1].get("grad_norm_max", watch.limits.min_grad_norm)
    if norm >= watch.limits.min_grad_norm:
        return None
    return f"the gradient norm stays below {norm:.2g}: nothing is learnt; raise --stages.0.learning-rates.llm-top"


def loss_not_recovered(watch: Watch) -> str | None:
    """Judged once, at the first entry that is `recovery_steps` behind the newest switch."""
    entries = watch.training()
    for switch in watch.switch_steps:
        before = [entry["loss"] for entry in entries if entry["step"] <= switch]
        after = [entry for entry in entries if entry["step"] > switch]
        if not before or not after or after[-1]["step"] < switch + watch.limits.recovery_steps:
            continue
        lowest = min(entry["loss"] for entry in after)
        if lowest > watch.limits.max_recovered_ratio * before[-1]:
            return (
                f"the loss was {before[-1]:.3f} before the switch at step {switch} and is not back after "
                f"{watch.limits.recovery_steps} steps ({lowest:.3f}); try --stages.1.learning-rates.audio-top 1e-5"
            )
    return None


def gpu_memory_high(watch: Watch) -> str | None:
    share = watch.training()[-1].get("gpu_memory_fraction", 0.0)
    if share <= watch.limits.max_memory_fraction:
        return None
    return (
        f"{share:.0%} of the GPU's memory were in use; --batch-size 1 --gradient-accumulation-steps 32, or "
        "--max-audio-length-seconds 12"
    )


def speed_low(watch: Watch) -> str | None:
    expected = watch.limits.expected_samples_per_second
    speeds = watch.last_two("samples_per_second")
    if expected is None or not speeds or max(speeds) >= watch.limits.min_speed_fraction * expected:
        return None
    return f"{speeds[-1]:.1f} samples/s, {expected:.1f} were expected; --num-loader-workers 4, and look at nvidia-smi"


def learning_rates_zero(watch: Watch) -> str | None:
    rates = [value for key, value in watch.training()[-1].items() if key.startswith("learning_rate")]
    if not rates or any(rates):
        return None
    return "all learning rates are 0: the weights do not move; look at --lr-schedule and --warmup-steps"


def eval_wer_rising(watch: Watch) -> str | None:
    rates = [entry["eval_wer"] for entry in watch.history if "eval_wer" in entry][-3:]
    if len(rates) < 3 or not rates[0] < rates[1] < rates[2]:
        return None
    course = " → ".join(f"{rate:.2%}" for rate in rates)
    return (
        f"eval_wer rose twice ({course}): overfitting; the best checkpoint is kept, --early-stop-evaluations 3 ends "
        "the run if it goes on"
    )


def data_wait_high(watch: Watch) -> str | None:
    shares = watch.last_two("data_wait_fraction")
    if not shares or min(shares) <= watch.limits.max_data_wait_fraction:
        return None
    return f"{shares[-1]:.0%} of the time is spent waiting for audio; --num-loader-workers 4"


RULES: dict[str, Callable[[Watch], str | None]] = {
    "GRAD_NORM_HIGH": grad_norm_high,
    "GRAD_NORM_LOW": grad_norm_low,
    "LOSS_NOT_RECOVERED": loss_not_recovered,
    "GPU_MEMORY_HIGH": gpu_memory_high,
    "SPEED_LOW": speed_low,
    "LEARNING_RATES_ZERO": learning_rates_zero,
    "EVAL_WER_RISING": eval_wer_rising,
    "DATA_WAIT_HIGH": data_wait_high,
}


def find_alerts(watch: Watch) -> list[Alert]:
    if not watch.training():
        return []
    found = ((kind, rule(watch)) for kind, rule in RULES.items())
    return [Alert(kind, message) for kind, message in found if message]


class HealthMonitor(TrainerCallback):
    """Raises each alert once per run, in the log and in metrics.jsonl under the key `alert`."""

    def __init__(self, limits: Health, switch_steps: Sequence[int], metrics: Path, stop: Callable[[], None]) -> None:
        """`stop` asks the run to save and end."""
        self.limits = limits
        self.switch_steps = switch_steps
        self.metrics = metrics
        self.stop = stop
        self.raised: set[str] = set()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        lines = self.metrics.read_text(encoding="utf-8").splitlines() if self.metrics.exists() else []
        self.raised |= {entry["alert"] for entry in map(json.loads, lines) if "alert" in entry}

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        for kind, message in find_alerts(Watch(state.log_history, self.limits, self.switch_steps)):
            if kind not in self.raised:
                self.raised.add(kind)
                self.tell(kind, message, state.global_step)

    def tell(self, kind: str, message: str, step: int) -> None:
        log.warning("ALERT %s at step %d: %s", kind, step, message)
        entry = {"alert": kind, "message": message, "step": step, "time": round(time.time(), 3)}
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(dump_json(entry) + "\n")
        if kind in self.limits.stop_on:
            log.warning("%s is in train.health.stop_on: the run saves and stops; the same command goes on", kind)
            self.stop()
