"""The deployment guide's numbers, paths and commands."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from documents import commands_of, words_of

from caspi.cli import parse
from caspi.config import Recipe, load_recipe

ROOT = Path(__file__).parents[1]
GUIDE = ROOT.parent / "shared" / "seed" / "ROUND2_DEPLOYMENT_GUIDE.md"
ENTRY_POINTS = {
    "train_round2_gradual.py": "train",
    "scripts/phase0_align_audit.py": "audit",
    "scripts/eval_round2.py": "compare",
    "qwen3-asr-hebrew-model/scripts/benchmark.py": "evaluate",
}


def test_the_effective_batch_is_64_on_two_gpus() -> None:
    train = Recipe().train
    assert (train.batch_size, train.gradient_accumulation_steps) == (2, 16)
    assert train.effective_batch_size(num_processes=2) == 64


def test_strategy_b_then_a_with_the_guides_learning_rates() -> None:
    train = Recipe().train
    b, a = train.stages
    assert (b.name, b.num_epochs) == ("B", 2)
    assert b.learning_rates == {"projector": 2e-4, "llm_top": 5e-5, "lm_head": 1e-4}
    assert (a.name, a.num_epochs) == ("A", 3)
    assert a.learning_rates == {"projector": 1e-4, "audio_top": 3e-5, "llm_top": 3e-5, "lm_head": 1e-4}
    assert train.num_epochs() == 5
    assert train.first_epoch_number(1) == 3
    assert (train.num_llm_top_layers, train.num_audio_top_layers) == (12, 8)


def test_audio_lengths_warm_up_and_evaluation_follow_the_guide() -> None:
    recipe = Recipe()
    assert recipe.train.max_audio_length_seconds == 15.0
    assert recipe.prepare.max_duration_seconds == 15.0
    assert recipe.train.eval_steps == 500
    assert recipe.train.warmup_steps == 500
    assert recipe.train.base_model == "Qwen/Qwen3-ASR-1.7B"


def test_phase_0_samples_a_tenth_40_40_20_and_decides_at_10_and_15_percent() -> None:
    audit = Recipe().audit
    assert audit.sample_rate_without_gpu == 0.10
    assert audit.domain_shares == {"whatsapp_noisy": 0.4, "kan_clean": 0.4, "long_tail": 0.2}
    assert (audit.proceed_below_pct, audit.stop_above_pct) == (10.0, 15.0)


def test_datasets_test_sets_and_models_are_the_guides() -> None:
    recipe = Recipe()
    assert recipe.prepare.datasets == (
        "ivrit-ai/crowd-transcribe-v5",
        "ivrit-ai/crowd-recital-whisper-training",
    )
    names = [entry.partition("=")[0] for entry in recipe.evaluate.test_sets]
    assert names == ["eval-d1", "eval-whatsapp", "hebrew-speech-kan", "saspeech"]
    assert recipe.compare.round1_model == "OzLabs/Qwen3-ASR-Hebrew-1.7B"
    assert str(recipe.compare.output) == "round2_comparison.csv"
    assert str(recipe.audit.output / "alignment_report.json") == str(recipe.gate.report)


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda path: path.name)
def test_every_recipe_is_valid(path: Path) -> None:
    load_recipe(path)


def test_the_round2_recipe_only_spells_out_the_defaults() -> None:
    assert load_recipe(ROOT / "recipes" / "round2.toml") == Recipe()


def test_the_conservative_recipe_is_slower_and_shorter() -> None:
    conservative = load_recipe(ROOT / "recipes" / "conservative.toml").train
    assert conservative.num_epochs() == 3
    assert conservative.stages[0].learning_rates["llm_top"] == 2e-5
    for slow, usual in zip(conservative.stages, Recipe().train.stages, strict=True):
        assert all(slow.learning_rates[group] < rate for group, rate in usual.learning_rates.items())


@pytest.mark.parametrize("path", ENTRY_POINTS)
def test_the_guides_entry_points_show_the_help_of_their_step(path: str) -> None:
    result = subprocess.run(
        [sys.executable, str(ROOT / path), "--help"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert f"usage: caspi {ENTRY_POINTS[path]}" in result.stdout


@pytest.mark.parametrize("path", ENTRY_POINTS)
def test_importing_an_entry_point_starts_nothing(path: str) -> None:
    code = f"import runpy; runpy.run_path({str(ROOT / path)!r}, run_name='worker')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout + result.stderr == ""


def our_commands(text: str) -> list[list[str]]:
    """Commands that run a step of caspi, as [step, flags ...]."""
    found = []
    for command in commands_of(text):
        words = words_of(command)
        if words[:3] == ["uv", "run", "python"] and words[3] in ENTRY_POINTS:
            found.append([ENTRY_POINTS[words[3]], *words[4:]])
        elif "caspi" in words[:1]:
            found.append(words[1:])
    return found


@pytest.mark.skipif(not GUIDE.exists(), reason="the deployment guide lies beside the checkout only in our workplace")
def test_every_command_of_the_guide_that_runs_our_code_is_understood(capsys: pytest.CaptureFixture[str]) -> None:
    commands = our_commands(GUIDE.read_text(encoding="utf-8"))
    assert {command[0] for command in commands} == {"audit", "train", "compare", "evaluate"}
    for step, *flags in commands:
        parse(step, flags)


def test_the_dependencies_name_what_the_guide_requires() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[<>=\[]", line)[0] for line in project["dependencies"]}
    assert names >= {"torch", "transformers", "datasets", "peft", "wandb", "soundfile", "jiwer"}


def test_no_registry_host_is_named_in_the_pins() -> None:
    for path in (ROOT / "requirements").glob("*.txt"):
        assert "://" not in path.read_text(), path
