"""The whole flow through the command line, small: every step, its files, the deployment guide's jq lines."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from caspi.model.assets import TINY_BASE

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.espeak, pytest.mark.timeout(900)]

SMALL = """
[demo]
num_audit_utterances = 60
audit_domain_shares = { kan_clean = 0.5, whatsapp_noisy = 0.5 }
num_train_utterances = 96
num_validation_utterances = 24
num_test_utterances = 12
round2_must_win = false

[[demo.audits]]
name = "blind-aligner"
defect_fraction = 0.02
backend = "uniform"
expected = "AUDIT_INVALID"
"""


def caspi(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "caspi", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a small demo has run; its recipe lies beside it as small.toml."""
    folder = tmp_path_factory.mktemp("flow")
    text = (ROOT / "recipes" / "demo.toml").read_text(encoding="utf-8").replace('[demo]\noutput = "demo"\n', SMALL)
    text = text.replace("num_samples = 200", "num_samples = 96").replace("eval_steps = 50", "eval_steps = 10")
    (folder / "small.toml").write_text(text, encoding="utf-8")
    result = caspi("demo", "--recipe", "small.toml", folder=folder)
    (folder / "printed.txt").write_text(result.stdout, encoding="utf-8")
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return folder


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_demo_leaves_what_every_step_promises(flow: Path) -> None:
    promised = [
        "data/train/manifest.jsonl",
        "data/train/quarantine.jsonl",
        "phase0_audit_results/alignment_report.json",
        "phase0_audit_results/samples.jsonl",
        "phase0_audit_results/word_spans.jsonl.gz",
        "phase0_audit_results/audit.html",
        "audits/blind-aligner/audit.html",
        "phase0_signoff.txt",
        "qwen3-asr-hebrew-round2/model.safetensors",
        "qwen3-asr-hebrew-round2/trainer_state.json",
        "qwen3-asr-hebrew-round2/training.log",
        "qwen3-asr-hebrew-round2/metrics.jsonl",
        "qwen3-asr-hebrew-round2/run.json",
        "comparison/round1/predictions.jsonl",
        "comparison/round2/predictions.jsonl",
        "round2_comparison.csv",
        "comparison.json",
        "index.html",
    ]
    assert [name for name in promised if not (flow / "demo" / name).is_file()] == []


def test_a_blind_aligner_ends_in_audit_invalid(flow: Path) -> None:
    report = read(flow / "demo/audits/blind-aligner/alignment_report.json")
    assert (report["decision"], report["decision_code"], report["audit_valid"]) == ("STOP", "AUDIT_INVALID", False)


def test_stage_a_begins_at_the_first_step_of_epoch_3(flow: Path) -> None:
    printed = (flow / "printed.txt").read_text(encoding="utf-8")
    switch = printed.index("EPOCH 3: Switching to Strategy A")
    assert printed.index("Epoch 2/5:") < switch < printed.index("Epoch 3/5:")
    assert "✓ Strategy A activated" in printed


def test_training_starts_from_the_base_and_changes_only_what_is_unfrozen(flow: Path) -> None:
    from safetensors.torch import load_file

    before = load_file(TINY_BASE / "model.safetensors")
    after = load_file(flow / "demo/qwen3-asr-hebrew-round2/checkpoint-30/model.safetensors")
    changed = {name for name in before if not before[name].float().equal(after[name].float())}
    assert changed
    frozen = [name for name in before if "audio_tower.conv" in name or "language_model.layers.0." in name]
    assert frozen
    assert not changed & set(frozen)
    assert any("audio_tower.layers.2." in name for name in changed)


@pytest.mark.skipif(not shutil.which("jq"), reason="jq is not installed")
def test_the_guides_jq_lines_work(flow: Path) -> None:
    report, run = "phase0_audit_results/alignment_report.json", "qwen3-asr-hebrew-round2"
    best = (
        f"cat {run}/checkpoint-*/trainer_state.json | "
        "jq -r '.log_history[] | select(.eval_wer) | \"\\(.eval_wer) \\(.step)\"' | sort -n | head -1"
    )
    lines = {
        f"cat {report} | jq '.decision'": r'"(PROCEED|CAUTION)"',
        f"cat {report} | jq '.low_quality_percentage'": r"[0-9.]+",
        f"cat {report} | jq '.domain_statistics' | jq -r 'keys[]'": r"kan_clean\nwhatsapp_noisy",
        f"cat {run}/checkpoint-30/trainer_state.json | jq '.log_history[-1]' | jq '.eval_wer > 0'": "true",
        best: r"0\.\d+ \d+",
    }
    for line, expected in lines.items():
        result = subprocess.run(["bash", "-c", line], cwd=flow / "demo", capture_output=True, text=True, check=True)
        assert re.fullmatch(expected, result.stdout.strip()), (line, result.stdout)


