"""A training run small enough for a test: noise clips, the tiny real model, two stages of one epoch each."""

import hashlib
import os
import signal
import socket
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate.state import AcceleratorState  # type: ignore[import-untyped]
from safetensors.torch import load_file

import caspi.train  # noqa: F401  # once here instead of in every fork
from caspi.cli import main
from caspi.model.checkpoints.checkpoint import save_asr
from caspi.model.tiny import build_tiny_asr
from caspi.model.training.trainer import StageTrainer
from caspi.records import Utterance, sha256_of_file, write_jsonl
from caspi.speech.corpora.audio import write_audio

WORDS = ["שלום", "בוקר", "טוב", "ילד", "ילדה", "בית", "ספר", "מים", "לחם", "חלב"]
NUM_TRAINING, NUM_EVALUATION = 22, 4
RECIPE = """
[train]
manifest = "{folder}/manifest.jsonl"
base_model = "{folder}/base"
signoff_file = "{folder}/signoff.txt"
gate_report = "{folder}/no_report.json"
accept_risk = "a test"
yes = true
num_llm_top_layers = 2
num_audio_top_layers = 1
batch_size = 3
gradient_accumulation_steps = 2
warmup_steps = 3
rewarmup_steps = 2
eval_steps = 3
logging_steps = 1
max_wer_utterances = 2
max_new_tokens = 4
[[train.stages]]
name = "B"
num_epochs = 1
learning_rates = {{ projector = 2e-3, llm_top = 5e-4, lm_head = 1e-3 }}
[[train.stages]]
name = "A"
num_epochs = 1
learning_rates = {{ projector = 1e-3, audio_top = 3e-4, llm_top = 3e-4, lm_head = 1e-3 }}
"""
STEPS_PER_EPOCH = 4
"""22 clips, 6 per step, the last step of an epoch has 4."""
NUM_STEPS = 8


def build_inputs(folder: Path) -> Path:
    """Base model, clips, manifest and recipe; returns the recipe."""
    save_asr(*build_tiny_asr(), folder / "base")
    rng = np.random.default_rng(7)
    rows = []
    for index in range(NUM_TRAINING + NUM_EVALUATION):
        samples = (rng.standard_normal(int(rng.uniform(0.6, 1.6) * 16_000)) * 0.1).astype(np.float32)
        path = folder / f"clip{index}.wav"
        write_audio(path, samples)
        rows.append(
            Utterance(
                id=f"u{index}",
                audio_filepath=path.name,
                text=" ".join(rng.choice(WORDS, int(rng.integers(1, 5)))),
                duration=len(samples) / 16_000,
                domain="whatsapp_noisy" if index % 2 else "kan_clean",
                source="noise",
                split="train" if index < NUM_TRAINING else "eval",
                source_sha256=sha256_of_file(path),
            )
        )
    write_jsonl(folder / "manifest.jsonl", rows)
    recipe = folder / "recipe.toml"
    recipe.write_text(RECIPE.format(folder=folder), encoding="utf-8")
    return recipe


def train(recipe: Path, output: Path, *flags: str) -> int:
    """`caspi train` in this process."""
    return main(["train", "--recipe", str(recipe), "--output-dir", str(output), *flags])


def train_in_child(recipe: Path, output: Path, *flags: str, prepare: Callable[[], object] = lambda: None) -> int:
    """`caspi train` in a forked process, which may be killed; returns its exit code, negative for a signal.

    `prepare` runs in the child before, to plant whatever is to go wrong.
    """
    return os.waitstatus_to_exitcode(os.waitpid(fork(recipe, output, *flags, prepare=prepare), 0)[1])


def fork(recipe: Path, output: Path, *flags: str, prepare: Callable[[], object]) -> int:
    """Its process id."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            torch.set_num_threads(1)
            prepare()
            code = train(recipe, output, *flags)
        except BaseException:  # noqa: BLE001  # the child of a fork must never return into pytest
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def train_in_children(
    recipe: Path, output: Path, *flags: str, prepare: Callable[[int], object] = lambda rank: None
) -> list[int]:
    """`caspi train` in two forked processes, as torchrun would start them; returns their exit codes by rank."""
    children = fork_two(recipe, output, *flags, prepare=prepare)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def fork_two(
    recipe: Path, output: Path, *flags: str, prepare: Callable[[int], object] = lambda rank: None
) -> list[int]:
    """Process ids by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def join(rank: int) -> None:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="2")
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
        AcceleratorState._reset_state(reset_partial_state=True)
        prepare(rank)

    return [fork(recipe, output, *flags, prepare=partial(join, rank)) for rank in range(2)]


def kill_before_step(step: int) -> None:
    original = StageTrainer.training_step

    def training_step(self: StageTrainer, *args: object, **kwargs: object) -> torch.Tensor:
        if self.state.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *args, **kwargs)  # type: ignore[arg-type]

    StageTrainer.training_step = training_step  # type: ignore[method-assign]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def weights_hash(folder: Path) -> str:
    """Of names, shapes and bits, whatever the file's own layout."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights(folder).items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
    return digest.hexdigest()
