"""The final model: one checkpoint's weights in the run's folder, proved by reading them back."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from caspi.files import read_object
from caspi.model.checkpoints.checkpoint import load_asr, save_asr
from caspi.model.training.run import Run
from caspi.model.training.weights import load_weights
from caspi.records import RunFailed, write_json

STATE_FILE = "trainer_state.json"


class FinalModel(NamedTuple):
    step: int
    wer: float
    """Fractions, as the evaluation at that step found them."""
    cer: float


def choose_step(state: dict[str, Any], which: Literal["best", "last"]) -> int:
    return int(state["best_global_step"] if which == "best" else state["global_step"])


def write_final_model(run: Run, checkpoint: Path, state: dict[str, Any], step: int) -> FinalModel:
    """Put the weights of a checkpoint into the output folder, with the whole history.

    Raises:
        RunFailed: what was read back is not what was written.
    """
    folder = run.config.output_dir
    if run.adapters:
        run.adapters.remove()
    load_weights(run.model, checkpoint)
    # The Trainer's own mark; without it the same command after the end writes the same bytes.
    vars(run.model.config).pop("use_cache", None)
    save_asr(run.model, run.processor, folder)
    prove_reload(run, folder)
    write_json(folder / STATE_FILE, state)
    scores = next(entry for entry in reversed(state["log_history"]) if entry["step"] == step and "eval_wer" in entry)
    return FinalModel(step, scores["eval_wer"], scores["eval_cer"])


def prove_reload(run: Run, folder: Path) -> None:
    try:
        model, _ = load_asr(folder, torch.float32)
    except ValueError as error:
        raise RunFailed(f"the final model in {folder} does not load: {error}") from error
    written, found = run.model.state_dict(), model.state_dict()
    differing = [name for name in found if not torch.equal(found[name], written[name].detach().cpu().float())]
    if differing or written.keys() != found.keys():
        raise RunFailed(f"the final model in {folder} is not what was written: {', '.join(differing[:3])} differ")


def read_state(checkpoint: Path) -> dict[str, Any]:
    return read_object(checkpoint / STATE_FILE)
