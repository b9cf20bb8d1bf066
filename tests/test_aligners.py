"""Aligners behind their common interface; tts-dtw against known word times."""

import numpy as np
import pytest
from numpy.typing import NDArray

from caspi.config import Recipe
from caspi.model.aligners import BACKENDS, AlignmentItem, FailedToAlign, build_aligner
from caspi.model.aligners.tts_dtw import warp
from caspi.speech.alignment.quality import Alignment
from caspi.speech.augment import add_noise
from caspi.speech.synthetic.espeak import speak

SENTENCES = [
    (("שלום", "לבן", "ילדה", "רוצה", "מיץ"), "he+f2", 150),
    (("הילדים", "הלכו", "לבית", "הספר", "בבוקר"), "he+m3", 180),
    (("אתמול", "ירד", "גשם", "חזק"), "he+m1", 135),
]


def recipe(backend: str, **changes: object) -> Recipe:
    audit = Recipe().audit.model_copy(update={"backend": backend, **changes})
    return Recipe().model_copy(update={"audit": audit})


def recording(index: int) -> tuple[NDArray[np.float32], list[tuple[float, float]]]:
    words, voice, rate = SENTENCES[index]
    spoken = speak(words, voice=voice, rate_wpm=rate)
    samples = add_noise(np.pad(spoken.samples, 4000), 30.0, np.random.default_rng(index))
    return samples.astype(np.float32), [(start + 0.25, end + 0.25) for start, end in spoken.word_times]


def aligned(outcome: Alignment | FailedToAlign) -> Alignment:
    assert isinstance(outcome, Alignment), outcome
    return outcome


@pytest.mark.parametrize("backend", ["uniform", "random"])
def test_every_word_gets_an_ordered_span_inside_the_audio(backend: str) -> None:
    samples = np.zeros(32_000, dtype=np.float32)
    result = aligned(build_aligner(recipe(backend)).align([AlignmentItem(samples, ("א", "ב", "ג"))])[0])
    times = [time for span in result.spans if span for time in span]
    assert len(result.spans) == len(result.word_scores) == 3
    assert times == sorted(times)
    assert 0 <= times[0] <= times[-1] <= 2


def test_uniform_is_as_sure_of_any_text() -> None:
    items = [AlignmentItem(np.zeros(n, dtype=np.float32), ("א",) * k) for n, k in ((1000, 1), (90_000, 7))]
    assert {aligned(result).score for result in build_aligner(recipe("uniform")).align(items)} == {1.0}


@pytest.mark.espeak
def test_words_are_found_where_they_are_spoken() -> None:
    errors: list[float] = []
    aligner = build_aligner(recipe("tts-dtw"))
    for index, (words, _, _) in enumerate(SENTENCES):
        samples, truth = recording(index)
        result = aligned(aligner.align([AlignmentItem(samples, words)])[0])
        for span, (start, end) in zip(result.spans, truth, strict=True):
            assert span is not None
            errors += [abs(span[0] - start), abs(span[1] - end)]
    assert np.median(errors) < 0.03
    assert np.percentile(errors, 90) < 0.15


@pytest.mark.espeak
def test_the_right_transcript_scores_above_wrong_ones() -> None:
    aligner = build_aligner(recipe("tts-dtw"))
    for index, (words, _, _) in enumerate(SENTENCES):
        samples, _ = recording(index)
        wrong = [sentence for other, (sentence, _, _) in enumerate(SENTENCES) if other != index]
        scores = [aligned(r).score for r in aligner.align([AlignmentItem(samples, w) for w in (words, *wrong)])]
        assert scores[0] > max(scores[1:]) + 0.1


@pytest.mark.espeak
def test_a_batch_changes_nothing() -> None:
    aligner = build_aligner(recipe("tts-dtw"))
    items = [AlignmentItem(recording(i)[0], words) for i in range(2) for words, _, _ in SENTENCES]
    shared = [AlignmentItem(items[0].samples, item.words) for item in items[:3]]
    assert aligner.align(shared) == [aligner.align([item])[0] for item in shared]
    assert aligner.align(items) == [aligner.align([item])[0] for item in items]


@pytest.mark.espeak
def test_more_voices_never_lower_the_score() -> None:
    samples, _ = recording(0)
    item = AlignmentItem(samples, SENTENCES[0][0])
    one = aligned(build_aligner(recipe("tts-dtw")).align([item])[0])
    three = aligned(build_aligner(recipe("tts-dtw", reference_voices=("", "+f2", "+m3"))).align([item])[0])
    assert three.score >= one.score


@pytest.mark.espeak
def test_what_cannot_be_aligned_is_a_failure_and_not_a_score() -> None:
    samples, _ = recording(0)
    words = SENTENCES[0][0]
    items = [AlignmentItem(samples, ("25", "WhatsApp-x")), AlignmentItem(samples, words)]
    items.append(AlignmentItem(np.zeros(0, dtype=np.float32), words))
    results = build_aligner(recipe("tts-dtw")).align(items)
    assert isinstance(results[0], FailedToAlign)
    assert isinstance(results[1], Alignment)
    assert isinstance(results[2], FailedToAlign)


@pytest.mark.espeak
@pytest.mark.parametrize("num_samples", [1, 100, 600, 3000])
def test_very_short_audio_is_aligned_without_nan(num_samples: int) -> None:
    samples = np.random.default_rng(0).normal(0, 0.1, num_samples).astype(np.float32)
    result = aligned(build_aligner(recipe("tts-dtw")).align([AlignmentItem(samples, ("שלום",))])[0])
    assert np.isfinite([result.score, *result.word_scores]).all()


@pytest.mark.usefixtures("without_espeak")
def test_a_missing_engine_is_said_with_the_way_out() -> None:
    from caspi.model.aligners.tts_dtw import build_pool, render

    render.cache_clear()
    build_pool.cache_clear()
    with pytest.raises(ValueError, match="make setup"):
        build_aligner(recipe("tts-dtw"))


def test_an_unknown_backend_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=", ".join(BACKENDS)):
        build_aligner(recipe("mfa"))


def test_warping_finds_the_cheapest_of_all_paths() -> None:
    """Against enumeration of every path with steps 0, 1, 2 on small matrices."""
    rng = np.random.default_rng(3)
    matrices = [rng.random((5, width)).astype(np.float32) for width in (1, 2, 4, 7)]

    def cheapest(cost: NDArray[np.float32]) -> float:
        best = np.inf
        width = cost.shape[1]

        def walk(frame: int, position: int, total: float) -> None:
            nonlocal best
            total += float(cost[frame, position])
            if frame == len(cost) - 1:
                best = min(best, total) if position >= width - 3 else best
                return
            for step in (0, 1, 2):
                if position + step < width:
                    walk(frame + 1, position + step, total + (0.0 if step == 1 else 0.02))

        for start in range(min(3, width)):
            walk(0, start, 0.0)
        return float(best)

    for cost, path in zip(matrices, warp(matrices), strict=True):
        steps = np.diff(path)
        total = cost[np.arange(5), path].sum() + 0.02 * (steps != 1).sum()
        assert set(steps.tolist()) <= {0, 1, 2}
        assert total == pytest.approx(cheapest(cost), abs=1e-5)
