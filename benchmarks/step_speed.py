"""C5: one optimizer step from audio files to updated weights, on the CPU at reduced width and the full vocabulary.

    OMP_NUM_THREADS=1 python -m benchmarks.step_speed

Baselines: the official script's collator and its loss in micro-batches of two; the stock class in the same
micro-batches; the stock class on our labels-only padded path. All train the same layer groups.
"""

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3ASRForConditionalGeneration

from benchmarks.baselines import Batch, official_loss, stock_loss
from benchmarks.clip_files import Clip, write_clips
from benchmarks.measure import alternate, markdown_table, ratios, write_result
from benchmarks.models import SMALL, random_model
from benchmarks.official_collator import OfficialCollator
from benchmarks.processors import known_words, processor_with
from benchmarks.workload import clip_seconds
from caspi.config import STRATEGY_B, Train
from caspi.model.packed.batch import Packer
from caspi.model.packed.forward import take_packed_inputs
from caspi.model.training.batch import Encoder, StepBatch, Utterances
from caspi.model.training.layers import assign_groups, train_only
from caspi.model.training.optimizer import build_optimizer
from caspi.model.training.parts import PackedParts, PaddedParts, Parts, model_inputs
from caspi.records import Utterance

NUM_CLIPS = 16
MEAN_SECONDS = 5.7
LANGUAGE = "Hebrew"
OFFICIAL_MICRO_BATCH = 2
NUM_ROUNDS = 3
UNLIMITED_TOKENS = 1 << 40
RESULT = Path("docs/results/benchmarks/step_speed.json")

Loss = Callable[[Qwen3ASRForConditionalGeneration, Batch, int], torch.Tensor]


class Trained:
    """A model and its optimizer, ready for steps of strategy B."""

    def __init__(self, is_packed: bool) -> None:
        train = Train(num_llm_top_layers=3, num_audio_top_layers=2)
        self.model = random_model(SMALL, "cpu", torch.float32)
        self.model.config.audio_token_id = PROCESSOR.audio_token_id
        assigned = assign_groups(self.model, train.num_llm_top_layers, train.num_audio_top_layers)
        train_only(self.model, assigned, STRATEGY_B.learning_rates.keys())
        if is_packed:
            take_packed_inputs(self.model)
        self.optimizer = build_optimizer(self.model, assigned, weight_decay=train.weight_decay, beta2=train.adam_beta2)

    def update(self, losses: Sequence[Callable[[], torch.Tensor]]) -> float:
        total = 0.0
        for loss in losses:
            value = loss()
            value.backward()
            total += float(value.detach())
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total


PROCESSOR = processor_with(SMALL.mel_bins)


def official_step(trained: Trained, collate: OfficialCollator, loss: Loss, clips: Sequence[Clip]) -> float:
    batches = [
        collate(clips[first : first + OFFICIAL_MICRO_BATCH]) for first in range(0, len(clips), OFFICIAL_MICRO_BATCH)
    ]
    num_targets = sum(int((batch["labels"][:, 1:] >= 0).sum()) for batch in batches)
    return trained.update([partial(loss, trained.model, batch, num_targets) for batch in batches])


def engine_step(trained: Trained, parts: Parts, utterances: Utterances) -> float:
    """As the engine computes it: dataset, collator, parts, loss."""
    collate = parts.collator()
    step: StepBatch = collate([utterances[(0, index)] for index in range(len(utterances))])

    def loss_of(part: Any) -> torch.Tensor:
        inputs = model_inputs(part, torch.device("cpu"))
        loss: torch.Tensor = trained.model(**inputs, num_items_in_batch=step.num_target_tokens).loss
        return loss

    return trained.update([partial(loss_of, part) for part in parts.of_step(step)])


def subjects(clips: Sequence[Clip]) -> dict[str, Callable[[], float]]:
    encoder = Encoder(PROCESSOR, LANGUAGE)
    utterances = Utterances([utterance_of(clip) for clip in clips], encoder)
    official = OfficialCollator(PROCESSOR, LANGUAGE)
    packed = Trained(is_packed=True)
    packer = Packer(packed.model.config, encoder.pad_id)
    return {
        "official script, 2 x 8": partial(official_step, Trained(False), official, official_loss, clips),
        "stock class, 2 x 8": partial(official_step, Trained(False), official, stock_loss, clips),
        "ours, padded, 2 x 8": partial(engine_step, Trained(False), PaddedParts(encoder, 2), utterances),
        "ours, packed": partial(engine_step, packed, PackedParts(encoder, packer, UNLIMITED_TOKENS), utterances),
    }


def utterance_of(clip: Clip) -> Utterance:
    return Utterance(
        id=clip.path.stem, audio_filepath=str(clip.path), offset=0.0, duration=clip.seconds, text=clip.text,
        domain="kan_clean",
    )  # fmt: skip


def run(num_rounds: int = NUM_ROUNDS) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        seconds = clip_seconds(NUM_CLIPS, MEAN_SECONDS, seed=3)
        clips = write_clips(Path(folder), seconds.tolist(), known_words(), 3, "wav")
        steps = subjects(clips)
        first_losses = {name: step() for name, step in steps.items()}
        timings = alternate(steps, num_rounds, num_warmups=0)
    faster = ratios(timings, "ours, packed")
    rows = [
        (name, f"{first_losses[name]:.4f}", f"{timing.median:.2f}", f"{timing.spread_fraction:.0%}",
         f"{NUM_CLIPS / timing.median:.2f}", f"{faster.get(name, 1.0):.2f}")
        for name, timing in timings.items()
    ]  # fmt: skip
    print(f"{NUM_CLIPS} clips, mean {seconds.mean():.1f} s, strategy B, float32, {torch.get_num_threads()} threads\n")
    print(markdown_table(("step", "first loss", "seconds", "spread", "clips/s", "ours is faster by"), rows))
    return {
        "first_losses": first_losses,
        "seconds": {name: timing.seconds for name, timing in timings.items()},
        "ours_is_faster_by": faster,
    }


if __name__ == "__main__":
    write_result(RESULT, run())
