"""Metric definitions on spans written by hand."""

from typing import Any

import numpy as np
import pytest

from caspi.config import QualityThresholds
from caspi.speech.alignment.quality import Alignment, Pair, length_mismatch, measure, plausible_words, quality_reasons

LIMITS = QualityThresholds()
Spans = list[tuple[float, float] | None]


def pair(
    spans: Spans, letters: list[int], scores: list[float] | None = None, speech: str = "0-4", end: float = 4.0
) -> Pair:
    """speech: stretches like "0-1 2-4" in seconds."""
    mask = np.zeros(round(end * 100), dtype=bool)
    for stretch in speech.split():
        first, last = map(float, stretch.split("-"))
        mask[round(first * 100) : round(last * 100)] = True
    scores = scores or [1.0] * len(spans)
    alignment = Alignment(tuple(spans), tuple(scores), float(np.mean(scores)))
    return Pair(tuple(letters), sum(letters) + len(letters) - 1, end, mask, alignment)


def test_coverage_counts_letters_not_words() -> None:
    measures = measure(pair([(0, 1), (1, 2), (2, 4)], [3, 3, 15], [1.0, 1.0, 0.2]), 0.5, LIMITS)
    assert measures.accepted.tolist() == [True, True, False]
    assert measures.alignment_coverage == pytest.approx(6 / 21)


def test_speech_coverage_counts_accepted_words_only() -> None:
    measures = measure(pair([(0, 1), (1, 2), (2, 4)], [5, 5, 15], [1.0, 1.0, 0.2]), 0.5, LIMITS)
    assert measures.speech_coverage == pytest.approx(2.08 / 4)
    assert measures.longest_untranscribed_seconds == pytest.approx(1.92)


def test_short_gaps_between_accepted_words_count_as_covered_and_long_ones_do_not() -> None:
    near = measure(pair([(0, 1), (1.28, 2)], [5, 5], end=2.0, speech="0-2"), 0.5, LIMITS)
    far = measure(pair([(0, 0.5), (1.5, 2)], [5, 5], end=2.0, speech="0-2"), 0.5, LIMITS)
    assert near.speech_coverage == 1.0
    assert far.speech_coverage == pytest.approx((0.58 + 0.58) / 2)
    assert far.longest_untranscribed_seconds == pytest.approx(0.84)


def test_pauses_do_not_hide_untranscribed_speech() -> None:
    measures = measure(pair([(0, 1)], [5], speech="0-1 1.5-2 2.5-3 3.5-4"), 0.5, LIMITS)
    assert measures.longest_untranscribed_seconds == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("spans", "letters", "expected"),
    [
        ([(0, 1), None], [4, 4], [True, False]),
        ([(1, 0.5), (1, 2)], [4, 4], [False, True]),
        ([(-0.1, 0.5), (1, 2)], [4, 4], [False, True]),
        ([(0, 1), (3.5, 4.16)], [4, 4], [True, True]),
        ([(0, 1), (3.5, 4.2)], [4, 4], [True, False]),
        ([(0, 1.5), (2, 3)], [4, 4], [False, True]),
        ([(0, 1), (1, 1), (1, 1), (1, 1), (1, 2)], [9, 1, 1, 1, 9], [True, False, False, False, True]),
        ([(0, 1), (1, 1), (1, 2), (2, 3)], [5, 2, 5, 5], [True, True, True, True]),
        ([(0, 1), (1, 1), (1, 2)], [4, 5, 4], [True, False, True]),
        ([(0, 0.1), (0.1, 0.2), (0.2, 0.3), (1, 2)], [5, 5, 5, 5], [False, False, False, True]),
    ],
    ids=[
        "no span",
        "backwards",
        "before 0",
        "overrun ok",
        "overrun",
        "stretched",
        "collapse",
        "one zero word",
        "a heavy zero word",
        "too fast",
    ],
)
def test_impossible_spans_are_not_accepted(spans: Spans, letters: list[int], expected: list[bool]) -> None:
    assert plausible_words(pair(spans, letters), LIMITS).tolist() == expected


def test_a_span_must_lie_on_speech() -> None:
    assert plausible_words(pair([(0, 1), (2, 3)], [4, 4], speech="0-1"), LIMITS).tolist() == [True, False]


def test_a_single_word_is_judged_like_any_other() -> None:
    measures = measure(pair([(0, 1)], [4], end=1.0, speech="0-1"), 0.5, LIMITS)
    assert measures.alignment_coverage == measures.speech_coverage == 1.0


@pytest.mark.parametrize(("letters", "expected"), [(19, True), (20, False), (79, False), (80, True)])
def test_the_guides_bounds_on_characters_per_second_hold(letters: int, expected: bool) -> None:
    made = pair([(0, 4)], [letters])
    made = Pair(made.letters, letters if letters < 50 else letters + 1, 4.0, made.speech, made.alignment)
    assert length_mismatch(made, None, LIMITS) is expected


def test_an_unusual_rate_for_the_domain_is_a_mismatch() -> None:
    typical = (float(np.log(10.0)), 0.05)
    assert not length_mismatch(pair([(0, 4)], [52]), typical, LIMITS)
    assert length_mismatch(pair([(0, 4)], [60]), typical, LIMITS)


def test_each_threshold_raises_its_reason_and_equality_does_not() -> None:
    measures = measure(pair([(0, 1)], [4], end=1.0, speech="0-1"), 0.5, LIMITS)

    def reasons(**changes: Any) -> list[str]:
        return quality_reasons(
            measures._replace(**changes),
            speech_seconds=1.0,
            confidence=0.5,
            is_length_mismatch=False,
            decoy_margin=0.01,
            limits=LIMITS,
        )

    assert reasons(alignment_coverage=0.6, speech_coverage=0.6, longest_untranscribed_seconds=2.0) == []
    assert reasons(alignment_coverage=0.59) == ["LOW_COVERAGE"]
    assert reasons(speech_coverage=0.59) == ["UNTRANSCRIBED_SPEECH"]
    assert reasons(longest_untranscribed_seconds=2.01) == ["UNTRANSCRIBED_SPEECH"]


def test_a_tie_with_the_decoy_is_lost() -> None:
    measures = measure(pair([(0, 1)], [4], end=1.0, speech="0-1"), 0.5, LIMITS)
    found = quality_reasons(
        measures, speech_seconds=0.1, confidence=0.49, is_length_mismatch=True, decoy_margin=0.0, limits=LIMITS
    )
    assert found == ["LOW_CONFIDENCE", "LENGTH_MISMATCH", "DECOY_WINS", "NO_SPEECH"]
