"""The tiny checkpoint that ships, and how it is made: it stands for the published model before Round 2.

It transcribes clean synthetic Hebrew speech, and noisy speech badly. Made anew by `python -m caspi.model.tiny FOLDER`.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy, ctc_loss
from torch.nn.utils.rnn import pad_sequence
from transformers import Qwen3ASRForConditionalGeneration, Qwen3ASRProcessor

from caspi.config import Language, SyntheticSpeech, TinyBase
from caspi.model.checkpoints.checkpoint import save_asr
from caspi.model.tiny_models import build_tiny_aligner, build_tiny_asr
from caspi.model.tiny_training import Progress, build_record, draw_batches, one_thread, optimize
from caspi.model.training.batch import Encoder, Example
from caspi.model.transcribers.local import transcribe
from caspi.records import write_json
from caspi.speech.scoring.score import wer
from caspi.speech.synthetic.synth import SyntheticUtterance, UtterancePlan, draw_speakers, plan_utterances, render
from caspi.speech.synthetic.synth_corpus import plan_test_sets

__all__ = ["build_tiny_aligner", "build_tiny_asr", "rebuild_base", "tiny_base"]

SOURCE = "tiny-base"
BUILD_FILE = "build.json"
TEST_BATCH_SIZE = 25
TEST_MAX_NEW_TOKENS = 24
HEBREW, SPEECH, SETTINGS = Language(), SyntheticSpeech(), TinyBase()


def tiny_base() -> Path:
    """The folder of the checkpoint that ships."""
    return Path(__file__).parent / "assets" / "tiny-base"


def rebuild_base(
    folder: str | Path,
    settings: TinyBase = SETTINGS,
    speech: SyntheticSpeech = SPEECH,
    language: Language = HEBREW,
    progress: Progress = print,
) -> dict[str, float]:
    """Train the base from random weights, measure it and write it to a folder; returns its WERs by test set.

    Takes minutes on one core, and uses one: with one thread the same settings give the same weights.

    Raises:
        ValueError: the speech engine is not installed.
    """
    folder = Path(folder)
    with one_thread():
        model, processor = train_base(settings, speech, language, progress)
        word_error_rates = measure(model, processor, settings, speech, language)
    save_asr(model, processor, folder)
    rates = {"wer": {name: round(value, 4) for name, value in word_error_rates.items()}}
    write_json(folder / BUILD_FILE, build_record("python -m caspi.model.tiny FOLDER", settings, rates))
    progress(f"{folder}: WER {', '.join(f'{name} {value:.1%}' for name, value in word_error_rates.items())}")
    return word_error_rates


def train_base(
    settings: TinyBase, speech: SyntheticSpeech, language: Language, progress: Progress
) -> tuple[Qwen3ASRForConditionalGeneration, Qwen3ASRProcessor]:
    """Encoder first, then everything; a decoder that meets an encoder without words takes far longer."""
    model, processor = build_tiny_asr(settings.seed)
    encoder = Encoder(processor, language.name)
    examples = encode(encoder, plan_training(settings, speech, language), speech, progress)
    model.train()
    optimize(
        model,
        lambda batch: encoder_loss(model, encoder, batch),
        settings.num_encoder_steps,
        settings.encoder_learning_rate,
        draw_batches(examples, settings, "tiny-base-batches", "encoder"),
        settings,
        progress,
    )
    optimize(
        model,
        lambda batch: joint_loss(model, encoder, batch, settings.ctc_weight),
        settings.num_steps,
        settings.learning_rate,
        draw_batches(examples, settings, "tiny-base-batches", "everything"),
        settings,
        progress,
    )
    return model.eval(), processor


def plan_training(settings: TinyBase, speech: SyntheticSpeech, language: Language) -> list[UtterancePlan]:
    speakers = draw_speakers(SOURCE, speech.speaker_voices(language), speech.speakers_per_voice, speech, settings.seed)
    num_noisy = round(settings.noisy_fraction * settings.num_utterances)
    return plan_utterances(
        SOURCE,
        {"kan_clean": settings.num_utterances - num_noisy, "whatsapp_noisy": num_noisy},
        speakers,
        settings.num_words,
        vocabulary_size=settings.vocabulary_size,
        split="train",
        seed=settings.seed,
        settings=speech,
    )


def encode(
    encoder: Encoder, plans: Sequence[UtterancePlan], speech: SyntheticSpeech, progress: Progress
) -> list[Example]:
    examples = []
    for number, plan in enumerate(plans, start=1):
        utterance: SyntheticUtterance = render(plan, speech)
        examples.append(encoder.encode(utterance.samples, utterance.text))
        if number % 1000 == 0 or number == len(plans):
            progress(f"spoken: {number} of {len(plans)} utterances")
    return examples


def joint_loss(
    model: Qwen3ASRForConditionalGeneration, encoder: Encoder, examples: list[Example], ctc_weight: float
) -> torch.Tensor:
    """Cross-entropy of transcript and end of turn per token, and the encoder's own loss."""
    batch = encoder.batch(examples)
    inputs = ("input_ids", "attention_mask", "input_features", "input_features_mask")
    output = model.model(**{name: batch[name] for name in inputs}, use_cache=False)
    logits = model.lm_head(output.last_hidden_state[batch["logits_to_keep"]])
    spoken = named_words(model, encoder, output.audio_hidden_states, examples)
    return cross_entropy(logits, batch["shift_labels"]) + ctc_weight * spoken


