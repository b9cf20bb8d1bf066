"""`caspi train` as a user runs it: stages, kills, signals, refusals."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import (
    NUM_STEPS,
    STEPS_PER_EPOCH,
    build_inputs,
    train,
    train_in_child,
    weights,
    weights_hash,
)

from caspi.model.training.trainer import StageTrainer


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def finished(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run that nobody disturbed, with every checkpoint kept."""
    output = tmp_path_factory.mktemp("finished")
    assert train_in_child(recipe, output, "--save-total-limit", "9") == 0
    return output


def state_of(folder: Path) -> dict[str, list[dict[str, float]]]:
    state: dict[str, list[dict[str, float]]] = json.loads((folder / "trainer_state.json").read_text())
    return state


def trained_groups(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_a_run_ends_with_a_model_its_history_and_its_record(finished: Path) -> None:
    assert {path.name for path in finished.glob("checkpoint-*")} == {f"checkpoint-{n}" for n in (3, 4, 6, 8)}
    history = state_of(finished)["log_history"]
    assert history[-1]["step"] == NUM_STEPS
    assert {"eval_loss", "eval_wer", "eval_cer", "eval_wer_kan_clean"} <= history[-1].keys()
    assert [entry["step"] for entry in history if "eval_wer" in entry] == [3, 4, 6, 8]
    assert [entry["step"] for entry in history if "loss" in entry] == list(range(1, 9))
    record = json.loads((finished / "run.json").read_text())
    assert record["state"] == "done"
    assert "a test" in record["gate"]["accepted_risk"]
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 9))
    log = (finished / "training.log").read_text()
    for milestone in ("Effective batch: 6 (3 × 2 × 1)", "EPOCH 2: Switching to Strategy A", "✓ Final WER:"):
        assert milestone in log
    assert not list(finished.rglob("training_args.bin"))
    assert list((finished / "runs").glob("events.out.tfevents.*"))


def test_the_final_model_is_the_best_checkpoint(finished: Path) -> None:
    evaluations = [entry for entry in state_of(finished)["log_history"] if "eval_wer" in entry]
    best = min(evaluations, key=lambda entry: (entry["eval_wer"], entry["eval_loss"]))
    assert weights_hash(finished) == weights_hash(finished / f"checkpoint-{best['step']}")


