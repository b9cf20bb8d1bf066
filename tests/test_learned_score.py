"""Scores learned from wrong pairs: they find what carries, and they must not find anything where nothing is heard."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize

from caspi.config import Audit
from caspi.model.aligners.battery import Task, measure_samples
from caspi.model.aligners.qwen import Decoded, QwenAligner, alignment_of
from caspi.model.aligners.timestamp_evidence import measure_timestamps
from caspi.model.checkpoints.checkpoint import quiet_transformers
from caspi.model.tiny_models import build_tiny_aligner
from caspi.speech.alignment.calibration import Measured, assign_folds, fit_thresholds
from caspi.speech.alignment.controls import DECOY, ORIGINAL, REVERSED, DecoyChooser, PlannedPair, Transcript
from caspi.speech.alignment.frozen_audit import ScoreModelView, read_score_model
from caspi.speech.alignment.learned_score import feature_auc, features_of, learn_scores, rescored
from caspi.speech.alignment.logistic import fit_logistic
from caspi.speech.alignment.quality import Alignment, Pair
from caspi.speech.alignment.validity import Validity, assess, separation
from caspi.speech.text import num_letters

SETTINGS = Audit()
CALIBRATION = SETTINGS.calibration
BIN_SECONDS = 0.08
LETTERS = "אבגדהוזחטיכלמנסעפצקרשת"


def made_pair(rng: np.random.Generator, is_right: bool, power: float, num_words: int = 6) -> Pair:
    """Confidence and order carry `power` standard deviations of evidence; the other features are noise."""
    gain = power if is_right else 0.0
    alignment = Alignment(
        spans=tuple((0.4 * i, 0.4 * i + rng.uniform(0.2, 0.4)) for i in range(num_words)),
        word_scores=(0.0,) * num_words,
        score=0.0,
        word_features={
            "ln_confidence": tuple(rng.normal(gain, 1, num_words)),
            "entropy": tuple(rng.normal(0, 1, num_words)),
        },
        features={"order_agreement": float(rng.normal(gain, 1)), "monotone_evidence": float(rng.normal(0, 1))},
    )
    return Pair((4,) * num_words, 5 * num_words, 2.4, rng.random(240) < 0.8, alignment)


def simulate(count: int, power: float, bad_fraction: float = 0.0, seed: int = 0) -> list[Measured]:
    rng = np.random.default_rng(seed)
    folds = assign_folds([str(i) for i in range(count)], [None] * count, seed)
    return [
        Measured(
            str(i),
            "a",
            folds[i],
            {
                ORIGINAL: made_pair(rng, i >= bad_fraction * count, power),
                DECOY: made_pair(rng, False, power),
                REVERSED: made_pair(rng, False, power),
            },
        )
        for i in range(count)
    ]


def learned(measured: list[Measured]) -> list[Measured]:
    model = learn_scores(measured, CALIBRATION)
    assert model is not None
    return rescored(measured, model)


def assessed(measured: list[Measured], settings: Audit = SETTINGS) -> Validity:
    return assess(measured, fit_thresholds(measured, settings), 0, len(measured), settings)


def test_the_regression_is_the_minimum_of_its_loss() -> None:
    rng = np.random.default_rng(0)
    right, wrong = rng.normal(1, 2, (40, 3)), rng.normal(0, 1, (70, 3))
    both = np.concatenate([right, wrong])
    scaled = (both - both.mean(axis=0)) / both.std(axis=0)
    targets = np.repeat([1 - 1 / 42, 1 / 72], [40, 70])
    weights = np.repeat([0.5 / 40, 0.5 / 70], [40, 70])

    def loss(parameters: NDArray[np.float64]) -> float:
        logits = scaled @ parameters[:3] + parameters[3]
        losses = np.logaddexp(0, logits) - targets * logits
        return float(weights @ losses + 0.05 / 2 * parameters[:3] @ parameters[:3])

    found = minimize(loss, np.zeros(4), tol=1e-12).x
    expected = scaled @ found[:3] + found[3]
    assert fit_logistic(right, wrong, 0.05).logit(both) == pytest.approx(expected, abs=1e-4)


def test_a_feature_that_never_changes_gets_no_weight() -> None:
    rng = np.random.default_rng(0)
    right, wrong = (np.column_stack([rng.normal(m, 1, 50), np.full(50, 0.1)]) for m in (1, 0))
    assert fit_logistic(right, wrong).weights[1] == 0


def test_what_carries_is_found_and_noise_is_not_believed() -> None:
    measured = simulate(300, 1.5)
    apart = separation(learned(measured), 200, 1)
    assert apart is not None
    assert apart.auc > 0.97
    table = feature_auc(measured)
    assert table["word ln_confidence"] == pytest.approx(0.856, abs=0.03)  # Phi(1.5 / sqrt 2)
    assert table["utterance monotone_evidence"] == pytest.approx(0.5, abs=0.06)


def test_bad_data_teach_the_same_scores_as_good_data() -> None:
    """Two fifths of the originals are wrong pairs: the labels that teach are noisy, and it must do no harm."""
    good, dirty = simulate(400, 2.0), simulate(400, 2.0, bad_fraction=0.4)
    model = learn_scores(dirty, CALIBRATION)
    assert model is not None
    scores = separation(rescored(good, model), 200, 1)
    own = separation(learned(good), 200, 1)
    assert scores is not None
    assert own is not None
    assert scores.auc > own.auc - 0.01
    assert assessed(learned(dirty)).status != "invalid"


def test_a_fold_is_scored_by_what_the_other_one_taught() -> None:
    measured = simulate(100, 1.0)
    rng = np.random.default_rng(5)
    changed = [replace(m, pairs={**m.pairs, DECOY: made_pair(rng, True, 30.0)}) if m.fold == 0 else m for m in measured]
    before, after = learn_scores(measured, CALIBRATION), learn_scores(changed, CALIBRATION)
    assert before is not None
    assert after is not None
    assert after.words[0] == before.words[0]
    assert after.utterances[0] == before.utterances[0]
    assert after.utterances[1] != before.utterances[1]


def test_a_value_far_outside_what_was_taught_counts_as_the_nearest_taught_one() -> None:
    """A clip unlike all others must not score higher than all of them: one such decoy makes a small audit invalid."""
    items = simulate(60, 2.0)
    model = learn_scores(items, CALIBRATION)
    assert model is not None
    pair = items[0].pairs[DECOY]
    assert pair.alignment.features is not None

    def score(order_agreement: float) -> float:
        changed = {**pair.alignment.features, "order_agreement": order_agreement}  # type: ignore[dict-item]
        odd = replace(pair, alignment=pair.alignment._replace(features=changed))
        return model.score(odd, items[0].fold).alignment.score

    taught = [
        item.pairs[control].alignment.features["order_agreement"]  # type: ignore[index]
        for item in items
        for control in (ORIGINAL, DECOY)
        if item.fold != items[0].fold
    ]
    assert score(1e6) == pytest.approx(score(max(taught)), abs=1e-4)
    assert score(-1e6) == pytest.approx(score(min(taught)), abs=1e-4)
    assert score(max(taught)) > score(min(taught)) + 1


def test_the_report_holds_the_model_that_scored() -> None:
    model = learn_scores(simulate(60, 2.0), CALIBRATION)
    assert model is not None
    written = json.loads(json.dumps(model.as_json()))
    assert read_score_model(ScoreModelView.model_validate(written), Path("report.json")) == model
    written["utterance_ranges"]["fold 1"].pop()
    with pytest.raises(ValueError, match=r"report\.json holds a damaged score model"):
        read_score_model(ScoreModelView.model_validate(written), Path("report.json"))


def test_one_recording_is_spread_over_both_folds() -> None:
    ids = [str(i) for i in range(200)]
    folds = assign_folds(ids, ["call"] * 199 + ["other"], 1)
    assert 80 < sum(folds) < 120
    by_group = assign_folds(ids, [f"call {i // 5}" for i in range(200)], 1)
    assert all(len(set(by_group[i : i + 5])) == 1 for i in range(0, 200, 5))


def test_few_pairs_and_backends_without_features_keep_their_own_scores() -> None:
    assert learn_scores(simulate(12, 3.0), CALIBRATION) is None
    assert learn_scores([], CALIBRATION) is None
    plain = simulate(60, 1.0)
    for item in plain:
        for control, pair in item.pairs.items():
            bare = pair.alignment._replace(features=None, word_features=None)
            item.pairs[control] = replace(pair, alignment=bare)  # type: ignore[index]
    assert learn_scores(plain, CALIBRATION) is None
    assert feature_auc(plain) == {}


def test_durations_do_not_show_how_long_the_text_is_for_its_audio() -> None:
    pair = made_pair(np.random.default_rng(0), True, 1.0)
    slow = pair.alignment._replace(spans=tuple((10 * s, 10 * e + 9 * 0.04) for s, e in pair.starts_ends.tolist()))
    stretched = replace(pair, alignment=slow)
    assert features_of(stretched).words["duration_deviation"] == pytest.approx(
        features_of(pair).words["duration_deviation"]
    )


def corpus_with(lengths: Sequence[int], seed: int) -> list[Transcript]:
    """Transcripts of so many words each, of 2 to 7 letters."""
    rng = np.random.default_rng(seed)
    transcripts = []
    for number, count in enumerate(lengths):
        words = tuple("".join(rng.choice(list(LETTERS), size)) for size in rng.integers(2, 8, count))
        transcripts.append(Transcript(str(number), "a", None, words, sum(map(len, words))))
    return transcripts


def measure_blindly(
    transcripts: list[Transcript], seed: int, align: Callable[[float, tuple[str, ...], np.random.Generator], Alignment]
) -> list[Measured]:
    """Pairs of an aligner that knows the length of the audio and the text, and hears nothing."""
    rng = np.random.default_rng(seed)
    chooser = DecoyChooser(transcripts, CALIBRATION, seed)
    folds = assign_folds([t.id for t in transcripts], [None] * len(transcripts), seed)
    measured = []
    for transcript, fold in zip(transcripts, folds, strict=True):
        seconds = transcript.num_letters * 0.09 * float(np.exp(rng.normal(0, 0.1))) + 0.4
        speech = np.repeat(rng.random(int(10 * seconds) + 1) < 0.8, 10)
        decoy = chooser.choose(transcript)
        assert decoy is not None
        texts = {ORIGINAL: transcript.words, DECOY: decoy.words, REVERSED: transcript.words}
        pairs = {
            control: Pair(
                tuple(map(num_letters, words)), len(" ".join(words)), seconds, speech, align(seconds, words, rng)
            )
            for control, words in texts.items()
        }
        measured.append(Measured(transcript.id, "a", fold, pairs))
    return measured


def evenly(seconds: float, words: tuple[str, ...], rng: np.random.Generator, sharpness: float = 3.0) -> Alignment:
    """Sure of evenly spaced times, shaken a little: the confident guess that the design page warns of."""
    num_slots, num_bins = 2 * len(words), int(np.ceil(seconds / BIN_SECONDS)) + 1
    centres = np.linspace(0, num_bins - 1, num_slots)
    logits = -sharpness * np.abs(np.arange(num_bins + 20) - centres[:, None] - rng.normal(0, 0.7, (num_slots, 1)))
    reported = np.maximum.accumulate(logits[:, :num_bins].argmax(axis=1))
    times = (reported * BIN_SECONDS).reshape(-1, 2).tolist()
    evidence = measure_timestamps(logits, reported, num_bins)
    return alignment_of(Decoded(tuple((start, end) for start, end in times), evidence), None)


CORPORA = {
    "sentences of one length": lambda seed: [8] * 60,
    "one to twelve words": lambda seed: np.random.default_rng(seed).integers(1, 13, 60).tolist(),
    "each far longer than the one before": lambda seed: [round(1.1**i) + 1 for i in range(40)],
    "two lengths": lambda seed: [2] * 40 + [14] * 5,
}


@pytest.mark.parametrize("corpus", CORPORA)
@pytest.mark.parametrize("seeds", [range(2), pytest.param(range(2, 20), marks=pytest.mark.slow)])
def test_a_confident_guess_is_never_valid(corpus: str, seeds: range) -> None:
    """Lengths, counts and spans of text and audio are all that this aligner shows, and they must not suffice."""
    settings = SETTINGS.model_copy(
        update={"validity": SETTINGS.validity.model_copy(update={"num_bootstrap_draws": 100})}
    )
    masses = []
    for seed in seeds:
        measured = learned(measure_blindly(corpus_with(CORPORA[corpus](seed), seed), seed, evenly))
        result = assessed(measured, settings)
        assert result.status == "invalid", (seed, result.checks)
        assert result.separation is not None
        masses.append(result.separation.separable_mass)
    assert np.mean(masses) < SETTINGS.validity.min_degraded_separable_mass / 2


def test_lengths_that_give_a_decoy_away_are_caught_by_reversed_audio() -> None:
    """Were a feature to compare text length with audio length, originals would stand out, and as much when reversed."""

    def by_length(seconds: float, words: tuple[str, ...], rng: np.random.Generator) -> Alignment:
        fit = -abs(np.log(sum(map(len, words)) * 0.09 / (seconds - 0.4)))
        return Alignment(tuple((0.0, 0.1) for _ in words), (fit,) * len(words), fit)

    lengths = [round(1.5**i) + 1 for i in range(10)]
    result = assessed(measure_blindly(corpus_with(lengths * 4, 1), 1, by_length))
    failed = {check.name: check for check in result.checks if not check.passed}
    assert failed["reversed_auc"].value == 0.5
    assert failed["reversed_auc"].consequence == "invalid"


@pytest.mark.parametrize("seed", range(3))
def test_an_untrained_aligner_is_never_valid(seed: int) -> None:
    """The real class with other random weights each time, on voiced-like noise whose length fits its transcript."""
    torch.set_num_threads(1)
    with quiet_transformers():
        aligner = QwenAligner(*build_tiny_aligner(seed), SETTINGS)
    rng = np.random.default_rng(seed)
    transcripts = corpus_with(rng.integers(2, 8, 36).tolist(), seed)
    chooser = DecoyChooser(transcripts, CALIBRATION, seed)
    folds = assign_folds([t.id for t in transcripts], [None] * len(transcripts), seed)
    measured = []
    for transcript, fold in zip(transcripts, folds, strict=True):
        samples = rng.normal(0, 0.1, round(16_000 * (0.09 * transcript.num_letters + 0.4))).astype(np.float32)
        samples *= np.repeat(rng.random(len(samples) // 1600 + 1) < 0.7, 1600)[: len(samples)]
        decoy = chooser.choose(transcript)
        assert decoy is not None
        planned = (
            PlannedPair(ORIGINAL, transcript.words),
            PlannedPair(DECOY, decoy.words),
            PlannedPair(REVERSED, transcript.words, "reversed"),
        )
        (outcome,) = measure_samples([(Task(transcript.id, "", 0, 0, planned), samples)], aligner)
        measured.append(Measured(outcome.id, "a", fold, outcome.pairs))
    assert all(len(item.pairs) == 3 for item in measured)
    assert assessed(learned(measured)).status == "invalid"
    assert assessed(measured).status == "invalid"


def test_the_aligner_gives_the_features_that_the_design_names() -> None:
    """Word features of AUDIT section 3, and two of the utterance."""
    alignment = evenly(2.0, ("אבג", "דהו", "זחט"), np.random.default_rng(0))
    pair = Pair((3, 3, 3), 11, 2.0, np.ones(200, dtype=bool), alignment)
    features = features_of(pair)
    assert set(features.words) == {
        "ln_confidence",
        "entropy",
        "ln_displacement",
        "order_agreement",
        "speech_overlap",
        "duration_deviation",
    }
    assert {"monotone_evidence", "out_of_audio_mass", "entropy q25", "ln_confidence mean"} <= set(features.utterance)
