"""What the trainings of the tiny models that ship share: batches, the loop, one thread, the record."""

import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, Protocol, TypeVar

import torch

from caspi.config import TinyTraining
from caspi.speech.seeds import seeded_generator

VERSIONS_OF = ("torch", "transformers", "tokenizers", "espeakng-loader", "numpy", "soxr")

Progress = Callable[[str], None]


class HasFeatures(Protocol):
    @property
    def features(self) -> torch.Tensor:
        """[num_mel_bins, num_frames]"""
        ...


Clip = TypeVar("Clip", bound=HasFeatures)


def draw_batches(examples: Sequence[Clip], settings: TinyTraining, *purpose: str) -> Iterator[list[Clip]]:
    """Endless batches of clips of like length, drawn without regard to earlier ones."""
    rng = seeded_generator(settings.seed, *purpose)
    size = settings.batch_size
    while True:
        drawn = rng.choice(len(examples), size * settings.length_group, replace=False)
        by_length = sorted(drawn.tolist(), key=lambda index: (examples[index].features.shape[1], index))
        first = int(rng.integers(settings.length_group)) * size
        yield [examples[index] for index in by_length[first : first + size]]


def optimize(
    model: torch.nn.Module,
    loss_of: Callable[[list[Clip]], torch.Tensor],
    num_steps: int,
    peak_rate: float,
    batches: Iterator[list[Clip]],
    settings: TinyTraining,
    progress: Progress,
) -> None:
    """AdamW with a linear rise and fall of the rate."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=peak_rate, betas=(0.9, settings.adam_beta2), weight_decay=settings.weight_decay
    )
    for step in range(num_steps):
        rise = min(1.0, (step + 1) / settings.warmup_steps)
        optimizer.param_groups[0]["lr"] = peak_rate * rise * max(settings.final_rate_fraction, 1 - step / num_steps)
        loss = loss_of(next(batches))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 100 == 0:
            progress(f"step {step + 1} of {num_steps}: loss {loss.item():.3f}")


def build_record(command: str, settings: TinyTraining, measured: dict[str, Any]) -> dict[str, Any]:
    """build.json: how a model was made, and what it reached."""
    return {
        "command": command,
        "settings": settings.model_dump(mode="json"),
        "versions": {name: version(name) for name in VERSIONS_OF} | {"python": platform.python_version()},
        "machine": platform.machine(),
        **measured,
    }


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums over several threads are added in changing order; and for models this small one thread is faster."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
