"""`caspi watch`: on the files of a real demo run, on made-up runs, and on a process that is killed."""

import io
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from caspi import watch
from caspi.cli import main
from caspi.config import Watch
from caspi.ops.provenance import host_id
from caspi.ops.watching.gpus_now import NoGpus, parse_gpus, read_gpus
from caspi.ops.watching.run_metrics import read_metrics
from caspi.ops.watching.run_terminal import plain_lines
from caspi.ops.watching.run_view import RunView, look
from caspi.records import write_json

REAL_RUN = Path(__file__).parent / "data" / "watch_run"
"""metrics.jsonl, run.json, training.log and trainer_state.json of a run of `caspi demo`; no checkpoints."""
START = 1_800_000_000.0
START_TEXT = "2027-01-15T08:00:00+00:00"
STAGES = [{"name": "B", "num_epochs": 2}, {"name": "A", "num_epochs": 3}]
LIVING_RUN = """
import json, sys, time
from pathlib import Path
from caspi.ops.training.run_lock import only_run_in
folder = Path(sys.argv[1])
with only_run_in(folder):
    now = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
    (folder / "run.json").write_text(json.dumps({"state": "training", "stage": "B", "starts": [now], "updated": now}))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"loss": 0.5, "step": 10, "epoch": 0.1, "time": time.time()}) + "\\n")
        file.write('{"loss": 0.4, "st')
        file.flush()
        print("ready", flush=True)
        time.sleep(300)
"""
A100_PAIR = """0, NVIDIA A100-SXM4-40GB, 97, 31744, 40960, 71, 352.10
1, NVIDIA A100-SXM4-40GB, 95, 30720, 40960, 88, [N/A]
"""


@pytest.fixture
def real_run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(REAL_RUN, tmp_path / "run"))


@pytest.fixture
def without_nvidia_smi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "no_programs"))


