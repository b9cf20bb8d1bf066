"""Qwen3-ForcedAligner: the official input and decode, and measurements on the raw logits beside them.

The word and utterance scores are a fixed combination of those measurements. What a score is worth, if anything, is
decided by the audit's wrong transcripts.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import pad

from caspi.config import Recipe
from caspi.model.aligners import AlignmentItem, FailedToAlign
from caspi.model.aligners.timestamp_evidence import TimestampEvidence, measure_timestamps
from caspi.model.checkpoints.checkpoint import load_aligner
from caspi.model.transcribers import plan_batches
from caspi.speech.alignment.quality import Alignment
from caspi.speech.corpora.audio import SAMPLE_RATE_HZ

CONFIDENCE_FLOOR = 0.01
"""Added to a word's confidence before the logarithm: below it all words are equally lost."""
MONOTONE_WEIGHT = math.log((1 + CONFIDENCE_FLOOR) / CONFIDENCE_FLOOR)
"""Monotone evidence from 0 to 1 then counts as much as the confidence from 0 to 1."""
SHIFT_SECONDS = 0.48
SHIFT_TOLERANCE_SECONDS = 0.16
UNSTABLE_WORD_PENALTY = MONOTONE_WEIGHT
"""Taken from the score of a word whose span does not move with the audio: as if it had no confidence left."""


class Decoded(NamedTuple):
    spans: tuple[tuple[float, float], ...]
    evidence: TimestampEvidence


class QwenAligner:
    """
    Raises:
        ValueError: the checkpoint cannot be loaded.
    """

    def __init__(self, recipe: Recipe) -> None:
        settings = recipe.audit
        self.device, self.dtype = ("cuda", "bfloat16") if torch.cuda.is_available() else ("cpu", "float32")
        self.model, self.processor = load_aligner(settings.aligner_model, getattr(torch, self.dtype))
        self.model.to(torch.device(self.device)).eval()  # type: ignore[arg-type]  # transformers' wrapper hides the signature
        self.model_id = str(settings.aligner_model)
        self.bin_seconds = self.processor.timestamp_segment_time / 1000
        self.max_seconds = min(
            settings.quality.max_duration_seconds, (self.model.score.out_features - 1) * self.bin_seconds
        )
        self.batch_size = settings.model_batch_size
        self.batch_seconds = settings.model_batch_seconds
        self.is_shift_tested = settings.shift_stability

    def align(self, items: Sequence[AlignmentItem]) -> list[Alignment | FailedToAlign]:
        """Batches of similar length inside; the order of the items is kept."""
        outcomes: list[Alignment | FailedToAlign | None] = [self._refusal(item) for item in items]
        possible = [index for index, outcome in enumerate(outcomes) if outcome is None]
        decoded = self._decode([items[index] for index in possible])
        stable: list[NDArray[np.bool_] | None] = [None] * len(possible)
        if self.is_shift_tested:
            moved = self._decode([delayed(items[index]) for index in possible])
            stable = [moves_along(one.spans, other.spans) for one, other in zip(decoded, moved, strict=True)]
        for index, one, steady in zip(possible, decoded, stable, strict=True):
            outcomes[index] = alignment_of(one, steady)
        return [outcome for outcome in outcomes if outcome is not None]

    def _refusal(self, item: AlignmentItem) -> FailedToAlign | None:
        seconds = len(item.samples) / SAMPLE_RATE_HZ
        shift = SHIFT_SECONDS if self.is_shift_tested else 0.0
        if not item.words:
            return FailedToAlign("the transcript has no word")
        if len(item.samples) == 0:
            return FailedToAlign("the audio is empty")
        if seconds + shift > self.max_seconds:
            return FailedToAlign(f"{seconds:.1f} s of audio, the aligner takes at most {self.max_seconds - shift:g} s")
        return None

    def _decode(self, items: Sequence[AlignmentItem]) -> list[Decoded]:
        seconds = [len(item.samples) / SAMPLE_RATE_HZ for item in items]
        decoded: dict[int, Decoded] = {}
        for batch in plan_batches(seconds, self.batch_size, self.batch_seconds):
            chosen = [items[index] for index in batch]
            rows = zip(chosen, self.slot_logits(chosen), strict=True)
            decoded |= zip(batch, (self._read(item, logits) for item, logits in rows), strict=True)
        return [decoded[index] for index in range(len(items))]

    @torch.inference_mode()
    def slot_logits(self, items: Sequence[AlignmentItem]) -> list[torch.Tensor]:
        """float32 [2 * num_words, num_classes] of each item on the CPU; the head runs on the timestamp slots only."""
        batch = collate([self._inputs(item) for item in items], self.model.config.pad_token_id)
        is_slot = batch["input_ids"] == self.model.config.timestamp_token_id
        inputs = {name: tensor.to(self.device) for name, tensor in batch.items()}
        inputs["input_features"] = inputs["input_features"].to(self.model.dtype)
        hidden = self.model.model(**inputs, use_cache=False).last_hidden_state
        logits = self.model.score(hidden[is_slot.to(self.device)]).float().cpu()
        return list(torch.split(logits, is_slot.sum(dim=1).tolist()))

    def _inputs(self, item: AlignmentItem) -> dict[str, torch.Tensor]:
        """Official inputs of one item; alone, because features of a padded batch depend on the batch."""
        inputs, (words,) = self.processor.prepare_forced_aligner_inputs(
            audio=item.samples, transcript=" ".join(item.words), language=None
        )
        assert tuple(words) == item.words, f"the processor splits {item.words} into {words}"
        num_slots = int((inputs["input_ids"] == self.model.config.timestamp_token_id).sum())
        assert num_slots == 2 * len(words), f"{num_slots} timestamp tokens for {len(words)} words"
        return dict(inputs)

    def _read(self, item: AlignmentItem, logits: torch.Tensor) -> Decoded:
        slots = torch.full((1, len(logits)), self.model.config.timestamp_token_id)
        (words,) = self.processor.decode_forced_alignment(
            logits[None], slots, [list(item.words)], self.model.config.timestamp_token_id
        )
        spans = tuple((float(word["start_time"]), float(word["end_time"])) for word in words)
        reported = np.rint(np.array(spans).reshape(-1) / self.bin_seconds).astype(np.int64)
        num_bins = math.ceil(len(item.samples) / SAMPLE_RATE_HZ / self.bin_seconds) + 1
        num_bins = min(num_bins, logits.shape[1])
        return Decoded(spans, measure_timestamps(logits.double().numpy(), reported, num_bins))


