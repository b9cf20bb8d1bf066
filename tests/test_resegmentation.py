"""Cuts lie at dips between heard words, the cheapest way of all, and no character of the transcript is lost."""

import itertools

import numpy as np
import pytest

from caspi.config import Cuts
from caspi.speech.alignment.resegmentation import (
    Recording,
    Segment,
    boundaries,
    length_cost,
    levels_db,
    rescue_runs,
    split_recording,
    text_between,
)
from caspi.speech.text import alignment_words

CUTS = Cuts()
LONGEST, SHORTEST = 15.0, 0.5


def made_recording(
    word_seconds: list[float], gaps: list[float], accepted: list[bool] | None = None, text: str | None = None
) -> Recording:
    """Loud words with silent gaps; `gaps` are before, between and after the words."""
    spans, time = [], gaps[0]
    for seconds, gap in zip(word_seconds, gaps[1:], strict=True):
        spans.append((time, time + seconds))
        time += seconds + gap
    frames = np.arange(round(time * 100)) / 100 + 0.005
    loud = np.any([(frames >= start) & (frames < end) for start, end in spans], axis=0)
    text = text or " ".join(["מילה"] * len(word_seconds))
    return Recording(
        text=text,
        words=alignment_words(text),
        spans=np.array(spans),
        accepted=np.array(accepted if accepted is not None else [True] * len(spans)),
        letters=np.full(len(spans), 4.0),
        speech=loud,
        level_db=np.where(loud, -20.0, -60.0),
        duration_seconds=time,
    )


def by_brute_force(recording: Recording) -> float:
    """Least cost of all ways to cut; infinite if there is none."""
    bounds, count = boundaries(recording, CUTS), len(recording.words)
    places = [index for index in range(1, count) if bounds[index].is_admissible]
    best = float("inf")
    for size in range(len(places) + 1):
        for chosen in itertools.combinations(places, size):
            ends = [0, *chosen, count]
            seconds = [bounds[b].end_seconds - bounds[a].start_seconds for a, b in itertools.pairwise(ends)]
            if min(seconds) >= SHORTEST and max(seconds) <= LONGEST:
                cost = sum(length_cost(one, CUTS) for one in seconds) + sum(bounds[place].cost for place in chosen)
                best = min(best, cost)
    return best


def cost_of(recording: Recording, segments: list[Segment]) -> float:
    bounds = boundaries(recording, CUTS)
    inner = [bounds[segment.last_word].cost for segment in segments[:-1]]
    return sum(inner) + sum(length_cost(one.end_seconds - one.start_seconds, CUTS) for one in segments)


