"""Clips that take their process down are counted outcomes; a killed audit goes on where it was."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]
import pytest
from audit_corpora import write_audit_corpus
from hostile_aligner import HANGS, KILLED, RAISES, SEGFAULT, HostileAligner, die_while_loading

from caspi import audit
from caspi.config import Audit, Calibration, Recipe
from caspi.model.aligners.battery import Task, plan_groups
from caspi.model.aligners.workers import LocalWorkers
from caspi.records import RunFailed, Utterance, write_jsonl
from caspi.speech.alignment.controls import DECOY, ORIGINAL, PlannedPair
from caspi.speech.alignment.quality import Outcome
from caspi.speech.corpora.audio import write_audio

NUM_CLIPS = 32
PLANNED = (PlannedPair(ORIGINAL, ("שלום", "לכולם")), PlannedPair(DECOY, ("גשם", "חזק")))


def recipe_for(**changes: Any) -> Recipe:
    settings: dict[str, Any] = {"backend": "random", "num_processes": 1, "clip_timeout_seconds": 1.0}
    return Recipe(audit=Audit(**(settings | {"clip_timeout_factor": 0.01} | changes)))


def clips(folder: Path, lengths: list[int]) -> list[Task]:
    rng = np.random.default_rng(0)
    tasks = []
    for number, length in enumerate(lengths):
        path = folder / f"{number}.wav"
        write_audio(path, rng.normal(0, 0.1, length).astype(np.float32))
        tasks.append(Task(f"c{number}", str(path), 0.0, length / 16_000, PLANNED))
    return tasks


def measure(tasks: list[Task], recipe: Recipe) -> dict[str, Outcome]:
    with LocalWorkers(recipe, HostileAligner) as workers:
        return {o.id: o for outcomes in workers.run(plan_groups(tasks, recipe.audit)) for o in outcomes}


def test_a_crash_costs_its_own_clip_only(tmp_path: Path) -> None:
    outcomes = measure(clips(tmp_path, [16_000, SEGFAULT, 16_000]), recipe_for())
    assert {id_: o.is_crash for id_, o in outcomes.items()} == {"c0": False, "c1": True, "c2": False}
    assert "SIGSEGV" in outcomes["c1"].failures[ORIGINAL]
    assert set(outcomes["c2"].pairs) == {ORIGINAL, DECOY}


@pytest.mark.slow
def test_a_crash_a_kill_an_exception_and_a_hang_are_told_apart(tmp_path: Path) -> None:
    tasks = clips(tmp_path, [16_000, SEGFAULT, 16_000, KILLED, 16_000, RAISES, HANGS, 16_000])
    outcomes = measure(tasks, recipe_for(num_processes=2))
    messages = {id_: o.failures.get(ORIGINAL, "") for id_, o in outcomes.items() if o.is_crash}
    assert sorted(messages) == ["c1", "c3", "c5", "c6"]
    assert "SIGSEGV" in messages["c1"]
    assert "SIGKILL (out of memory?)" in messages["c3"]
    assert "exit code 1" in messages["c5"]
    assert "did not answer in time" in messages["c6"]
    for id_ in ("c0", "c2", "c4", "c7"):
        assert set(outcomes[id_].pairs) == {ORIGINAL, DECOY}


@pytest.mark.slow
def test_a_tool_that_every_clip_kills_is_a_failed_run(tmp_path: Path) -> None:
    tasks = clips(tmp_path, [SEGFAULT] * 8)
    with pytest.raises(RunFailed, match="5 clips in a row killed their worker"):
        measure(tasks, recipe_for())


def test_a_worker_that_dies_while_loading_is_a_failed_run_with_the_way_out() -> None:
    with (
        pytest.raises(RunFailed, match=r"while loading.*--num-processes"),
        LocalWorkers(recipe_for(), die_while_loading),
    ):
        pass


def test_groups_are_neighbours_in_length_and_the_same_whatever_is_done_already() -> None:
    rng = np.random.default_rng(0)
    tasks = [Task(f"t{i}", "", 0.0, float(d), PLANNED) for i, d in enumerate(rng.uniform(1, 30, 200))]
    settings = Audit(backend="qwen", model_batch_seconds=120)
    groups = plan_groups(tasks, settings)
    assert sorted(t.id for group in groups for t in group) == sorted(t.id for t in tasks)
    durations = [task.duration_seconds for group in groups for task in group]
    assert durations == sorted(durations, reverse=True)
    assert all(len(group) <= settings.model_batch_size for group in groups)
    assert all(2 * len(group) * group[0].duration_seconds <= 120 for group in groups if len(group) > 1)
    assert plan_groups(list(reversed(tasks)), settings) == groups


def crashing_audit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, dict[str, Any]]:
    monkeypatch.setattr(audit, "start_workers", lambda recipe: LocalWorkers(recipe, HostileAligner))
    calibration = Calibration(num_control_utterances=0, num_dose_utterances=0, num_self_test_sentences=0)
    settings = {"manifest": folder / "manifest.jsonl", "output": folder / "out", "sample_rate": 1.0}
    code = audit.run(recipe_for(**settings, calibration=calibration))
    return code, json.loads((folder / "out" / "alignment_report.json").read_text("utf-8"))


def test_a_crashed_clip_is_counted_in_the_report_and_tried_again_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = clips(tmp_path, [16_000] * 20 + [SEGFAULT])
    utterances = [
        Utterance(
            id=t.id, audio_filepath=t.audio_filepath, text=f"שלום{n} ילד{n}", duration=t.duration_seconds, domain="a"
        )
        for n, t in enumerate(tasks)
    ]
    write_jsonl(tmp_path / "manifest.jsonl", utterances)
    code, report = crashing_audit(tmp_path, monkeypatch)
    rows = {row["sample_id"]: row for row in report["detailed_metrics"]}
    assert code == 3
    assert report["failed_count"] == 1
    assert rows["c20"]["reasons"] == ["ALIGN_ERROR"]
    assert "SIGSEGV" in rows["c20"]["error"]
    _, again = crashing_audit(tmp_path, monkeypatch)
    assert "20 of 21 clips are known from an earlier run" in capsys.readouterr().err
    assert again["detailed_metrics"] == report["detailed_metrics"]


def start_audit(manifest: Path, output: Path) -> "subprocess.Popen[str]":
    flags = ["--manifest", manifest, "--output", output, "--backend", "tts-dtw", "--sample-rate", "1.0"]
    flags += ["--num-processes", "1", "--calibration.num-self-test-sentences", "0"]
    flags += ["--calibration.num-control-utterances", "0", "--calibration.num-dose-utterances", "0"]
    flags += ["--embed-audio", "none"]
    command = [sys.executable, "-m", "caspi", "audit", *map(str, flags)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_entries(cache: Path, count: int, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 120
    while not cache.exists() or cache.read_bytes().count(b"\n") < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def report_without_times(output: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((output / "alignment_report.json").read_text("utf-8"))
    for key in ("created_utc", "wall_seconds"):
        del report["provenance"][key]
    return report


@pytest.mark.espeak
@pytest.mark.timeout(900)
def test_a_killed_and_then_interrupted_audit_goes_on_and_writes_the_same_bytes(tmp_path: Path) -> None:
    """SIGKILL, SIGTERM, Ctrl+C, then to the end; against a run that nothing disturbed."""
    manifest = write_audit_corpus(tmp_path / "corpus", NUM_CLIPS, 0.1, 3, {"kan_clean": 0.5, "whatsapp_noisy": 0.5})
    cache = tmp_path / "killed" / "alignment_cache.jsonl"
    killed = start_audit(manifest, cache.parent)
    wait_for_entries(cache, 4, killed)
    children = psutil.Process(killed.pid).children(recursive=True)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive, "a worker has outlived its audit"
    num_kept = cache.read_bytes().count(b"\n")
    assert 4 <= num_kept < NUM_CLIPS

    for number, exit_code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        stopped = start_audit(manifest, cache.parent)
        wait_for_entries(cache, num_kept + 4, stopped)
        stopped.send_signal(number)
        _, errors = stopped.communicate()
        assert stopped.returncode == exit_code
        assert f"{num_kept} of {NUM_CLIPS} clips are known from an earlier run" in errors
        assert "the same command goes on" in errors
        assert "Traceback" not in errors
        num_kept = cache.read_bytes().count(b"\n")
    first_keys = [json.loads(line)["key"] for line in cache.read_bytes().splitlines()]

    last = start_audit(manifest, cache.parent)
    _, errors = last.communicate()
    assert last.returncode in (0, 1), errors
    keys = [json.loads(line)["key"] for line in cache.read_bytes().splitlines()]
    assert keys[: len(first_keys)] == first_keys
    assert len(keys) == len(set(keys)) == NUM_CLIPS, "a finished clip was aligned again"

    whole = start_audit(manifest, tmp_path / "whole")
    whole.communicate()
    assert report_without_times(tmp_path / "whole") == report_without_times(cache.parent)
    for name in ("samples.jsonl", "word_spans.jsonl.gz"):
        assert (tmp_path / "whole" / name).read_bytes() == (cache.parent / name).read_bytes()
