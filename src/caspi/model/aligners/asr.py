"""Verification with a speech recogniser: how much likelier does the audio make each word than silence does?

Pointwise mutual information by teacher forcing, two passes and no decoding. It measures words without placing them: its
alignments have no times, so what the audio says beyond the transcript stays unmeasured.
"""

from collections.abc import Sequence

import numpy as np
import torch

from caspi.config import Recipe
from caspi.model.aligners import AlignmentItem, FailedToAlign
from caspi.model.checkpoints.checkpoint import load_asr
from caspi.model.training.batch import Encoder, Example
from caspi.model.transcribers import plan_batches
from caspi.speech.alignment.quality import Alignment
from caspi.speech.corpora.audio import SAMPLE_RATE_HZ

MIN_SAMPLES = 400
"""One window of the feature extractor, 25 ms."""


class AsrVerifier:
    """
    Raises:
        ValueError: the checkpoint cannot be loaded.
    """

    def __init__(self, recipe: Recipe) -> None:
        settings = recipe.audit
        self.device, self.dtype = ("cuda", "bfloat16") if torch.cuda.is_available() else ("cpu", "float32")
        self.model, self.processor = load_asr(settings.asr_model, getattr(torch, self.dtype))
        self.model.to(torch.device(self.device)).eval()  # type: ignore[arg-type]  # wrapper hides the signature
        self.model_id = settings.asr_model
        self.encoder = Encoder(self.processor, recipe.language.name)
        self.max_seconds = settings.quality.max_duration_seconds
        self.batch_size = settings.model_batch_size
        self.batch_seconds = settings.model_batch_seconds

    def align(self, items: Sequence[AlignmentItem]) -> list[Alignment | FailedToAlign]:
        outcomes: list[Alignment | FailedToAlign | None] = [self._refusal(item) for item in items]
        possible = [index for index, outcome in enumerate(outcomes) if outcome is None]
        seconds = [len(items[index].samples) / SAMPLE_RATE_HZ for index in possible]
        for batch in plan_batches(seconds, self.batch_size, self.batch_seconds):
            chosen = [items[possible[place]] for place in batch]
            for place, verified in zip(batch, self._verify(chosen), strict=True):
                outcomes[possible[place]] = verified
        return [outcome for outcome in outcomes if outcome is not None]

    def _refusal(self, item: AlignmentItem) -> FailedToAlign | None:
        seconds = len(item.samples) / SAMPLE_RATE_HZ
        if not item.words:
            return FailedToAlign("the transcript has no word")
        if len(item.samples) < MIN_SAMPLES:
            return FailedToAlign(f"{seconds:.3f} s of audio are shorter than one window of the model")
        if seconds > self.max_seconds:
            return FailedToAlign(f"{seconds:.1f} s of audio, the model takes at most {self.max_seconds:g} s")
        return None

    def _verify(self, items: Sequence[AlignmentItem]) -> list[Alignment]:
        heard = [self.encoder.encode(item.samples, " ".join(item.words)) for item in items]
        deaf = [self.encoder.encode(np.zeros_like(item.samples), " ".join(item.words)) for item in items]
        gains = [
            with_audio - without
            for with_audio, without in zip(self.log_probabilities(heard), self.log_probabilities(deaf), strict=True)
        ]
        return [self._score(item.words, gain) for item, gain in zip(items, gains, strict=True)]

    @torch.inference_mode()
    def log_probabilities(self, examples: Sequence[Example]) -> list[np.ndarray]:
        """float64 [num_tokens] of each example: the log probability of its transcript's tokens and end of turn."""
        batch = {name: tensor.to(self.device) for name, tensor in self.encoder.batch(examples).items()}
        hidden = self.model.model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            input_features=batch["input_features"].to(self.model.dtype),
            input_features_mask=batch["input_features_mask"],
            use_cache=False,
        ).last_hidden_state
        logits = self.model.lm_head(hidden[batch["logits_to_keep"]]).float()
        chosen = logits.log_softmax(dim=-1).gather(1, batch["shift_labels"][:, None])[:, 0]
        counts = batch["logits_to_keep"].sum(dim=1).tolist()
        return [part.double().cpu().numpy() for part in torch.split(chosen, counts)]

    def _score(self, words: Sequence[str], gain: np.ndarray) -> Alignment:
        owners = self.token_owners(words)
        assert len(owners) == len(gain) - 1, f"{len(owners)} tokens of words, {len(gain)} predicted"
        scores = [float(gain[:-1][owners == index].mean()) for index in range(len(words))]
        return Alignment(
            spans=(None,) * len(words), word_scores=tuple(scores), score=float(gain.mean()), has_times=False
        )

    def token_owners(self, words: Sequence[str]) -> np.ndarray:
        """[num_tokens] index of the word of each token of the transcript.

        Tokens never cross a blank: the blank belongs to the word behind it.
        """
        pieces = [word if index == 0 else f" {word}" for index, word in enumerate(words)]
        counts = [len(self.encoder.token_ids(piece)) for piece in pieces]
        whole = self.encoder.token_ids("".join(pieces))
        assert sum(counts) == len(whole), f"tokens of {words} depend on their neighbours"
        return np.repeat(np.arange(len(words)), counts)
