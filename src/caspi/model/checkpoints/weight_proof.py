"""What a checkpoint changed against the model it came from, tensor by tensor, and what it should have changed."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from transformers import Qwen3ASRForConditionalGeneration, Qwen3ASRProcessor

from caspi.model.training.layers import FROZEN, GROUPS
from caspi.model.transcribers.local import prompt_text
from caspi.records import Record
from caspi.speech.corpora.audio import SAMPLE_RATE_HZ


class GroupChange(Record):
    """One layer group against the base model."""

    group: str
    num_tensors: int
    num_parameters: int
    num_expected: int
    """Tensors that trained."""
    num_changed_as_expected: int
    num_unexpectedly_changed: int
    num_unexpectedly_unchanged: int
    num_unchanged: int
    """Frozen, and bit for bit the base's."""
    max_change: float
    """Largest absolute difference of a weight."""
    relative_change: float
    """L2 of the difference over L2 of the base."""


class WeightProof(Record):
    """Every tensor of the model, accounted for."""

    groups: list[GroupChange]
    unexpectedly_changed: list[str]
    """Frozen tensors that differ from the base's."""
    unexpectedly_unchanged: list[str]
    """Trained tensors that do not."""

    def problems(self) -> list[str]:
        """Why these weights must not be exported; a few trained tensors that did not move are no reason."""
        found = []
        if self.unexpectedly_changed:
            found.append(
                f"{len(self.unexpectedly_changed)} frozen tensors differ from the base model's, "
                f"for example {self.unexpectedly_changed[0]}"
            )
        for row in self.groups:
            if row.num_expected and not row.num_changed_as_expected:
                found.append(f"layer group {row.group} trained, but is bit for bit the base model's")
        return found


def prove_weights(
    model: Qwen3ASRForConditionalGeneration,
    base: Qwen3ASRForConditionalGeneration,
    assigned: Mapping[str, str],
    trained: Collection[str],
) -> WeightProof:
    """Compare two float32 models; `assigned` is the layer group of each parameter, `trained` names those that trained.

    Raises:
        ValueError: the models have not the same tensors.
    """
    ours, theirs = dict(model.named_parameters()), dict(base.named_parameters())
    differing = sorted(ours.keys() ^ theirs.keys())
    differing += sorted(name for name in ours.keys() & theirs.keys() if ours[name].shape != theirs[name].shape)
    if differing:
        raise ValueError(f"the checkpoint is not of its base model: {', '.join(differing[:3])} differ")
    changed = {name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])}
    rows = []
    for group in (*GROUPS, FROZEN):
        names = [name for name in ours if assigned[name] == group]
        expected = {name for name in names if name in trained}
        moved = changed & set(names)
        rows.append(
            GroupChange(
                group=group,
                num_tensors=len(names),
                num_parameters=sum(ours[name].numel() for name in names),
                num_expected=len(expected),
                num_changed_as_expected=len(expected & moved),
                num_unexpectedly_changed=len(moved - expected),
                num_unexpectedly_unchanged=len(expected - moved),
                num_unchanged=len(set(names) - expected - moved),
                **sizes_of_change([(ours[name], theirs[name]) for name in sorted(moved)], [theirs[n] for n in names]),
            )
        )
    return WeightProof(
        groups=rows,
        unexpectedly_changed=sorted(changed - set(trained)),
        unexpectedly_unchanged=sorted(set(trained) - changed),
    )


def sizes_of_change(moved: list[tuple[torch.Tensor, torch.Tensor]], base: list[torch.Tensor]) -> dict[str, float]:
    with torch.no_grad():
        largest = max((float((after - before).abs().max()) for after, before in moved), default=0.0)
        squares = sum(float((after - before).double().square().sum()) for after, before in moved)
        norm = sum(float(tensor.double().square().sum()) for tensor in base)
    return {"max_change": largest, "relative_change": (squares / norm) ** 0.5 if norm else 0.0}


@torch.no_grad()
def clip_logits(
    model: Any, processor: Qwen3ASRProcessor, samples: np.ndarray, language: str, text: str
) -> torch.Tensor:
    """Logits [num_tokens, vocabulary] over the prompt of a clip and the text after it; leaves the model evaluating."""
    prompt = prompt_text(processor, language) + text
    inputs = processor(text=[prompt], audio=[samples], sampling_rate=SAMPLE_RATE_HZ)
    model.eval()
    logits: torch.Tensor = model(**inputs.to(dtype=model.dtype), use_cache=False).logits[0]
    return logits.float()


def relative_difference(after: torch.Tensor, before: torch.Tensor) -> float:
    """L2 of the difference over L2 of what it was."""
    return float((after.double() - before.double()).norm() / before.double().norm())