def test_the_guides_jq_lines_work(finished: Path) -> None:
    script = '.log_history[] | select(.eval_wer) | "\\(.eval_wer) \\(.step)"'
    assert all("eval_wer" in entry for entry in [state_of(finished / "checkpoint-3")["log_history"][-1]])
    if subprocess.run(["which", "jq"], capture_output=True, check=False).returncode:
        pytest.skip("jq is not installed")
    path = str(finished / "checkpoint-8" / "trainer_state.json")
    done = subprocess.run(["jq", "-r", script, path], capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 4


def test_stage_b_moves_its_groups_and_nothing_else_and_stage_a_adds_the_audio_top(recipe: Path, finished: Path) -> None:
    base = weights(recipe.parent / "base")
    boundary = weights(finished / f"checkpoint-{STEPS_PER_EPOCH}")
    end = weights(finished / f"checkpoint-{NUM_STEPS}")
    stage_b = trained_groups(base, boundary)
    stage_a = trained_groups(boundary, end)
    audio_top = {name for name in base if name.startswith("model.audio_tower.layers.2.")}
    # The bias of attention keys shifts all scores alike: its gradient is zero but for rounding.
    assert audio_top - stage_a <= {"model.audio_tower.layers.2.self_attn.k_proj.bias"}
    assert stage_a - audio_top <= stage_b
    for name in base:
        allowed = name.startswith(
            (
                "model.multi_modal_projector.",
                "model.language_model.layers.1.",
                "model.language_model.layers.2.",
                "model.language_model.embed_tokens.",
            )
        )
        assert (name in stage_b) == allowed, name


FROZEN = (
    *("model.audio_tower.conv", "model.audio_tower.layers.0.", "model.audio_tower.layers.1."),
    *("model.audio_tower.ln_post.", "model.language_model.layers.0.", "model.language_model.norm."),
)


def test_what_is_frozen_is_bit_unchanged_name_by_name_in_both_stages(recipe: Path, finished: Path) -> None:
    base = weights(recipe.parent / "base")
    frozen = {name for name in base if name.startswith(FROZEN)}
    assert all(any(name.startswith(prefix) for name in frozen) for prefix in FROZEN)
    for step in (3, STEPS_PER_EPOCH, 6, NUM_STEPS):
        now = weights(finished / f"checkpoint-{step}")
        assert [name for name in sorted(frozen) if not torch.equal(now[name], base[name])] == []
        others = [name for name in now if name not in frozen and "k_proj.bias" not in name]
        expected = {n for n in others if step > STEPS_PER_EPOCH or not n.startswith("model.audio_tower.layers.2.")}
        assert trained_groups(base, now) - {n for n in now if "k_proj.bias" in n} == expected


def test_learning_rates_are_logged_as_used(finished: Path) -> None:
    used = {entry["step"]: entry for entry in state_of(finished)["log_history"] if "loss" in entry}
    assert used[1]["learning_rate_projector"] == pytest.approx(2e-3 / 3)
    assert used[3]["learning_rate_projector"] == pytest.approx(2e-3)
    assert "learning_rate_audio_top" not in used[4]
    assert used[5]["learning_rate_projector"] == pytest.approx(1e-3)
    assert used[5]["learning_rate_audio_top"] == pytest.approx(3e-4 / 2)
    assert used[6]["learning_rate_audio_top"] == pytest.approx(3e-4)


def plant_nan(step: int) -> None:
    original = StageTrainer.compute_loss

    def compute_loss(self: StageTrainer, *args: object, **kwargs: object) -> torch.Tensor:
        loss: Any = original(self, *args, **kwargs)  # type: ignore[arg-type]
        return loss * float("nan") if self.state.global_step == step else loss

    StageTrainer.compute_loss = compute_loss  # type: ignore[method-assign, assignment]


def test_a_nan_stops_the_run_before_the_weights_change(recipe: Path, finished: Path, tmp_path: Path) -> None:
    assert train_in_child(recipe, tmp_path, prepare=lambda: plant_nan(4)) == 3
    assert "step 5: the gradient norm is nan" in (tmp_path / "training.log").read_text()
    assert train_in_child(recipe, tmp_path) == 0
    assert weights_hash(tmp_path / "checkpoint-8") == weights_hash(finished / "checkpoint-8")


def supervise_the_prompt() -> None:
    from caspi.model.packed.batch import Clip
    from caspi.model.training.batch import Encoder, Example

    original = Encoder.clip

    def clip(self: Encoder, example: Example) -> Clip:
        made = original(self, example)
        return made._replace(num_targets=len(made.input_ids) - 1)

    Encoder.clip = clip  # type: ignore[method-assign]


def test_a_label_bug_stops_the_run_before_step_1(recipe: Path, tmp_path: Path) -> None:
    assert train_in_child(recipe, tmp_path, prepare=supervise_the_prompt) == 3
    assert "the labels are wrong" in (tmp_path / "training.log").read_text()
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.fixture
def interrupted(recipe: Path, tmp_path: Path) -> Path:
    """A run with checkpoints 3 and 4 that failed afterwards."""
    train_in_child(recipe, tmp_path, prepare=lambda: plant_nan(4))
    return tmp_path


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--weight-decay", "0.5"], "weight_decay: 0.01 -> 0.5"),
        (["--stages.1.learning-rates.audio-top", "1e-5"], "stages.1.learning_rates.audio_top: 0.0003 -> 1e-05"),
        (["--batch-size", "4"], "effective_batch_size: 6 -> 8"),
    ],
)
def test_a_resume_under_another_recipe_is_refused(
    flags: list[str], message: str, recipe: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(recipe, finished, *flags) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "--overwrite-recipe" in error


def test_a_resume_with_other_data_is_refused(recipe: Path, interrupted: Path, tmp_path: Path) -> None:
    lines = (recipe.parent / "manifest.jsonl").read_text().splitlines()
    shorter = recipe.parent / "shorter.jsonl"
    shorter.write_text("\n".join(lines[1:]) + "\n")
    assert train_in_child(recipe, interrupted, "--manifest", str(shorter)) == 2
    assert "the utterances of the manifest differ" in (interrupted / "training.log").read_text()


def test_another_split_into_micro_batches_goes_on_from_the_checkpoint(
    recipe: Path, finished: Path, interrupted: Path
) -> None:
    flags = ["--batch-size", "1", "--gradient-accumulation-steps", "6"]
    assert train_in_child(recipe, interrupted, *flags) == 0
    ours, theirs = weights(interrupted / "checkpoint-8"), weights(finished / "checkpoint-8")
    # Adam turns rounding of a zero gradient into full steps, so the attention's key biases are left out.
    gaps = {name: float((ours[name] - theirs[name]).abs().max()) for name in theirs if "k_proj.bias" not in name}
    assert max(gaps.values()) < 1e-4


def test_the_gate_must_be_open(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shut = tmp_path / "shut.toml"
    shut.write_text("\n".join(line for line in recipe.read_text().splitlines() if "accept_risk" not in line))
    assert train(shut, tmp_path / "out") == 1
    assert "caspi audit" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num-llm-top-layers", "9"], "num_llm_top_layers is 9"),
        (["--manifest", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--base-model", "/nowhere"], "/nowhere"),
        (["--max-audio-length-seconds", "0.6"], "0 utterances to train on"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_exit_code_2(
    flags: list[str], message: str, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(recipe, tmp_path, *flags) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
