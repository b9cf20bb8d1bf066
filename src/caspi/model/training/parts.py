"""How a process's share of a step is cut into what is computed at once, padded or packed.

The utterances of a step never change, only the parts; the loss is normalised by the target tokens of the whole step, so
the result is the same to rounding. When memory runs out, all processes halve their parts together.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch

from caspi.model.packed.batch import PackedBatch, Packer
from caspi.model.training.batch import Encoder, Example, MicroBatch, Part, StepBatch, StepCollator
from caspi.model.training.processes import is_main_process, max_over_processes
from caspi.records import RunFailed

EVALUATION_TOKENS = 4096
"""Text positions that keep a GPU busy; more at once would leave processes without any in a small evaluation split."""

log = logging.getLogger(__name__)


class Parts(ABC):
    """One way to cut a share, and the limit that it keeps."""

    unit: str
    """What the limit counts."""
    record_key: str
    """Name of the limit in the checkpoint's marker."""

    def __init__(self, encoder: Encoder, limit: int) -> None:
        self.encoder = encoder
        self.largest_limit = limit
        """That of the recipe; the loader's workers keep to it, whatever happens later."""
        self.limit = limit

    @abstractmethod
    def make(self, examples: list[Example]) -> list[Part]:
        """Parts of at least one example, given the longest first, within `largest_limit`."""

    @abstractmethod
    def split(self, part: Part) -> list[Part]:
        """Within `limit`, as far as a single clip is."""

    @abstractmethod
    def worst(self, examples: list[Example]) -> Part:
        """The part that needs most memory, given the longest clips that there are."""

    @abstractmethod
    def sizes(self, part: Part) -> tuple[int, int]:
        """In the limit's unit, and in clips."""

    @abstractmethod
    def groups(self, lengths: Sequence[float]) -> list[list[int]]:
        """Neighbouring indices that may become one part, given estimated text positions."""

    @abstractmethod
    def to_evaluate(self, batch_size: int) -> "Parts":
        """Parts to evaluate on, whose limit does not depend on what happens in training."""

    def collator(self) -> StepCollator:
        return StepCollator(self.make, self.encoder.silence())

    def of_step(self, step: StepBatch) -> list[Part]:
        return [small for part in step.parts for small in self.split(part)]

    def halve(self, parts: Sequence[Part], reason: str, device: torch.device) -> None:
        """All processes call it together, each with the parts that it tried.

        Raises:
            RunFailed: each part was a single clip, on all processes.
        """
        sizes = [self.sizes(part) for part in parts]
        largest = max_over_processes(max(size for size, _ in sizes), device)
        if max_over_processes(max(clips for _, clips in sizes), device) == 1:
            raise RunFailed(
                f"{reason} with one utterance at a time: leave out the longest clips (--max-audio-length-seconds 12), "
                "train fewer layers (--num-llm-top-layers 8) or use a larger GPU"
            )
        before, self.limit = min(largest, self.limit), max(1, min(largest, self.limit) // 2)
        if is_main_process():
            message = "WARNING: %s: at most %d instead of %d %s at once; the step stays the same"
            log.warning(message, reason, self.limit, before, self.unit)

    @abstractmethod
    def advice(self) -> str:
        """Flags for a start with parts half as large."""

    def record(self) -> dict[str, int]:
        """For the checkpoint's marker."""
        return {self.record_key: self.limit}


class PaddedParts(Parts):
    """Micro-batches of so many utterances, as the stock model takes them."""

    unit = "utterances"
    record_key = "micro_batch_size"

    def make(self, examples: list[Example]) -> list[Part]:
        size = self.largest_limit
        return [self.encoder.batch(examples[first : first + size]) for first in range(0, len(examples), size)]

    def split(self, part: Part) -> list[Part]:
        assert not isinstance(part, PackedBatch)
        return list(split_padded(part, self.limit, self.encoder.chunk_frames))

    def worst(self, examples: list[Example]) -> Part:
        return self.encoder.batch(examples[: self.limit])

    def sizes(self, part: Part) -> tuple[int, int]:
        assert not isinstance(part, PackedBatch)
        return len(part["input_ids"]), len(part["input_ids"])

    def groups(self, lengths: Sequence[float]) -> list[list[int]]:
        indices, size = list(range(len(lengths))), self.limit
        return [indices[first : first + size] for first in indices[::size]]

    def to_evaluate(self, batch_size: int) -> "PaddedParts":
        return PaddedParts(self.encoder, batch_size)

    def advice(self) -> str:
        return f"--batch-size {max(1, self.limit // 2)} and twice the --gradient-accumulation-steps"


class PackedParts(Parts):
    """Clips one after the other, up to so many text positions."""

    unit = "text positions"
    record_key = "token_budget"

    def __init__(self, encoder: Encoder, packer: Packer, limit: int) -> None:
        super().__init__(encoder, limit)
        self.packer = packer

    def make(self, examples: list[Example]) -> list[Part]:
        whole = self.packer.pack([self.encoder.clip(example) for example in examples])
        return list(self.packer.split(whole, self.largest_limit))

    def split(self, part: Part) -> list[Part]:
        assert isinstance(part, PackedBatch)
        return list(self.packer.split(part, self.limit))

    def worst(self, examples: list[Example]) -> Part:
        clips = [self.encoder.clip(example) for example in examples]
        taken, num_tokens = 0, 0
        while taken < len(clips) and (taken == 0 or num_tokens + len(clips[taken].input_ids) <= self.limit):
            num_tokens += len(clips[taken].input_ids)
            taken += 1
        return self.packer.pack(clips[:taken])

    def sizes(self, part: Part) -> tuple[int, int]:
        assert isinstance(part, PackedBatch)
        return part.num_tokens, len(part.sizes)

    def shortest(self, step: StepBatch, number: int) -> PackedBatch:
        """The shortest clips of a share, packed."""
        clips = [clip for part in step.parts if isinstance(part, PackedBatch) for clip in part.clips()]
        return self.packer.pack(sorted(clips, key=lambda clip: len(clip.input_ids))[:number])

    def groups(self, lengths: Sequence[float]) -> list[list[int]]:
        found: list[list[int]] = []
        filled = 0.0
        for index, length in enumerate(lengths):
            if not found or filled + length > self.limit:
                found.append([])
                filled = 0.0
            found[-1].append(index)
            filled += length
        return found

    def to_evaluate(self, batch_size: int) -> "PackedParts":
        return PackedParts(self.encoder, self.packer, min(EVALUATION_TOKENS, self.largest_limit))

    def advice(self) -> str:
        return f"--token-budget {max(1, self.limit // 2)}"


def model_inputs(part: Part, device: torch.device) -> dict[str, Any]:
    """Keyword arguments of the model, on its device."""
    inputs = part.inputs if isinstance(part, PackedBatch) else part
    moved = {
        name: value if isinstance(value, int) else value.to(device, non_blocking=True) for name, value in inputs.items()
    }
    return moved | {"use_cache": False}


def split_padded(batch: MicroBatch, size: int, chunk_frames: int) -> list[MicroBatch]:
    """Parts of at most `size` utterances, in order, each padded only as far as its own longest clip.

    `chunk_frames`: features are padded to a multiple of these.
    """
    num_rows = len(batch["input_ids"])
    if num_rows <= size:
        return [batch]
    targets = torch.split(batch["shift_labels"], batch["logits_to_keep"].sum(dim=1).tolist())
    return [
        rows_of(batch, slice(first, first + size), torch.cat(targets[first : first + size]), chunk_frames)
        for first in range(0, num_rows, size)
    ]


def rows_of(batch: MicroBatch, rows: slice, targets: torch.Tensor, chunk_frames: int) -> MicroBatch:
    width = int(batch["attention_mask"][rows].sum(dim=1).max())
    longest = int(batch["input_features_mask"][rows].sum(dim=1).max())
    frames = -(-longest // chunk_frames) * chunk_frames
    text = {name: batch[name][rows, :width] for name in ("input_ids", "attention_mask", "labels", "logits_to_keep")}
    return text | {
        "input_features": batch["input_features"][rows, :, :frames],
        "input_features_mask": batch["input_features_mask"][rows, :frames],
        "shift_labels": targets,
    }
