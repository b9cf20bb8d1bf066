"""How good the tiny forced aligner is: times against the truth, and right transcripts against decoys."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from caspi.config import Audit, Language, Recipe, SyntheticSpeech, TinyAligner
from caspi.model.aligners import build_aligner
from caspi.model.aligners.battery import Task, measure_samples
from caspi.speech.alignment.calibration import Measured, fold_of
from caspi.speech.alignment.controls import DECOY, ORIGINAL, DecoyChooser, PlannedPair, Transcript
from caspi.speech.alignment.learned_score import learn_scores, rescored
from caspi.speech.alignment.quality import Outcome
from caspi.speech.alignment.validity import separation
from caspi.speech.corpora.audio import SAMPLE_RATE_HZ
from caspi.speech.synthetic.synth import SyntheticUtterance, draw_speakers, plan_utterances, render
from caspi.speech.text import num_letters

TOLERANCE_SECONDS = 0.16
ROUNDING_SECONDS = 1e-6
"""Times are multiples of 80 ms."""


def measure(
    folder: Path, settings: TinyAligner, speech: SyntheticSpeech, language: Language
) -> dict[str, dict[str, float]]:
    """Values on clean sentences that were not in training, said in voices that were, and in voices that were not."""
    voices = {"held-out sentences": False, "held-out voices": True}
    return {
        name: measure_set(folder, test_sentences(name, settings, speech, language, held_out), settings)
        for name, held_out in voices.items()
    }


def test_sentences(
    name: str, settings: TinyAligner, speech: SyntheticSpeech, language: Language, held_out: bool
) -> list[SyntheticUtterance]:
    source = f"tiny-aligner {name}"
    voices = speech.speaker_voices(language, held_out)
    plans = plan_utterances(
        source,
        {"kan_clean": settings.num_test_utterances},
        draw_speakers(source, voices, speech.speakers_per_voice, speech, settings.seed),
        settings.num_test_words,
        vocabulary_size=settings.vocabulary_size,
        split="test",
        seed=settings.seed,
        settings=speech,
    )
    return [render(plan, speech) for plan in plans]


def measure_set(folder: Path, utterances: Sequence[SyntheticUtterance], settings: TinyAligner) -> dict[str, float]:
    """Share of boundaries near the truth, and the audit's figures for originals against decoys."""
    audit = Audit(backend="qwen", aligner_model=str(folder), seed=settings.seed)
    outcomes = align_with_decoys(utterances, audit)
    measured = [
        Measured(u.id, u.domain, fold_of(u.id, settings.seed), outcome.pairs)
        for u, outcome in zip(utterances, outcomes, strict=True)
    ]
    model = learn_scores(measured, audit.calibration)
    assert model is not None, f"{len(measured)} utterances are too few to learn scores from"
    apart = separation(rescored(measured, model), audit.validity.num_bootstrap_draws, settings.seed)
    assert apart is not None
    errors = boundary_errors(utterances, outcomes)
    return {
        "boundaries_within_160_ms": round(float(np.mean(errors <= TOLERANCE_SECONDS + ROUNDING_SECONDS)), 4),
        "median_error_seconds": round(float(np.median(errors)), 4),
        "auc": round(apart.auc, 4),
        "auc_lower_bound": round(apart.auc_lower, 4),
        "separable_mass": round(apart.separable_mass, 4),
    }


def align_with_decoys(utterances: Sequence[SyntheticUtterance], audit: Audit) -> list[Outcome]:
    transcripts = [
        Transcript(u.id, u.domain, u.source, u.words, sum(num_letters(word) for word in u.words)) for u in utterances
    ]
    chooser = DecoyChooser(transcripts, audit.calibration, audit.seed)
    clips = []
    for utterance, transcript in zip(utterances, transcripts, strict=True):
        decoy = chooser.choose(transcript)
        assert decoy is not None, f"{utterance.id}: no other sentence differs enough"
        planned = (PlannedPair(ORIGINAL, utterance.words), PlannedPair(DECOY, decoy.words))
        seconds = len(utterance.samples) / SAMPLE_RATE_HZ
        clips.append((Task(utterance.id, "", 0.0, seconds, planned), utterance.samples))
    return measure_samples(clips, build_aligner(Recipe(audit=audit)))


def boundary_errors(utterances: Sequence[SyntheticUtterance], outcomes: Sequence[Outcome]) -> np.ndarray:
    """Absolute distances of reported starts and ends from the true ones in seconds, [num_boundaries]."""
    distances = [
        np.abs(outcome.pairs[ORIGINAL].starts_ends - np.array(utterance.word_times))
        for utterance, outcome in zip(utterances, outcomes, strict=True)
    ]
    return np.concatenate(distances).reshape(-1)