def encoder_loss(model: Qwen3ASRForConditionalGeneration, encoder: Encoder, examples: list[Example]) -> torch.Tensor:
    features, mask = encoder.pad_features([example.features for example in examples])
    audio: Any = model.get_audio_features(features, mask, return_dict=True)
    return named_words(model, encoder, audio.pooler_output, examples)


def named_words(
    model: Qwen3ASRForConditionalGeneration, encoder: Encoder, audio: torch.Tensor, examples: list[Example]
) -> torch.Tensor:
    """CTC loss of projected audio [num_frames of all clips, hidden] against the embeddings of the transcript's tokens.

    Frames between words resemble `<|endoftext|>`, which no transcript holds. The decoder then finds, among its audio
    positions, words in the very form in which it writes them.
    """
    logits = audio @ model.lm_head.weight.T
    lengths = [encoder.num_audio_tokens(example.features.shape[1]) for example in examples]
    log_probabilities = pad_sequence(list(logits.log_softmax(-1).split(lengths)))
    targets = [encoder.token_ids(f" {encoder.tokenizer.decode(example.target_ids[:-1])}") for example in examples]
    return ctc_loss(
        log_probabilities,
        torch.tensor([token for target in targets for token in target]),
        torch.tensor(lengths),
        torch.tensor([len(target) for target in targets]),
        blank=encoder.pad_id,
    )


def measure(
    model: Qwen3ASRForConditionalGeneration,
    processor: Qwen3ASRProcessor,
    settings: TinyBase,
    speech: SyntheticSpeech,
    language: Language,
) -> dict[str, float]:
    """WER on sentences that were not in training, by test set; `eval-d1` has voices that were not either."""
    plans = plan_test_sets(
        settings.num_test_utterances,
        settings.seed,
        vocabulary_size=settings.vocabulary_size,
        language=language,
        settings=speech,
    )
    return {name: word_error_rate(model, processor, plan, speech, language) for name, plan in plans.items()}


def word_error_rate(
    model: Qwen3ASRForConditionalGeneration,
    processor: Qwen3ASRProcessor,
    plans: Sequence[UtterancePlan],
    speech: SyntheticSpeech,
    language: Language,
) -> float:
    utterances = [render(plan, speech) for plan in plans]
    audios: list[np.ndarray] = [utterance.samples for utterance in utterances]
    found = transcribe(
        model,
        processor,
        audios,
        language=language.name,
        batch_size=TEST_BATCH_SIZE,
        max_new_tokens=TEST_MAX_NEW_TOKENS,
    )
    return wer([utterance.text for utterance in utterances], [one.text for one in found], "ivrit")


if __name__ == "__main__":
    rebuild_base(sys.argv[1])