@pytest.fixture
def nvidia_smi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Puts a program of that name first on the path."""

    def install(script: str) -> None:
        program = tmp_path / "bin" / "nvidia-smi"
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")

    return install


def write_run(folder: Path, entries: list[dict[str, Any]], **record: Any) -> Path:
    """A run of 5 epochs with two stages that began at START; without a lock, as a copy is."""
    folder.mkdir(exist_ok=True)
    facts = {"state": "training", "stage": "B", "starts": [START_TEXT], "recipe": {"train": {"stages": STAGES}}}
    write_json(folder / "run.json", facts | record)
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))
    return folder


def step_entry(step: int, seconds: float, **more: Any) -> dict[str, Any]:
    """100 steps are an epoch; `seconds` after the start."""
    return {"loss": 1.0, "step": step, "epoch": step / 100, "time": START + seconds} | more


def see(folder: Path, seconds: float, **settings: Any) -> RunView:
    return look(folder, Watch(run_dir=folder, **settings), START + seconds)


def kinds(view: RunView) -> list[str]:
    return [alert.kind for alert in view.alerts]


def test_the_figures_are_those_that_the_trainer_kept(real_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = json.loads((REAL_RUN / "trainer_state.json").read_text())
    last = next(entry for entry in reversed(state["log_history"]) if "loss" in entry)
    evaluation = next(entry for entry in reversed(state["log_history"]) if "eval_wer" in entry)
    assert main(["watch", str(real_run), "--json"]) == 1, "training raised an alert"
    seen = json.loads(capsys.readouterr().out)
    for key in ("loss", "grad_norm", "grad_norm_max", "samples_per_second", "data_wait_fraction", "epoch"):
        assert seen[key] == last[key], key
    assert {f"learning_rate_{group}": rate for group, rate in seen["learning_rates"].items()} == {
        key: value for key, value in last.items() if key.startswith("learning_rate_")
    }
    assert (seen["step"], seen["num_steps"]) == (state["global_step"], state["max_steps"])
    assert seen["best_evaluation"]["wer"] == state["best_metric"]
    assert seen["best_evaluation"]["step"] == state["best_global_step"]
    assert seen["last_evaluation"]["cer"] == evaluation["eval_cer"]
    assert seen["last_evaluation"]["domain_wer"] == {
        "kan_clean": evaluation["eval_wer_kan_clean"],
        "whatsapp_noisy": evaluation["eval_wer_whatsapp_noisy"],
    }
    assert seen["state"] == "finished"
    assert seen["seconds_spent"] == json.loads((REAL_RUN / "run.json").read_text())["train_seconds"]
    assert [alert["kind"] for alert in seen["alerts"]] == ["DATA_WAIT_HIGH"]


def test_a_healthy_run_exits_0_and_a_folder_without_a_run_2(
    real_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [line for line in (real_run / "metrics.jsonl").read_text().splitlines() if '"alert"' not in line]
    (real_run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert main(["watch", str(real_run), "--once"]) == 0
    capsys.readouterr()
    assert main(["watch", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "holds no training run" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("content", ["{", "[]", '{"starts": ["yesterday"]}', '{"recipe": 3}', '{"train_seconds": "x"}'])
def test_a_damaged_run_file_is_one_line_of_refusal(
    real_run: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (real_run / "run.json").write_text(content)
    assert main(["watch", str(real_run), "--once"]) == 2
    error = capsys.readouterr().err
    assert "run.json" in error
    assert error.count("\n") == 1


def test_a_torn_last_line_is_left_out_and_counted(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [step_entry(10, 5.0)])
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write('{"loss": 0.3, "message": "ש'.encode()[:-1])
    view = see(folder, 6.0)
    assert (view.step, view.has_torn_line, view.num_damaged_lines) == (10, True, 0)
    assert kinds(view) == []


def test_lines_that_are_no_entries_are_counted_and_raise_an_alert(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    good = [json.dumps(step_entry(10, 1.0)), json.dumps(step_entry(20, 2.0))]
    bad = [
        "oops",
        '{"loss": NaN, "step": 5}',
        "[1]",
        '{"loss": 1.0}',
        '{"loss": "x", "step": 6}',
        '{"loss":1e999,"step":7}',
    ]
    path.write_text("\n".join([good[0], *bad, good[1]]) + "\n")
    metrics = read_metrics(path)
    assert [entry["step"] for entry in metrics.entries] == [10, 20]
    assert (metrics.num_damaged_lines, metrics.has_torn_line) == (6, False)
    folder = write_run(tmp_path / "run", [])
    shutil.copy(path, folder / "metrics.jsonl")
    assert kinds(see(folder, 3.0)) == ["METRICS_DAMAGED"]


@pytest.fixture
def living_run(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    folder = tmp_path / "run"
    folder.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", LIVING_RUN, str(folder)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield folder, process
        process.kill()


def test_a_run_is_alive_until_it_is_killed(
    living_run: tuple[Path, subprocess.Popen[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, process = living_run
    assert main(["watch", str(folder), "--json"]) == 0
    alive = json.loads(capsys.readouterr().out)
    assert (alive["state"], alive["process"], alive["has_torn_line"]) == ("training", process.pid, True)
    assert alive["decided_by"] == f"process {process.pid} holds the folder"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert main(["watch", str(folder), "--json"]) == 1
    dead = json.loads(capsys.readouterr().out)
    assert (dead["state"], dead["step"], dead["seconds_left"]) == ("killed", 10, None)
    assert dead["decided_by"] == "run.json says training, but no process holds the folder"
    assert [alert["kind"] for alert in dead["alerts"]] == ["RUN_KILLED"]
    assert "no checkpoint is complete" in dead["alerts"][0]["message"]


def test_looking_does_not_take_the_lock_from_a_run_that_begins(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [step_entry(10, 1.0)])
    (folder / ".lock").write_text("1")
    (folder / ".lock").chmod(0o444)
    assert see(folder, 2.0).state == "killed"
    with subprocess.Popen(
        [sys.executable, "-c", LIVING_RUN, str(folder)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.kill()


@pytest.mark.parametrize(("seconds", "state"), [(60.0, "training"), (5000.0, "killed")])
def test_where_no_lock_is_seen_the_age_of_the_last_write_decides(tmp_path: Path, seconds: float, state: str) -> None:
    folder = write_run(tmp_path / "run", [step_entry(10, 10.0)])
    view = see(folder, 10.0 + seconds)
    assert view.state == state
    assert f"the last write is {seconds:,.0f} s old; .lock is missing" in view.decided_by


def test_a_run_on_another_host_is_not_judged_by_the_lock_of_this_one(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [step_entry(10, 10.0)], host="gpu-box")
    (folder / ".lock").write_text("1")
    view = see(folder, 20.0)
    assert view.state == "training"
    assert "the run is on another machine (gpu-box)" in view.decided_by
    write_run(folder, [step_entry(10, 10.0)], host=host_id())
    assert see(folder, 20.0).state == "killed"


def test_a_run_that_failed_says_with_what(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [step_entry(10, 10.0)])
    (folder / ".lock").write_text("1")
    log = (
        "2027-01-15 08:00:01,000 INFO Loading\n2027-01-15 08:00:09,000 ERROR step 11: the gradient norm is nan\nmore\n"
    )
    (folder / "training.log").write_text(log)
    view = see(folder, 20.0)
    assert view.state == "failed"
    assert view.error is not None
    assert view.error.endswith("the gradient norm is nan\nmore")
    assert kinds(view) == ["RUN_FAILED"]
    (folder / "training.log").write_text(log + "2027-01-15 08:00:10,000 INFO Resuming\n")
    assert see(folder, 20.0).state == "killed", "the error is of an earlier start"


def test_an_interrupted_run_is_healthy_and_says_its_exit_code(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [step_entry(10, 10.0)], state="interrupted", exit_code=130)
    (folder / ".lock").write_text("1")
    view = see(folder, 1e6)
    assert (view.state, kinds(view)) == ("interrupted", [])
    assert "exit code 130" in view.decided_by


def test_silence_of_a_living_run_is_an_alert(living_run: tuple[Path, subprocess.Popen[str]]) -> None:
    folder, _ = living_run
    now = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])["time"]
    assert kinds(look(folder, Watch(), now + 899)) == []
    assert kinds(look(folder, Watch(), now + 901)) == ["SILENT"]


@pytest.mark.usefixtures("without_nvidia_smi")
def test_time_left_follows_the_pace_of_the_stage(tmp_path: Path) -> None:
    """Stage B took 1 s per step, stage A takes 2 s: 290 steps are left after step 210, 5 s of them have passed."""
    entries = [step_entry(step, step) for step in range(10, 201, 10)]
    entries += [step_entry(step, 200 + 2 * (step - 200)) for step in (210,)]
    folder = write_run(tmp_path / "run", entries)
    pace = (220 - 120) / (210 - 120)
    assert see(folder, 220.0).seconds_left == pytest.approx(290 * pace), "one entry of A is none yet: the newest ten"
    entries += [step_entry(220, 240.0)]
    view = see(write_run(folder, entries), 245.0)
    assert view.seconds_left == pytest.approx(280 * 2.0 - 5.0)
    assert (view.num_steps, view.num_epochs) == (500, 5)


@pytest.mark.usefixtures("without_nvidia_smi")
def test_what_was_before_a_restart_does_not_slow_the_pace(tmp_path: Path) -> None:
    """Started again two hours later; 300 s were trained before, 20 s since."""
    later = "2027-01-15T10:00:00+00:00"
    entries = [step_entry(10, 10.0), step_entry(20, 20.0), step_entry(30, 7210.0), step_entry(40, 7220.0)]
    folder = write_run(tmp_path / "run", entries, starts=[START_TEXT, later], train_seconds=300.0)
    view = see(folder, 7220.0, price=3.6)
    assert view.seconds_left == pytest.approx(460.0)
    assert view.seconds_spent == pytest.approx(320.0)
    assert view.usd_spent == pytest.approx(0.32)
    assert view.usd_left == pytest.approx(0.46)
    saved = write_run(folder, entries, starts=[START_TEXT, later], train_seconds=310.0, steps_done=30)
    assert see(saved, 7225.0).seconds_spent == pytest.approx(325.0)


@pytest.mark.parametrize(
    ("hours", "expected"),
    [(6, []), (7, ["BUDGET"]), (11, ["BUDGET"]), (14, ["BUDGET"]), (15, ["BUDGET", "BUDGET_ROLLBACK"])],
)
def test_budget_alerts_come_at_the_guides_amounts(tmp_path: Path, hours: float, expected: list[str]) -> None:
    """At $4 an hour: 24, 28, 44, 56 and 60 dollars."""
    folder = write_run(tmp_path / "run", [step_entry(500, 0.0)], state="done", train_seconds=hours * 3600)
    view = see(folder, 0.0, price=4.0)
    assert kinds(view) == expected
    passed = {7: "$25", 11: "$40", 14: "$50", 15: "$50"}
    if hours in passed:
        assert f"more than {passed[int(hours)]}:" in view.alerts[0].message


def test_gpus_are_read_as_nvidia_smi_writes_them(tmp_path: Path, nvidia_smi: Callable[[str], None]) -> None:
    nvidia_smi(f"cat <<'END'\n{A100_PAIR}END")
    first, second = read_gpus(10.0)
    assert (first.name, first.load_pct, first.memory_used_gib, first.memory_total_gib) == (
        "NVIDIA A100-SXM4-40GB",
        97.0,
        31.0,
        40.0,
    )
    assert (first.temperature_celsius, first.power_watts, second.power_watts) == (71.0, 352.1, None)
    entries = [step_entry(10, 10.0, gpu_memory_gib=31.5, gpu_memory_fraction=0.8)]
    view = see(write_run(tmp_path / "run", entries, num_processes=2, train_seconds=3600.0), 10.0)
    assert kinds(view) == ["GPU_HOT"]
    assert "GPU 1 has 88 °C, above 85 °C" in view.alerts[0].message
    assert view.usd_per_hour == 3.98, "the table's price of two A100-40GB"
    assert view.gpu_memory_gib == 31.5
    finished = see(write_run(tmp_path / "run", entries, state="done"), 10.0)
    assert kinds(finished) == [], "heat after the run is not the run's"


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("sleep 60", "did not answer within"),
        ("echo 'NVIDIA-SMI has failed because'; exit 9", "nvidia-smi failed: NVIDIA-SMI has failed because"),
        ("echo hello", "wrote something else"),
    ],
)
def test_a_broken_nvidia_smi_is_a_note(nvidia_smi: Callable[[str], None], script: str, says: str) -> None:
    nvidia_smi(f"exec {script}" if script.startswith("sleep") else script)
    with pytest.raises(NoGpus, match=says):
        read_gpus(1.0)


def test_cards_that_do_not_say_are_not_guessed() -> None:
    (gpu,) = parse_gpus("0, GeForce, [Not Supported], [N/A], [N/A], N/A, [Unknown Error]\n")
    assert gpu.load_pct is gpu.memory_used_gib is gpu.temperature_celsius is gpu.power_watts is None


@pytest.mark.usefixtures("without_nvidia_smi")
def test_the_share_of_the_peak_and_the_price_follow_from_the_cards_that_the_run_recorded(tmp_path: Path) -> None:
    """10 samples/s of 1248 GFLOP are 12.48 TFLOP/s; two A100 can do 624."""
    hardware = {"gpus": [{"name": "NVIDIA A100-SXM4-40GB", "memory_gib": 39.4}] * 2}
    entries = [step_entry(10, 10.0, samples_per_second=10.0, gpu_memory_gib=30.0)]
    facts = {"num_processes": 2, "hardware": hardware, "gflop_per_sample": {"B": 1248.0, "A": 1300.0}}
    view = see(write_run(tmp_path / "run", entries, **facts), 20.0)
    assert view.mfu_fraction == pytest.approx(0.02)
    assert view.usd_per_hour == 3.98
    assert "10.0 samples/s, 2.0% of the cards' peak rate (MFU)" in "\n".join(plain_lines(view))
    unknown = see(write_run(tmp_path / "run", entries, hardware={"gpus": []}), 20.0)
    assert unknown.mfu_fraction is None


def test_watching_asks_a_run_that_has_spent_its_budget_to_save_and_end(
    living_run: tuple[Path, subprocess.Popen[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, process = living_run
    flags = ["watch", str(folder), "--once", "--price", "360000", "--max-budget"]
    assert main([*flags, "1000000"]) == 1, "the first budget alerts are far behind"
    assert process.poll() is None
    assert "of the budget of $1000000.00 left" in capsys.readouterr().out
    assert main([*flags, "0.01"]) == 1
    assert f"process {process.pid} is asked to save and end" in capsys.readouterr().out
    assert process.wait(timeout=20) == -signal.SIGTERM, "this one does not know how to save"


@pytest.mark.usefixtures("without_nvidia_smi")
def test_no_price_is_invented(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [step_entry(10, 10.0)])
    view = see(folder, 20.0)
    assert (view.usd_spent, view.usd_left) == (None, None)
    assert "give --price" in view.price_source
    assert see(folder, 20.0, price=2.0).price_source == "--price"
    write_run(folder, [step_entry(10, 10.0)], recipe={"plan": {"price": 1.5}, "train": {"stages": STAGES}})
    assert see(folder, 20.0).usd_per_hour == 1.5


def test_without_a_terminal_a_line_is_written_whenever_the_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [step_entry(10, 10.0)]
    folder = write_run(tmp_path / "run", entries)
    monkeypatch.setattr(watch.time, "time", lambda: START + 30.0)
    rounds = iter(range(3))

    def go_on(seconds: float) -> None:
        assert seconds == 5.0
        number = next(rounds)
        if number == 1:
            alert = {"alert": "GRAD_NORM_HIGH", "message": "unstable", "step": 20, "time": START + 20}
            write_run(folder, [*entries, step_entry(20, 20.0), alert])
        if number == 2:
            write_run(folder, [*entries, step_entry(20, 20.0), alert_entry(), step_entry(500, 25.0)], state="done")

    def alert_entry() -> dict[str, Any]:
        return {"alert": "GRAD_NORM_HIGH", "message": "unstable", "step": 20, "time": START + 20}

    assert watch.follow_in_lines(Watch(run_dir=folder), go_on) == 1
    out = capsys.readouterr().out.splitlines()
    at_20 = next(index for index, line in enumerate(out) if "training, stage B, step 20 of 500" in line)
    assert out[at_20 + 1] == "ALERT GRAD_NORM_HIGH at step 20: unstable"
    assert "finished, stage B, step 500 of 500" in out[at_20 + 2]
    assert len(out) == at_20 + 3, "nothing is written while nothing happens"


def test_on_a_terminal_texts_of_the_run_are_no_markup(tmp_path: Path) -> None:
    alert = {"alert": "LOSS", "message": "[bold]x[/bold] [link=http://e]y[/link]", "step": 3, "time": START}
    folder = write_run(tmp_path / "run", [step_entry(500, 1.0), alert], state="done")
    out = io.StringIO()
    code = watch.follow_on_terminal(Watch(run_dir=folder), Console(file=out, force_terminal=True, width=100))
    assert code == 1
    assert "[bold]x[/bold] [link=http://e]y[/link]" in out.getvalue()


def test_a_real_terminal_gets_a_panel_and_a_pipe_plain_lines(real_run: Path) -> None:
    command = [sys.executable, "-m", "caspi", "watch", str(real_run)]
    piped = subprocess.run(command, capture_output=True, text=True)
    assert piped.returncode == 1
    assert "\x1b" not in piped.stdout
    assert "WER 24.15%, CER 18.82% at step 250" in piped.stdout
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=os.environ | {"TERM": "xterm"}) as process:
        os.close(theirs)
        shown = b"".join(iter(lambda: read_terminal(ours), b"")).decode()
    os.close(ours)
    assert process.returncode == 1
    assert "╭" in shown
    assert "WER 24.15%" in shown


def read_terminal(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # the other side is closed
        return b""


def test_a_reader_that_goes_away_is_no_error(real_run: Path) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    command = [sys.executable, "-m", "caspi", "watch", str(real_run), "--once"]
    done = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, text=True)
    os.close(theirs)
    assert (done.returncode, done.stderr) == (141, "")


def test_watching_writes_nothing_into_the_run(real_run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in real_run.iterdir()}
    main(["watch", str(real_run), "--once"])
    assert {path: path.stat().st_mtime_ns for path in real_run.iterdir()} == before
