"""The recogniser as a verifier: scores of words against silence, without times."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from caspi.config import Audit, QualityThresholds, Recipe
from caspi.model.aligners import AlignmentItem, FailedToAlign, build_aligner
from caspi.model.aligners.asr import AsrVerifier
from caspi.model.tiny import tiny_base
from caspi.records import read_jsonl
from caspi.speech.alignment.quality import Alignment, Pair, measure
from caspi.speech.alignment.validity import auc
from caspi.speech.corpora.audio import load_audio
from caspi.speech.synthetic.synth_corpus import CorpusRow, plan_test_sets, write_corpus

WORDS = ("שלום", "לבן", "ילדה")


def recipe(model: Path | str) -> Recipe:
    return Recipe(audit=Audit(backend="asr", asr_model=str(model)))


@pytest.fixture(scope="session")
def verifier() -> AsrVerifier:
    torch.set_num_threads(1)
    built = build_aligner(recipe(tiny_base()))
    assert isinstance(built, AsrVerifier)
    return built


def clip(seconds: float, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 0.1, round(16_000 * seconds)).astype(np.float32)


def aligned(outcome: Alignment | FailedToAlign) -> Alignment:
    assert isinstance(outcome, Alignment), outcome
    return outcome


@pytest.mark.espeak
def test_clean_speech_supports_its_own_words_and_no_others(verifier: AsrVerifier, tmp_path: Path) -> None:
    """Each clip with its own words, with another clip's, and with its last word exchanged."""
    plans = plan_test_sets(24, seed=5, vocabulary_size=40)["eval-d1"]
    rows = list(read_jsonl(write_corpus(tmp_path, plans, num_processes=1), CorpusRow))
    clips = [load_audio(tmp_path / row.audio_filepath) for row in rows]
    texts = [tuple(row.text.split()) for row in rows]

    def verify(claims: list[tuple[str, ...]]) -> list[Alignment]:
        items = [AlignmentItem(samples, words) for samples, words in zip(clips, claims, strict=True)]
        return [aligned(outcome) for outcome in verifier.align(items)]

    others = [next(text for text in texts[i:] + texts[:i] if not set(text) & set(own)) for i, own in enumerate(texts)]
    right, wrong = verify(texts), verify(others)
    spoiled = verify([(*own[:-1], other[0]) for own, other in zip(texts, others, strict=True)])
    assert all(a.score > b.score for a, b in zip(right, wrong, strict=True))
    matched, mismatched = ([score for a in found for score in a.word_scores] for found in (right, wrong))
    assert auc(np.array(matched), np.array(mismatched)) > 0.95
    exchanged = np.array([a.word_scores[-1] - b.word_scores[-1] for a, b in zip(right, spoiled, strict=True)])
    assert (exchanged > 0).mean() >= 0.9


def test_log_probabilities_are_those_of_the_whole_model(verifier: AsrVerifier) -> None:
    """Against one forward pass of the official class, token by token."""
    samples = clip(2.2)
    example = verifier.encoder.encode(samples, " ".join(WORDS))
    batch = verifier.encoder.batch([example])
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "input_features", "input_features_mask")}
    with torch.no_grad():
        logits = verifier.model(**inputs).logits
    expected = [
        float(logits[0, place - 1].log_softmax(dim=-1)[token])
        for place, token in enumerate(batch["input_ids"][0].tolist())
        if batch["labels"][0, place] != -100
    ]
    (found,) = verifier.log_probabilities([example])
    assert found.tolist() == pytest.approx(expected, abs=1e-5)


def test_silence_supports_no_word(verifier: AsrVerifier) -> None:
    found = aligned(verifier.align([AlignmentItem(np.zeros(32_000, dtype=np.float32), WORDS)])[0])
    assert found.word_scores == (0, 0, 0)
    assert found.score == 0


def test_a_batch_changes_no_score(verifier: AsrVerifier) -> None:
    items = [AlignmentItem(clip(s, n), WORDS[: n + 1]) for n, s in enumerate((0.5, 3.0, 1.7))]
    for item, outcome in zip(items, verifier.align(items), strict=True):
        alone = aligned(verifier.align([item])[0])
        assert aligned(outcome).word_scores == pytest.approx(alone.word_scores, abs=1e-3)


def test_tokens_are_counted_to_their_words(verifier: AsrVerifier) -> None:
    tokenizer = verifier.processor.tokenizer
    owners = verifier.token_owners(("שלום", "קונסטנטינופול", "ב2024"))
    ids = verifier.encoder.token_ids("שלום קונסטנטינופול ב2024")
    parts = [tokenizer.decode([i for i, owner in zip(ids, owners, strict=True) if owner == word]) for word in range(3)]
    assert [part.strip() for part in parts] == ["שלום", "קונסטנטינופול", "ב2024"]


def test_what_cannot_be_verified_is_a_failure_and_not_a_score(verifier: AsrVerifier) -> None:
    items = [AlignmentItem(clip(1), ()), AlignmentItem(clip(0), WORDS), AlignmentItem(clip(301), WORDS)]
    assert all(isinstance(outcome, FailedToAlign) for outcome in verifier.align(items))


def test_without_times_words_count_by_score_and_untranscribed_speech_is_unknown() -> None:
    alignment = Alignment((None, None), (1.0, -1.0), 0.0, has_times=False)
    pair = Pair((3, 1), 5, 2.0, np.ones(200, dtype=bool), alignment)
    found = measure(pair, 0.0, QualityThresholds())
    assert found.accepted.tolist() == [True, False]
    assert found.alignment_coverage == 0.75
    assert found.speech_coverage is None
    assert found.longest_untranscribed_seconds is None


def test_a_model_that_is_not_there_is_one_line_with_the_way_out() -> None:
    with pytest.raises(ValueError, match="download it on a machine with network, or give a folder") as caught:
        build_aligner(recipe("Qwen/Qwen3-ASR-1.7B"))
    assert "\n" not in str(caught.value)
