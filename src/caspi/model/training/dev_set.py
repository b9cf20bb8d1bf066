"""Evaluation while training: teacher-forced loss on the whole evaluation split, error rates by transcribing a part.

Every process takes its share and all of them get the same numbers, so that all decide alike.
"""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import Qwen3ASRForConditionalGeneration

from caspi.model.training.batch import Encoder, Example, Utterances
from caspi.model.training.processes import all_gather_objects, num_processes, process_rank
from caspi.model.training.sampler import micro_batches
from caspi.model.transcribers.local import transcribe
from caspi.records import RunFailed, Utterance
from caspi.speech.corpora.audio import AudioError, load_audio
from caspi.speech.scoring.score import Profile, cer, wer

PROFILE: Profile = "ivrit"


class Outcome(NamedTuple):
    """What a model wrote for one utterance."""

    utterance_index: int
    hypothesis: str


class DevSet:
    """The evaluation split, and the fixed part of it that is transcribed.

    Raises:
        RunFailed: when evaluating, a clip cannot be decoded; evaluation needs every one, so that numbers compare.
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        transcribed: Sequence[int],
        encoder: Encoder,
        *,
        language: str,
        batch_size: int,
        max_new_tokens: int,
        cache_mib: float,
    ) -> None:
        self.utterances = utterances
        self.transcribed = list(transcribed)
        self.encoder = encoder
        self.dataset = Utterances(utterances, encoder, cache_mib)
        self.batch_size = batch_size
        self.decoding: dict[str, Any] = {
            "language": language,
            "batch_size": batch_size,
            "max_new_tokens": max_new_tokens,
        }

    def evaluate(self, model: Qwen3ASRForConditionalGeneration) -> dict[str, float]:
        """eval_loss (nats per target token), eval_wer, eval_cer, eval_wer_DOMAIN (fractions), eval_runtime (seconds).

        On a GPU in bfloat16, as training computes.
        """
        start = time.perf_counter()
        on_gpu = model.device.type == "cuda"
        with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=on_gpu):
            metrics = {"eval_loss": self.loss(model), **self.error_rates(model)}
        return metrics | {"eval_runtime": time.perf_counter() - start}

    @torch.no_grad()
    def loss(self, model: Qwen3ASRForConditionalGeneration) -> float:
        """Cross-entropy per target token over the whole split."""
        by_length = sorted(range(len(self.utterances)), key=lambda index: (self.utterances[index].duration, index))
        total, num_tokens = 0.0, 0
        was_training = model.training
        model.eval()
        try:
            for indices in micro_batches(by_length[process_rank() :: num_processes()], self.batch_size):
                batch = self.encoder.batch([self.example(index) for index in indices])
                inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
                total += float(model(**inputs, use_cache=False, num_items_in_batch=1).loss)
                num_tokens += inputs["shift_labels"].numel()
        finally:
            model.train(was_training)
        sums = all_gather_objects((total, num_tokens))
        return sum(part for part, _ in sums) / sum(part for _, part in sums)

    def example(self, index: int) -> Example:
        item = self.dataset[(0, index)]
        if not isinstance(item, Example):
            raise RunFailed(f"evaluation clip {item.id} cannot be decoded ({item.reason}): {item.detail}")
        return item

    def error_rates(self, model: Qwen3ASRForConditionalGeneration) -> dict[str, float]:
        outcomes = [outcome for part in all_gather_objects(self.transcribe_share(model)) for outcome in part]
        hypotheses = {outcome.utterance_index: outcome.hypothesis for outcome in outcomes}
        rates = {
            "eval_wer": self.rate(wer, hypotheses, self.transcribed),
            "eval_cer": self.rate(cer, hypotheses, self.transcribed),
        }
        for domain in sorted({self.utterances[index].domain for index in self.transcribed}):
            members = [index for index in self.transcribed if self.utterances[index].domain == domain]
            rates[f"eval_wer_{domain}"] = self.rate(wer, hypotheses, members)
        return rates

    def rate(self, measure: Any, hypotheses: dict[int, str], indices: Sequence[int]) -> float:
        references = [self.utterances[index].text for index in indices]
        return float(measure(references, [hypotheses[index] for index in indices], PROFILE))

    def transcribe_share(self, model: Qwen3ASRForConditionalGeneration) -> list[Outcome]:
        share = self.transcribed[process_rank() :: num_processes()]
        audios = [self.samples(index) for index in share]
        results = transcribe(model, self.encoder.processor, audios, **self.decoding)
        return [Outcome(index, result.text) for index, result in zip(share, results, strict=True)]

    def samples(self, index: int) -> np.ndarray:
        utterance = self.utterances[index]
        try:
            return load_audio(utterance.audio_filepath, utterance.offset, utterance.duration)
        except AudioError as error:
            raise RunFailed(f"evaluation clip {utterance.id} cannot be decoded ({error.reason}): {error}") from None
