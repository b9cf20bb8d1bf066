"""Evaluation while training: teacher-forced loss on the whole evaluation split, error rates by transcribing a part.

Batches are formed over all utterances and then dealt out, and their losses are added in one order: with any number of
processes a batch is padded alike, so the numbers are the same to the bit, and all processes decide alike.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from transformers import Qwen3ASRForConditionalGeneration

from caspi.model.footprint import estimated_tokens
from caspi.model.training.batch import Encoder, Example, Utterances
from caspi.model.training.fusion import uncompiled
from caspi.model.training.parts import Parts, model_inputs
from caspi.model.training.processes import all_gather_objects, num_processes, process_rank
from caspi.model.transcribers import plan_batches
from caspi.model.transcribers.local import MAX_BATCH_SECONDS, transcribe
from caspi.records import RunFailed, Utterance
from caspi.speech.corpora.audio import AudioError, load_audio
from caspi.speech.scoring.score import Profile, cer, wer

PROFILE: Profile = "ivrit"
Batch = TypeVar("Batch")


class BatchLoss(NamedTuple):
    """Of one batch of the plan."""

    batch_index: int
    total: float
    """Nats."""
    num_tokens: int


def never() -> int:
    """The exit code of a signal, where none is waited for."""
    return 0


class EvaluationStopped(Exception):
    """A signal came; on all processes at the same batch."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"the evaluation was stopped, exit code {exit_code}")
        self.exit_code = exit_code


def share_of(batches: Sequence[Batch], exit_code: Callable[[], int]) -> Iterator[tuple[int, Batch]]:
    """The batches that this process computes, with their place in the plan.

    Raises:
        EvaluationStopped: `exit_code`, which all processes are asked for before each batch, is not 0 on all of them.
    """
    share = list(enumerate(batches))[process_rank() :: num_processes()]
    for turn in range(-(-len(batches) // num_processes())):
        if code := exit_code():
            raise EvaluationStopped(code)
        if turn < len(share):
            yield share[turn]


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
        parts: Parts,
        *,
        language: str,
        batch_size: int,
        max_new_tokens: int,
        cache_mib: float,
    ) -> None:
        self.utterances = utterances
        self.transcribed = list(transcribed)
        self.encoder = encoder
        self.parts = parts
        self.dataset = Utterances(utterances, encoder, cache_mib)
        self.batch_size = batch_size
        self.decoding: dict[str, Any] = {"language": language, "max_new_tokens": max_new_tokens}

    def evaluate(
        self, model: Qwen3ASRForConditionalGeneration, exit_code: Callable[[], int] = never
    ) -> dict[str, float]:
        """eval_loss (nats per target token), eval_wer, eval_cer, eval_wer_DOMAIN (fractions), eval_runtime (seconds).

        On a GPU in bfloat16, as training computes. `exit_code` gives the same on all processes, not 0 to stop.

        Raises:
            EvaluationStopped: it was not 0.
        """
        start = time.perf_counter()
        on_gpu = model.device.type == "cuda"
        with uncompiled(), torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=on_gpu):
            metrics = {"eval_loss": self.loss(model, exit_code), **self.error_rates(model, exit_code)}
        return metrics | {"eval_runtime": time.perf_counter() - start}

    @torch.no_grad()
    def loss(self, model: Qwen3ASRForConditionalGeneration, exit_code: Callable[[], int] = never) -> float:
        """Cross-entropy per target token over the whole split."""
        lengths = [estimated_tokens(item.duration, item.text) for item in self.utterances]
        by_length = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
        groups = self.parts.groups([lengths[index] for index in by_length])
        losses = []
        was_training = model.training
        model.eval()
        try:
            for batch_index, places in share_of(groups, exit_code):
                examples = [self.example(by_length[place]) for place in places]
                parts = [model_inputs(part, model.device) for part in self.parts.make(examples)]
                total = sum(float(model(**inputs, num_items_in_batch=1).loss) for inputs in parts)
                losses.append(BatchLoss(batch_index, total, sum(len(example.target_ids) for example in examples)))
        finally:
            model.train(was_training)
        in_order = sorted(loss for part in all_gather_objects(losses) for loss in part)
        return sum(loss.total for loss in in_order) / sum(loss.num_tokens for loss in in_order)

    def example(self, index: int) -> Example:
        item = self.dataset[(0, index)]
        if not isinstance(item, Example):
            raise RunFailed(f"evaluation clip {item.id} cannot be decoded ({item.reason}): {item.detail}")
        return item

    def error_rates(self, model: Qwen3ASRForConditionalGeneration, exit_code: Callable[[], int]) -> dict[str, float]:
        shares = all_gather_objects(self.transcribe_share(model, exit_code))
        hypotheses = {index: text for share in shares for index, text in share.items()}
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

    def transcribe_share(
        self, model: Qwen3ASRForConditionalGeneration, exit_code: Callable[[], int] = never
    ) -> dict[int, str]:
        """What the model wrote, by utterance index."""
        durations = [self.utterances[index].duration for index in self.transcribed]
        batches = list(plan_batches(durations, self.batch_size, MAX_BATCH_SECONDS))
        found: dict[int, str] = {}
        for _, places in share_of(batches, exit_code):
            indices = [self.transcribed[place] for place in places]
            audios = [self.samples(index) for index in indices]
            results = transcribe(model, self.encoder.processor, audios, batch_size=len(indices), **self.decoding)
            found |= {index: result.text for index, result in zip(indices, results, strict=True)}
        return found

    def samples(self, index: int) -> np.ndarray:
        utterance = self.utterances[index]
        try:
            return load_audio(utterance.audio_filepath, utterance.offset, utterance.duration)
        except AudioError as error:
            raise RunFailed(f"evaluation clip {utterance.id} cannot be decoded ({error.reason}): {error}") from None