def alignment_of(decoded: Decoded, is_stable: NDArray[np.bool_] | None) -> Alignment:
    """Word score: log confidence, less for a word that stays when the audio moves. Utterance: plus ordered times."""
    evidence = decoded.evidence
    scores = np.log(evidence.word_confidences + CONFIDENCE_FLOOR)
    if is_stable is not None:
        scores = scores - UNSTABLE_WORD_PENALTY * ~is_stable
    ordered = MONOTONE_WEIGHT * float(np.clip(evidence.monotone_evidence, -1, 1))
    return Alignment(
        spans=decoded.spans,
        word_scores=tuple(scores.tolist()),
        score=float(scores.mean()) + ordered,
        word_confidences=tuple(evidence.word_confidences.tolist()),
    )


def delayed(item: AlignmentItem) -> AlignmentItem:
    """The same after `SHIFT_SECONDS` of silence."""
    return item._replace(samples=np.pad(item.samples, (round(SHIFT_SECONDS * SAMPLE_RATE_HZ), 0)))


def moves_along(
    spans: Sequence[tuple[float, float]], delayed_spans: Sequence[tuple[float, float]]
) -> NDArray[np.bool_]:
    """Words both of whose boundaries moved as far as the audio did; [num_words]."""
    moved = np.array(delayed_spans) - np.array(spans)
    return np.asarray((np.abs(moved - SHIFT_SECONDS) <= SHIFT_TOLERANCE_SECONDS + 1e-6).all(axis=1))


def collate(rows: Sequence[dict[str, Any]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Pad on the right, where a causal model does not look."""
    filling = {"input_ids": pad_token_id, "attention_mask": 0, "input_features": 0.0, "input_features_mask": 0}
    batch = {}
    for name, value in filling.items():
        width = max(row[name].shape[-1] for row in rows)
        batch[name] = torch.cat([pad(row[name], (0, width - row[name].shape[-1]), value=value) for row in rows])
    return batch
