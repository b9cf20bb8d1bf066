"""A training run as `caspi train` leaves it, made in a second: tiny real models and checkpoints, made-up rates."""

import json
from pathlib import Path

import numpy as np
import torch

from caspi.config import Language, Recipe, Stage, Train
from caspi.model.checkpoints.checkpoint import save_asr
from caspi.model.tiny_models import build_tiny_asr
from caspi.model.training.layers import assign_groups
from caspi.ops.training.artifacts import commit
from caspi.ops.training.training_record import weights_recipe
from caspi.records import Utterance, write_json, write_jsonl
from caspi.speech.corpora.audio import write_audio

STAGES = (
    Stage(name="B", num_epochs=1, learning_rates={"projector": 1e-3, "llm_top": 1e-3}),
    Stage(name="A", num_epochs=1, learning_rates={"projector": 1e-3, "llm_top": 1e-3, "audio_top": 1e-3}),
)
SWITCH_STEP = 200
"""Last step of stage B."""
WERS = {100: 0.31, 200: 0.12, 300: 0.18}
CLIP_SECONDS = 1.5


def make_run(folder: Path, wers: dict[int, float] = WERS) -> Path:
    """A run folder `round2` beside its base model, its manifest and a clip; returns the run folder."""
    run_dir = folder / "round2"
    base, processor = build_tiny_asr(seed=0)
    save_asr(base, processor, folder / "base")
    manifest = make_manifest(folder)
    train = Train(
        manifest=manifest,
        output_dir=run_dir,
        base_model=str(folder / "base"),
        stages=STAGES,
        num_llm_top_layers=1,
        num_audio_top_layers=1,
    )
    recipe = Recipe(train=train, language=Language(name="Hebrew"))
    for step in wers:
        make_checkpoint(run_dir, step, wers, recipe)
    write_json(run_dir / "run.json", {"recipe": recipe.model_dump(mode="json"), "wandb_run_id": "abc123"})
    (run_dir / "training.log").write_text("2026-01-01 training\n", encoding="utf-8")
    return run_dir


def make_manifest(folder: Path) -> Path:
    rng = np.random.default_rng(7)
    samples = (0.1 * rng.standard_normal(int(CLIP_SECONDS * 16_000))).astype(np.float32)
    write_audio(folder / "clip.wav", samples)
    row = Utterance(id="one", audio_filepath="clip.wav", text="שלום", duration=CLIP_SECONDS, domain="kan_clean")
    write_jsonl(folder / "manifest.jsonl", [row])
    return folder / "manifest.jsonl"


def make_checkpoint(run_dir: Path, step: int, wers: dict[int, float], recipe: Recipe) -> Path:
    """The base with noise in what had trained by that step, and the history up to it."""
    model, processor = build_tiny_asr(seed=0)
    stage = STAGES[0] if step <= SWITCH_STEP else STAGES[1]
    names = trained_names(model, stage)
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in names:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.01)
    folder = run_dir / f"checkpoint-{step}"
    save_asr(model, processor, folder)
    history = [
        {"step": s, "eval_wer": wer, "eval_loss": 1.0, "eval_cer": wer / 2} for s, wer in wers.items() if s <= step
    ]
    state = {"global_step": step, "log_history": [{"step": 10, "loss": 3.0}, *history]}
    (folder / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")
    commit(
        folder,
        step=step,
        stage=stage.name,
        trainable=sorted(names),
        world_size=1,
        recipe=weights_recipe(recipe, 1),
        data_sha256="0" * 64,
        versions={},
    )
    return folder


def trained_names(model: torch.nn.Module, stage: Stage) -> set[str]:
    assigned = assign_groups(model, 1, 1)  # type: ignore[arg-type]
    return {name for name, group in assigned.items() if group in stage.learning_rates}