@pytest.mark.parametrize("seed", range(12))
def test_no_other_way_to_cut_is_cheaper(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = 11
    recording = made_recording(
        rng.uniform(0.5, 4.0, count).tolist(),
        rng.choice([0.0, 0.1, 0.3, 0.8], count + 1).tolist(),
        (rng.random(count) < 0.8).tolist(),
        " ".join(f"מילה{mark}" for mark in rng.choice(["", ".", ","], count)),
    )
    segments = split_recording(recording, LONGEST, SHORTEST, CUTS)
    expected = by_brute_force(recording)
    if np.isinf(expected):
        assert segments == []
    else:
        assert cost_of(recording, segments) == pytest.approx(expected)
        assert " ".join(segment.text for segment in segments) == recording.text
        for before, after in itertools.pairwise(segments):
            assert before.last_word == after.first_word
            assert before.end_seconds <= after.start_seconds


def test_a_recording_without_a_heard_pair_of_words_is_not_cut() -> None:
    assert split_recording(made_recording([2.0] * 10, [0.3] * 11, [True, False] * 5), LONGEST, SHORTEST, CUTS) == []
    assert split_recording(made_recording([20.0], [0.3, 0.3]), LONGEST, SHORTEST, CUTS) == []


def test_words_without_a_dip_between_them_are_not_separated() -> None:
    assert split_recording(made_recording([2.0] * 10, [0.2, *[0.0] * 9, 0.2]), LONGEST, SHORTEST, CUTS) == []


def test_a_cut_prefers_the_end_of_a_sentence() -> None:
    words = ["מילה"] * 10
    words[4] = 'מילה".'
    recording = made_recording([2.0] * 10, [0.4] * 11, text=" ".join(words))
    assert split_recording(recording, LONGEST, SHORTEST, CUTS)[0].last_word == 5


def test_long_pauses_stay_outside_but_for_the_padding() -> None:
    recording = made_recording([3.0] * 6, [2.0, 0.3, 0.3, 5.0, 0.3, 0.3, 3.0])
    first, second = split_recording(recording, LONGEST, SHORTEST, CUTS)
    assert first.start_seconds == pytest.approx(2.0 - 0.2)
    assert first.end_seconds == pytest.approx(recording.spans[2, 1] + 0.2, abs=0.011)
    assert second.start_seconds == pytest.approx(recording.spans[3, 0] - 0.2, abs=0.011)
    assert second.end_seconds == pytest.approx(recording.duration_seconds - 3.0 + 0.2, abs=0.011)


def test_speech_without_text_in_a_pause_is_not_padded_into() -> None:
    recording = made_recording([3.0] * 6, [0.2, 0.3, 0.3, 5.0, 0.3, 0.3, 0.2])
    gap = int(100 * recording.spans[2, 1])
    recording.speech[gap + 10 : gap + 470] = True
    recording.level_db[gap + 10 : gap + 470] = -20.0
    first, second = split_recording(recording, LONGEST, SHORTEST, CUTS)
    assert first.end_seconds < recording.spans[2, 1] + 0.1
    assert second.start_seconds > recording.spans[3, 0] - 0.31


def test_a_first_word_that_was_not_heard_keeps_the_beginning() -> None:
    recording = made_recording([3.0] * 6, [1.0, 0.3, 0.3, 0.5, 0.3, 0.3, 1.0], [False, *[True] * 4, False])
    segments = split_recording(recording, LONGEST, SHORTEST, CUTS)
    assert segments[0].start_seconds == 0.0
    assert segments[-1].end_seconds == pytest.approx(recording.duration_seconds)


def test_an_aligner_that_goes_backwards_makes_no_overlapping_segments() -> None:
    rng = np.random.default_rng(3)
    recording = made_recording([1.0] * 24, [0.2] * 25)
    for _ in range(30):
        spans = recording.spans + rng.normal(0, 2.0, recording.spans.shape)
        spans = np.clip(np.sort(spans, axis=1), 0.0, recording.duration_seconds + 0.16)
        shaken = recording._replace(spans=spans)
        for segments in (
            split_recording(shaken, LONGEST, SHORTEST, CUTS),
            rescue_runs(shaken, LONGEST, 0.9, CUTS),
        ):
            for before, after in itertools.pairwise(segments):
                assert before.end_seconds <= after.start_seconds
            limit = shaken.duration_seconds + 1e-6
            assert all(0 <= one.start_seconds < one.end_seconds <= limit for one in segments)


def test_the_runs_that_were_heard_are_rescued_up_to_a_word_inside() -> None:
    accepted = [True] * 8 + [False] * 6 + [True] * 6
    recording = made_recording([1.0] * 20, [0.3] * 21, accepted)
    first, second = rescue_runs(recording, LONGEST, 0.9, CUTS)
    assert (first.first_word, first.last_word) == (0, 7)
    assert (second.first_word, second.last_word) == (15, 20)


def test_short_runs_and_runs_full_of_holes_are_not_rescued() -> None:
    assert rescue_runs(made_recording([0.5] * 12, [0.1] * 13, [True] * 5 + [False] * 7), LONGEST, 0.9, CUTS) == []
    assert rescue_runs(made_recording([1.0] * 12, [0.3] * 13, [True, True, False] * 4), LONGEST, 0.9, CUTS) == []


@pytest.mark.parametrize(
    ("text", "first", "second"),
    [
        ('אמר: "שלום רב" – והלך.', 'אמר: "שלום', 'רב" – והלך.'),
        ('רמטכ"ל צה"ל, מר כהן', 'רמטכ"ל צה"ל,', "מר כהן"),
        ("בית־ספר תל־אביב־יפו ג׳ירפה ועוד", "בית־ספר תל־אביב־יפו", "ג׳ירפה ועוד"),
        ("שָׁלוֹם עוֹלָם מַה נִּשְׁמַע", "שָׁלוֹם עוֹלָם", "מַה נִּשְׁמַע"),
        ("— אחת, — שתיים. — שלוש!", "— אחת, — שתיים. —", "שלוש!"),
        ("בשנת 1999 (לערך) היו 25", "בשנת 1999", "(לערך) היו 25"),
    ],
)
def test_punctuation_gershayim_maqaf_and_niqqud_stay_with_their_words(text: str, first: str, second: str) -> None:
    words = alignment_words(text)
    assert text_between(text, words, 0, 2) == first
    assert text_between(text, words, 2, len(words)) == second


def test_any_partition_of_any_text_gives_it_back() -> None:
    rng = np.random.default_rng(1)
    alphabet = [*"אבגדה'\"״׳־–-,.!? 1a好，", "\u05b8", "\u05c1"]
    for _ in range(300):
        text = " ".join("".join(rng.choice(alphabet, 30)).split())
        words = alignment_words(text)
        cuts = sorted({0, len(words), *rng.integers(0, len(words) + 1, 3).tolist()})
        pieces = [text_between(text, words, a, b) for a, b in itertools.pairwise(cuts)]
        assert "".join("".join(pieces).split()) == "".join(text.split())
        for piece, (a, b) in zip(pieces, itertools.pairwise(cuts), strict=True):
            assert [word.text for word in alignment_words(piece)] == [word.text for word in words[a:b]]


def test_levels_are_those_of_the_window() -> None:
    samples = np.concatenate([np.full(16_000, 0.1), np.zeros(1_600), np.full(16_000, 0.1)]).astype(np.float32)
    level = levels_db(samples, 0.03)
    assert len(level) == 210
    assert level[50] == pytest.approx(-20.0, abs=0.01)
    assert level[105] == pytest.approx(-100.0)
    assert np.flatnonzero(level < -60).tolist() == list(range(101, 109))
    assert len(levels_db(np.zeros(1, np.float32), 0.03)) == 1
