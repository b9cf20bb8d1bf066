"""The tiny forced aligner that ships, and how it learns: a real Qwen3ASRForTokenClassification for tests of the audit.

It places the 40 words of the tiny base in clean synthetic speech, and its scores tell right transcripts from wrong
ones. Made anew by `python -m caspi.model.tiny_aligner FOLDER`.

Left alone, a model this small learns to count stretches of sound and never listens to a word. It therefore begins with
the encoder and the word embeddings of the tiny base, whose frames name words already (CTC); one attention head is shown
where its word is; and audio positions learn to tell their own time, so that a slot only has to look. Head, CTC and
questions to audio positions are not part of the model that is saved.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import ctc_loss
from torch.nn.utils.rnn import pad_sequence
from transformers import Qwen3ASRForTokenClassification, Qwen3ASRProcessor

from caspi.config import AlignerStage, Language, SyntheticSpeech, TinyAligner
from caspi.model.checkpoints.checkpoint import load_asr, save_checkpoint
from caspi.model.tiny import BUILD_FILE, tiny_base
from caspi.model.tiny_aligner_score import measure
from caspi.model.tiny_models import NUM_KNOWN_WORDS, build_tiny_aligner
from caspi.model.tiny_training import Progress, build_record, draw_batches, one_thread, optimize
from caspi.model.training.batch import Encoder
from caspi.records import sha256_of_file, write_json
from caspi.speech.seeds import seeded_generator
from caspi.speech.synthetic.spliced import SplicedClip, WordBank
from caspi.speech.synthetic.synth import Domain, SyntheticUtterance, draw_speakers, lexicon, plan_utterances, render

SOURCE = "tiny-aligner"
BIN_SECONDS = 0.08
MIN_MASS = 1e-4
"""Floor of attention before the logarithm."""
MIN_SPOKEN_WORDS = 2
HEBREW, SPEECH, SETTINGS = Language(), SyntheticSpeech(), TinyAligner()


class AlignerExample(NamedTuple):
    features: torch.Tensor
    """float32 [num_mel_bins, num_frames]"""
    input_ids: tuple[int, ...]
    boundaries: torch.Tensor
    """float32 [2 * num_words] start and end of each word in time classes; NaN: not spoken."""
    spoken_ids: tuple[int, ...]
    """Tokens of all spoken words."""
    num_audio_tokens: int


def tiny_aligner() -> Path:
    """The folder of the aligner that ships."""
    return Path(__file__).parent / "assets" / "tiny-aligner"


def rebuild_aligner(
    folder: str | Path,
    settings: TinyAligner = SETTINGS,
    speech: SyntheticSpeech = SPEECH,
    language: Language = HEBREW,
    progress: Progress = print,
) -> dict[str, dict[str, float]]:
    """Train the aligner, write it to a folder, measure it there; returns the values by test set.

    Takes minutes on one core, and uses one: with one thread the same settings give the same weights.

    Raises:
        ValueError: the speech engine is not installed.
    """
    folder = Path(folder)
    with one_thread():
        save_checkpoint(*train_aligner(settings, speech, language, progress), folder)
        measured = measure(folder, settings, speech, language)
    base = {"base_sha256": sha256_of_file(tiny_base() / "model.safetensors")}
    command = "python -m caspi.model.tiny_aligner FOLDER"
    write_json(folder / BUILD_FILE, build_record(command, settings, base | {"measured": measured}))
    progress(f"{folder}: {measured}")
    return measured


def train_aligner(
    settings: TinyAligner, speech: SyntheticSpeech, language: Language, progress: Progress
) -> tuple[Qwen3ASRForTokenClassification, Qwen3ASRProcessor]:
    model, processor = build_tiny_aligner(settings.seed)
    begin_with_base(model, processor)
    encoder = Encoder(processor, language.name)
    sentences = spoken_sentences(settings, speech, language)
    progress(f"spoken: {len(sentences)} sentences")
    bank = WordBank(sentences, lexicon(settings.vocabulary_size), settings.clips)
    model.train()
    with watched_attention(model, settings.attention_layer) as attention:
        losses = Losses(model, encoder, attention, settings)
        num_steps = sum(stage.num_steps for stage in settings.stages)
        batches = stage_batches(bank, encoder, settings, progress)
        optimize(model, losses.total, num_steps, settings.learning_rate, batches, settings, progress)
    return model.eval(), processor


def begin_with_base(model: Qwen3ASRForTokenClassification, processor: Qwen3ASRProcessor) -> None:
    """Take over everything but the head; words stand without the blank before them here, so they take its embedding."""
    base, _ = load_asr(tiny_base())
    model.model.load_state_dict(base.model.state_dict())
    embeddings = model.model.language_model.embed_tokens.weight.data
    for word in lexicon(NUM_KNOWN_WORDS):
        (alone,), (after_blank,) = (
            processor.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (word, f" {word}")
        )
        embeddings[alone] = embeddings[after_blank]


def spoken_sentences(settings: TinyAligner, speech: SyntheticSpeech, language: Language) -> list[SyntheticUtterance]:
    num_noisy = round(settings.noisy_fraction * settings.num_sentences)
    domains: dict[Domain, int] = {"kan_clean": settings.num_sentences - num_noisy, "whatsapp_noisy": num_noisy}
    voices = speech.speaker_voices(language)
    plans = plan_utterances(
        SOURCE,
        domains,
        draw_speakers(SOURCE, voices, speech.speakers_per_voice, speech, settings.seed),
        (settings.sentence_words, settings.sentence_words),
        vocabulary_size=settings.vocabulary_size,
        split="train",
        seed=settings.seed,
        settings=speech,
    )
    return [render(plan, speech) for plan in plans]


def stage_batches(
    bank: WordBank, encoder: Encoder, settings: TinyAligner, progress: Progress
) -> Iterator[list[AlignerExample]]:
    """The batches of all stages in turn; clips of a stage are made when it begins."""
    for number, stage in enumerate(settings.stages):
        examples = draw_examples(bank, encoder, stage, settings, number)
        progress(f"stage {number + 1}: {len(examples)} clips of up to {stage.max_words} words")
        yield from islice(draw_batches(examples, settings, "tiny-aligner-batches", str(number)), stage.num_steps)


def draw_examples(
    bank: WordBank, encoder: Encoder, stage: AlignerStage, settings: TinyAligner, number: int
) -> list[AlignerExample]:
    rng = seeded_generator(settings.seed, "tiny-aligner-clips", str(number))
    examples = []
    for _ in range(settings.num_clips):
        num_spoken = int(rng.integers(MIN_SPOKEN_WORDS, stage.max_words + 1))
        examples.append(encode(bank.draw(num_spoken, stage.complete_fraction, rng), encoder))
    return examples


def encode(clip: SplicedClip, encoder: Encoder) -> AlignerExample:
    """As `Qwen3ASRProcessor.prepare_forced_aligner_inputs`: audio, then each word with the slots of start and end."""
    features = encoder.features(clip.samples)
    num_audio_tokens = encoder.num_audio_tokens(features.shape[1])
    audio = encoder.token_ids("<|audio_start|>") + [encoder.processor.audio_token_id] * num_audio_tokens
    words = [token for word in clip.words for token in encoder.token_ids(f"{word}<timestamp><timestamp>")]
    nowhere = (np.nan, np.nan)
    seconds = [second for times in clip.times for second in (nowhere if times is None else times)]
    return AlignerExample(
        features,
        (*audio, *encoder.token_ids("<|audio_end|>"), *words),
        torch.tensor(seconds) / BIN_SECONDS,
        tuple(token for word in clip.spoken for token in encoder.token_ids(word)),
        num_audio_tokens,
    )


class Losses:
    """The loss of a batch, in its parts."""

    def __init__(
        self,
        model: Qwen3ASRForTokenClassification,
        encoder: Encoder,
        attention: dict[str, torch.Tensor],
        settings: TinyAligner,
    ) -> None:
        self.model, self.encoder, self.attention, self.settings = model, encoder, attention, settings
        self.generator = torch.Generator().manual_seed(settings.seed)

    def total(self, examples: list[AlignerExample]) -> torch.Tensor:
        settings = self.settings
        ids = pad_sequence([torch.tensor(e.input_ids) for e in examples], True, self.encoder.pad_id)
        seen = pad_sequence([torch.ones(len(e.input_ids), dtype=torch.long) for e in examples], True)
        features, mask = self.encoder.pad_features([e.features for e in examples])
        output = self.model.model(
            input_ids=ids, attention_mask=seen, input_features=features, input_features_mask=mask, use_cache=False
        )
        is_slot = ids == self.model.config.timestamp_token_id
        present, absent = self.boundaries(output.last_hidden_state[is_slot], examples)
        is_audio = ids == self.encoder.processor.audio_token_id
        return (
            present
            + settings.absent_weight * absent
            + settings.spoken_weight * self.spoken(output.audio_hidden_states, examples)
            + settings.position_weight * self.positions(output.last_hidden_state[is_audio], examples)
            + settings.attention_weight * self.looking(is_slot, examples)
        )

    def boundaries(self, hidden: torch.Tensor, examples: list[AlignerExample]) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross-entropy at the slots: a narrow bell around each boundary, and for words that are not spoken, flat
        over the clip."""
        target = torch.cat([example.boundaries for example in examples])
        ends = [e.num_audio_tokens / self.tokens_per_second / BIN_SECONDS for e in examples]
        inside = torch.cat([torch.full_like(e.boundaries, end) for e, end in zip(examples, ends, strict=True)])
        log_probabilities = self.model.score(hidden).log_softmax(-1)
        is_absent = target.isnan()
        classes = torch.arange(log_probabilities.shape[1])
        flat = (classes[None] <= inside[:, None]).float()
        wanted = torch.where(is_absent[:, None], flat, self.bell(target.nan_to_num(), len(classes)))
        loss = -(wanted / wanted.sum(dim=1, keepdim=True) * log_probabilities).sum(dim=1)
        return mean_of(loss[~is_absent]), mean_of(loss[is_absent])

    def bell(self, centres: torch.Tensor, num_classes: int) -> torch.Tensor:
        distance = (torch.arange(num_classes)[None] - centres[:, None]) / self.settings.boundary_spread_bins
        return torch.exp(-distance.square() / 2)

    def spoken(self, audio: torch.Tensor, examples: list[AlignerExample]) -> torch.Tensor:
        """CTC loss of frames against the embeddings of the spoken words, as in the training of the base."""
        logits = audio @ self.model.model.language_model.embed_tokens.weight.T
        lengths = [example.num_audio_tokens for example in examples]
        return ctc_loss(
            pad_sequence(list(logits.log_softmax(-1).split(lengths))),
            torch.tensor([token for example in examples for token in example.spoken_ids]),
            torch.tensor(lengths),
            torch.tensor([len(example.spoken_ids) for example in examples]),
            blank=self.encoder.pad_id,
            zero_infinity=True,
        )

    def positions(self, hidden: torch.Tensor, examples: list[AlignerExample]) -> torch.Tensor:
        """Cross-entropy of the time that some audio positions tell of themselves."""
        places = torch.cat([torch.arange(example.num_audio_tokens) for example in examples])
        asked = torch.rand(len(places), generator=self.generator) < self.settings.position_fraction
        times = (places[asked] + 0.5) / self.tokens_per_second / BIN_SECONDS - 0.5
        log_probabilities = self.model.score(hidden[asked]).log_softmax(-1)
        wanted = self.bell(times, log_probabilities.shape[1])
        return mean_of(-(wanted / wanted.sum(dim=1, keepdim=True) * log_probabilities).sum(dim=1))

    def looking(self, is_slot: torch.Tensor, examples: list[AlignerExample]) -> torch.Tensor:
        """-ln of the first head's attention that slots pay to the frames of their word."""
        weights = self.attention["weights"][:, 0]
        masses = []
        for row, example in enumerate(examples):
            spans = example.boundaries.reshape(-1, 2) * BIN_SECONDS * self.tokens_per_second
            start, end = spans.repeat_interleave(2, dim=0).T
            places = torch.arange(example.num_audio_tokens) + 0.5
            is_own = (places >= start[:, None] - 0.5) & (places <= end[:, None] + 0.5)
            paid = weights[row, is_slot[row], 1 : 1 + example.num_audio_tokens]
            masses.append((paid * is_own).sum(dim=1)[~start.isnan()])
        return mean_of(-torch.log(torch.cat(masses) + MIN_MASS))

    @property
    def tokens_per_second(self) -> float:
        """Positions per second of audio: one chunk of mel frames is a second."""
        return float(self.encoder.num_audio_tokens(self.encoder.chunk_frames))


def mean_of(values: torch.Tensor) -> torch.Tensor:
    """0 for none."""
    return values.mean() if len(values) else values.sum()


@contextmanager
def watched_attention(model: Qwen3ASRForTokenClassification, layer: int) -> Iterator[dict[str, torch.Tensor]]:
    """`weights` [B, num_heads, T, T] of a layer after each forward pass; only the eager implementation gives them."""
    language_model = model.model.language_model
    implementation = language_model.config._attn_implementation
    caught: dict[str, torch.Tensor] = {}

    def catch(_: Any, __: Any, output: tuple[torch.Tensor, torch.Tensor]) -> None:
        caught["weights"] = output[1]

    language_model.set_attn_implementation("eager")
    handle = language_model.layers[layer].self_attn.register_forward_hook(catch)
    try:
        yield caught
    finally:
        handle.remove()
        language_model.set_attn_implementation(implementation)


if __name__ == "__main__":
    rebuild_aligner(sys.argv[1])
