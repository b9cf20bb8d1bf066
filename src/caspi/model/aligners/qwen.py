"""Qwen3-ForcedAligner: the official input and decode, and measurements on the raw logits beside them.

The audit learns from its own wrong transcripts which of the measurements carry (`speech.alignment.learned_score`). The
scores given here are a fixed combination for where there are too few pairs to learn from.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Qwen3ASRForTokenClassification, Qwen3ASRProcessor

from caspi.config import Audit, Recipe
from caspi.model.aligners import AlignmentItem, FailedToAlign
from caspi.model.aligners.shared_audio import (
    AudioInput,
    Row,
    TranscriptInput,
    collate_audio,
    collate_rows,
    plan_rows,
)
from caspi.model.aligners.timestamp_evidence import TimestampEvidence, measure_timestamps
from caspi.model.checkpoints.checkpoint import load_aligner
from caspi.model.transcribers import plan_batches
from caspi.speech.alignment.quality import Alignment
from caspi.speech.corpora.audio import SAMPLE_RATE_HZ

CONFIDENCE_FLOOR = 0.01
"""Added to a word's confidence before the logarithm: below it all words are equally lost."""
MONOTONE_WEIGHT = math.log((1 + CONFIDENCE_FLOOR) / CONFIDENCE_FLOOR)
"""Monotone evidence from 0 to 1 then counts as much as the confidence from 0 to 1."""
CHANCE_AGREEMENT = 0.0
"""Order agreement of a transcript too short to measure it."""
SECONDS_PER_TOKEN = 1 / 13
"""The encoder gives 13 tokens a second; text counts as audio with as many tokens when batches are planned."""
ANY_AUDIO = np.zeros(SAMPLE_RATE_HZ // 10, dtype=np.float32)
SHIFT_SECONDS = 0.48
SHIFT_TOLERANCE_SECONDS = 0.16
UNSTABLE_WORD_PENALTY = MONOTONE_WEIGHT
"""Taken from the score of a word whose span does not move with the audio: as if it had no confidence left."""


class Decoded(NamedTuple):
    spans: tuple[tuple[float, float], ...]
    evidence: TimestampEvidence


def load_qwen_aligner(recipe: Recipe) -> "QwenAligner":
    """
    Raises:
        ValueError: the checkpoint cannot be loaded.
    """
    settings = recipe.audit
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    model, processor = load_aligner(settings.aligner_model, dtype)
    return QwenAligner(model, processor, settings)


class QwenAligner:
    def __init__(self, model: Qwen3ASRForTokenClassification, processor: Qwen3ASRProcessor, settings: Audit) -> None:
        """Takes the model over and moves it to the GPU if there is one; its precision stays."""
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model, self.processor = model, processor
        self.model.to(torch.device(self.device)).eval()  # type: ignore[arg-type]  # transformers' wrapper hides the signature
        self.dtype = str(self.model.dtype).removeprefix("torch.")
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
            moved = self._decode(delayed([items[index] for index in possible]))
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
        return [self._read(item, logits) for item, logits in zip(items, self.slot_logits(items), strict=True)]

    def slot_logits(self, items: Sequence[AlignmentItem]) -> list[torch.Tensor]:
        """float32 [2 * num_words, num_classes] of each item on the CPU; the head runs on the timestamp slots only.

        Each array of samples goes through the audio encoder once and, as far as it fits, through the language model
        once, whatever the number of its transcripts.
        """
        sources = {id(item.samples): item for item in items}
        audios = {key: self._audio_input(item) for key, item in sources.items()}
        embeddings = self._listen(audios)
        texts = [self._transcript_input(item) for item in items]
        rows = plan_rows(
            [(id(item.samples), text.num_tokens) for item, text in zip(items, texts, strict=True)],
            {key: audio.num_tokens for key, audio in audios.items()},
        )
        lengths = [row.num_tokens * SECONDS_PER_TOKEN for row in rows]
        logits: dict[int, torch.Tensor] = {}
        for batch in plan_batches(lengths, self.batch_size, self.batch_seconds):
            chosen = [rows[index] for index in batch]
            logits |= self._read_rows(chosen, audios, embeddings, texts)
        return [logits[index] for index in range(len(items))]

    @torch.inference_mode()
    def _listen(self, audios: dict[int, AudioInput]) -> dict[int, torch.Tensor]:
        """[num_audio_tokens, hidden_size] of each audio, on the device."""
        keys = list(audios)
        embeddings: dict[int, torch.Tensor] = {}
        lengths = [audios[key].num_audio_tokens * SECONDS_PER_TOKEN for key in keys]
        for batch in plan_batches(lengths, self.batch_size, self.batch_seconds):
            chosen = [audios[keys[index]] for index in batch]
            features, mask = (tensor.to(self.device) for tensor in collate_audio(chosen))
            heard = self.model.model.get_audio_features(features.to(self.model.dtype), mask).pooler_output
            parts = torch.split(heard, [audio.num_audio_tokens for audio in chosen])
            embeddings |= zip((keys[index] for index in batch), parts, strict=True)
        return embeddings

    @torch.inference_mode()
    def _read_rows(
        self,
        rows: Sequence[Row],
        audios: dict[int, AudioInput],
        embeddings: dict[int, torch.Tensor],
        texts: Sequence[TranscriptInput],
    ) -> dict[int, torch.Tensor]:
        """Logits at the slots, by index of the transcript."""
        batch = collate_rows(rows, audios, texts, self.model.config.pad_token_id)
        ids = batch.input_ids.to(self.device)
        embedded = self.model.get_input_embeddings()(ids)
        heard = torch.cat([embeddings[row.audio] for row in rows])
        embedded[ids == self.model.config.audio_token_id] = heard.to(embedded.dtype)
        hidden = self.model.model.language_model(
            inputs_embeds=embedded,
            attention_mask=batch.attention_mask.to(self.device),
            position_ids=batch.position_ids.to(self.device),
            use_cache=False,
        ).last_hidden_state
        is_slot = ids == self.model.config.timestamp_token_id
        logits = self.model.score(hidden[is_slot]).float().cpu()
        indices = [index for row in rows for index in row.transcripts]
        return dict(zip(indices, torch.split(logits, [texts[index].num_slots for index in indices]), strict=True))

    def _audio_input(self, item: AlignmentItem) -> AudioInput:
        """Official inputs of the audio; alone, because features of a padded batch depend on the batch."""
        inputs, _ = self.processor.prepare_forced_aligner_inputs(audio=item.samples, transcript=" ".join(item.words))
        ids = inputs["input_ids"][0]
        last = int((ids == self.model.config.audio_token_id).nonzero()[-1]) + 1
        return AudioInput(ids[: last + 1], inputs["input_features"], inputs["input_features_mask"], last - 1)

    def _transcript_input(self, item: AlignmentItem) -> TranscriptInput:
        """What follows the audio in the official inputs, which is the same for every audio."""
        inputs, (words,) = self.processor.prepare_forced_aligner_inputs(
            audio=ANY_AUDIO, transcript=" ".join(item.words), language=None
        )
        assert tuple(words) == item.words, f"the processor splits {item.words} into {words}"
        ids = inputs["input_ids"][0]
        last = int((ids == self.model.config.audio_token_id).nonzero()[-1]) + 1
        num_slots = int((ids == self.model.config.timestamp_token_id).sum())
        assert num_slots == 2 * len(words), f"{num_slots} timestamp tokens for {len(words)} words"
        return TranscriptInput(ids[last + 1 :], num_slots)

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
    """Word score: log confidence, less for a word that stays when the audio moves. Utterance: plus ordered times.

    Args:
        is_stable: [num_words] whether a word moved with the audio; None: not tested.
    """
    evidence = decoded.evidence
    log_confidences = np.log(evidence.word_confidences + CONFIDENCE_FLOOR)
    word_features = {
        "ln_confidence": log_confidences,
        "entropy": evidence.entropies,
        "ln_displacement": np.log1p(evidence.displacements),
    }
    scores = log_confidences
    if is_stable is not None:
        scores = scores - UNSTABLE_WORD_PENALTY * ~is_stable
        word_features["moves_along"] = is_stable.astype(np.float64)
    ordered = MONOTONE_WEIGHT * float(np.clip(evidence.monotone_evidence, -1, 1))
    return Alignment(
        spans=decoded.spans,
        word_scores=tuple(scores.tolist()),
        score=float(scores.mean()) + ordered,
        word_confidences=tuple(evidence.word_confidences.tolist()),
        word_features={name: tuple(values.tolist()) for name, values in word_features.items()},
        features={
            "order_agreement": CHANCE_AGREEMENT if evidence.lis_agreement is None else evidence.lis_agreement,
            "monotone_evidence": evidence.monotone_evidence,
            "out_of_audio_mass": evidence.out_of_audio_mass,
        },
    )


def delayed(items: Sequence[AlignmentItem]) -> list[AlignmentItem]:
    """The same after `SHIFT_SECONDS` of silence; items that shared an array still do."""
    silence = round(SHIFT_SECONDS * SAMPLE_RATE_HZ)
    later = {id(item.samples): np.pad(item.samples, (silence, 0)) for item in items}
    return [item._replace(samples=later[id(item.samples)]) for item in items]


def moves_along(
    spans: Sequence[tuple[float, float]], delayed_spans: Sequence[tuple[float, float]]
) -> NDArray[np.bool_]:
    """Words both of whose boundaries moved as far as the audio did; [num_words]."""
    moved = np.array(delayed_spans) - np.array(spans)
    return np.asarray((np.abs(moved - SHIFT_SECONDS) <= SHIFT_TOLERANCE_SECONDS + 1e-6).all(axis=1))