def test_the_same_command_after_the_end_writes_the_same_model(flow: Path) -> None:
    folder = flow / "demo/qwen3-asr-hebrew-round2"
    names = ["model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja", "trainer_state.json"]
    before = {name: (folder / name).read_bytes() for name in names}
    result = caspi("train", "--recipe", "small.toml", folder=flow)
    assert result.returncode == 0, result.stderr
    assert [name for name in names if (folder / name).read_bytes() != before[name]] == []


def test_a_demo_clears_no_folder_that_no_demo_wrote(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    result = caspi("demo", "--output", "mine", folder=tmp_path)
    assert result.returncode == 2
    assert "was not written by caspi demo" in result.stderr
    assert (tmp_path / "mine/thesis.txt").exists()


def test_the_gate_stays_shut_for_another_manifest(flow: Path) -> None:
    other = flow / "demo/data/eval-d1/manifest.jsonl"
    result = caspi("train", "--recipe", "small.toml", "--manifest", str(other), "--output-dir", "x", folder=flow)
    assert result.returncode == 1
    assert "manifest" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_unsigned_report_keeps_training_shut_and_a_signature_opens_it(flow: Path, tmp_path: Path) -> None:
    signoff = tmp_path / "signoff.txt"
    command = ("gate", "--recipe", "small.toml", "--signoff-file", str(signoff))
    assert caspi("train", "--recipe", "small.toml", "--signoff-file", str(signoff), folder=flow).returncode == 1
    assert caspi(*command, "--signoff", "a reviewer", folder=flow).returncode == 0
    assert "a reviewer" in signoff.read_text()
    assert caspi(*command, folder=flow).returncode == 0


def test_comparing_the_archived_predictions_again_gives_the_same_bytes(flow: Path) -> None:
    first = (flow / "demo/comparison.json").read_bytes()
    table = (flow / "demo/round2_comparison.csv").read_bytes()
    caspi("compare", "--recipe", "small.toml", folder=flow)
    caspi("compare", "--recipe", "small.toml", folder=flow)
    assert (flow / "demo/round2_comparison.csv").read_bytes() == table
    assert {row["test_set"] for row in json.loads(first)["rows"]} >= {"eval-d1", "eval-whatsapp", "mean_wer"}


class Page(HTMLParser):
    """Collects what a page would fetch, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values: Mapping[str, str | None] = dict(attrs)
        self.scripts += tag == "script"
        self.fetched += [str(values[name]) for name in ("src", "data") if values.get(name)]
        if tag == "a":
            self.links.append(str(values["href"]))


def test_the_page_is_self_contained_and_its_links_exist(flow: Path) -> None:
    page = Page()
    page.feed((flow / "demo/index.html").read_text(encoding="utf-8"))
    assert page.fetched == []
    assert page.scripts == 0
    assert page.links
    assert [link for link in page.links if not (flow / "demo" / link).exists()] == []


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_full_demo_improves_the_noisy_set_and_repeats_its_reports(tmp_path: Path) -> None:
    reports = []
    for name in ("first", "second"):
        result = caspi("demo", "--output", name, folder=tmp_path)
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
        report = read(tmp_path / name / "phase0_audit_results/alignment_report.json")
        for key in ("created_utc", "wall_seconds"):
            report["provenance"].pop(key)
        table = (tmp_path / name / "round2_comparison.csv").read_bytes()
        reports.append((report["low_quality_percentage"], report["detailed_metrics"], table))
    assert reports[0] == reports[1]
    rows = read(tmp_path / "first/comparison.json")["rows"]
    noisy = next(row for row in rows if row["test_set"] == "eval-whatsapp" and row["bucket"] == "all")
    assert noisy["verdict"] == "better"
    assert noisy["round2_wer"] < noisy["round1_wer"]
