"""The first rule that holds decides, for clips whose words are placed by hand."""

from typing import Any

import numpy as np
import pytest

from caspi.config import Clean, QualityThresholds
from caspi.records import Utterance
from caspi.speech.alignment.actions import Choice, Clip, Lengths, choose, not_alignable, verdict
from caspi.speech.alignment.calibration import Judgement
from caspi.speech.alignment.cleaned_lines import cut_out, lines_of
from caspi.speech.alignment.quality import Alignment, Pair, measure
from caspi.speech.corpora.audio import SAMPLE_RATE_HZ

LENGTHS, LIMITS, SETTINGS = Lengths(0.5, 15.0), QualityThresholds(), Clean()


def made_clip(
    *reasons: str,
    heard: list[bool] | None = None,
    num_words: int = 8,
    lead: float = 0.3,
    tail: float = 0.3,
    speech_after: float = 0.0,
    has_times: bool = True,
    **changes: Any,
) -> tuple[Clip, np.ndarray]:
    """Words of 0.8 s with pauses of 0.2 s; `speech_after` more seconds of speech follow after half a second."""
    heard = [True] * num_words if heard is None else heard
    spans = [(lead + index, lead + index + 0.8) for index in range(len(heard))]
    end = spans[-1][1] + tail + (0.5 + speech_after if speech_after else 0.0)
    loud = [*spans, (spans[-1][1] + 0.5, spans[-1][1] + 0.5 + speech_after)]
    samples = np.zeros(round(end * SAMPLE_RATE_HZ), np.float32)
    speech = np.zeros(-(-len(samples) // 160), dtype=bool)
    for start, stop in loud:
        samples[round(start * SAMPLE_RATE_HZ) : round(stop * SAMPLE_RATE_HZ)] = 0.1
        speech[round(start * 100) : round(stop * 100)] = True
    placed = tuple(spans) if has_times else (None,) * len(heard)
    alignment = Alignment(placed, tuple(map(float, heard)), 1.0, has_times=has_times)
    pair = Pair((4,) * len(heard), 5 * len(heard), end, speech, alignment)
    text = " ".join(["מילה"] * len(heard))
    utterance = Utterance(id="u", audio_filepath="u.wav", text=text, duration=end, domain="d", **changes)
    judgement = Judgement(measure(pair, 0.5, LIMITS), 0.9, False, list(reasons))
    return Clip(utterance, list(reasons), None, pair, judgement), samples


def decide(clip: Clip, samples: np.ndarray) -> Choice:
    return choose(clip, lambda: samples, LENGTHS, LIMITS, SETTINGS)


def never() -> np.ndarray:
    raise AssertionError("the audio was loaded although nothing can be cut")


def test_a_good_utterance_is_kept_without_loading_its_audio() -> None:
    clip, _ = made_clip()
    assert choose(clip, never, LENGTHS, LIMITS, SETTINGS) == Choice("keep", [], "")


@pytest.mark.parametrize("reason", ["AUDIO_ERROR", "EMPTY_TRANSCRIPT", "NO_SPEECH"])
def test_what_holds_nothing_is_dropped_whatever_its_length(reason: str) -> None:
    clip, _ = made_clip(reason, num_words=20)
    assert choose(clip, never, LENGTHS, LIMITS, SETTINGS).action == "drop"


def test_a_decoy_that_wins_drops_what_could_be_rescued_only_below_the_coverage_of_the_rule() -> None:
    reasons = "LOW_COVERAGE", "DECOY_WINS"
    for num_lost, action in ((10, "drop"), (9, "rescue")):
        clip, samples = made_clip(*reasons, heard=[True] * 4 + [False] * num_lost)
        clip = clip if num_lost == 10 else made_clip(*reasons, heard=[True] * 5 + [False] * 9)[0]
        assert (clip.coverage < SETTINGS.max_decoy_win_coverage) == (action == "drop")
        assert decide(clip, samples).action == action


@pytest.mark.parametrize("reason", ["TOO_LONG", "ALIGN_ERROR"])
def test_what_was_not_measured_goes_to_a_person(reason: str) -> None:
    clip, _ = made_clip(reason)
    assert choose(clip, never, LENGTHS, LIMITS, SETTINGS).action == "review"


def test_long_utterances_are_resegmented_before_anything_else() -> None:
    for reasons in ((), ("LOW_CONFIDENCE",)):
        clip, samples = made_clip(*reasons, num_words=20, lead=2.0)
        chosen = decide(clip, samples)
        assert chosen.action == "resegment"
        assert [one.last_word - one.first_word for one in chosen.segments] == [10, 10]


def test_a_mark_of_prepare_counts_as_long() -> None:
    clip, samples = made_clip(needs_resegmentation=True)
    assert decide(clip, samples).action == "resegment"


def test_a_long_utterance_that_cannot_be_cut_goes_to_a_person_and_is_never_cut_blindly() -> None:
    clip, samples = made_clip(heard=[True, False] * 10)
    assert decide(clip, samples) == Choice("review", [], "there is no way to cut it")


def test_a_long_utterance_with_a_part_that_was_heard_is_rescued() -> None:
    clip, samples = made_clip("LOW_COVERAGE", heard=[True] * 8 + [False] * 16)
    chosen = decide(clip, samples)
    assert chosen.action == "rescue"
    assert [(one.first_word, one.last_word) for one in (*chosen.segments, *chosen.left_out)] == [(0, 7), (7, 24)]


@pytest.mark.parametrize(("lead", "action"), [(0.99, "keep"), (1.02, "trim")])
def test_silence_at_an_edge_is_trimmed_from_a_second_on(lead: float, action: str) -> None:
    clip, samples = made_clip(lead=lead)
    chosen = decide(clip, samples)
    assert chosen.action == action
    if action == "trim":
        (segment,) = chosen.segments
        assert segment.start_seconds == pytest.approx(lead - 0.2)
        assert segment.end_seconds == pytest.approx(lead + 7.8 + 0.2)
        assert segment.text == clip.utterance.text


def test_speech_without_text_at_an_edge_is_trimmed_off() -> None:
    clip, samples = made_clip("UNTRANSCRIBED_SPEECH", "LENGTH_MISMATCH", speech_after=3.0)
    chosen = decide(clip, samples)
    assert chosen.action == "trim"
    assert chosen.segments[0].end_seconds == pytest.approx(0.3 + 7.8 + 0.2, abs=0.011)


def test_speech_without_text_is_not_trimmed_where_the_text_was_not_heard() -> None:
    clip, samples = made_clip("UNTRANSCRIBED_SPEECH", heard=[*[True] * 6, False, False], speech_after=3.0)
    assert decide(clip, samples).action == "rescue"


@pytest.mark.parametrize(("pattern", "action"), [([True, False], "review"), ([True, False, False], "drop")])
def test_other_low_quality_is_reviewed_or_dropped_by_coverage(pattern: list[bool], action: str) -> None:
    clip, samples = made_clip("LOW_COVERAGE", heard=pattern * 4)
    assert decide(clip, samples).action == action
    assert verdict(clip, SETTINGS) == action


def test_a_backend_without_times_keeps_drops_and_reviews_but_cuts_nothing() -> None:
    for reasons, num_words, action in (((), 8, "keep"), ((), 20, "review"), (("LOW_CONFIDENCE",), 8, "review")):
        clip, samples = made_clip(*reasons, num_words=num_words, has_times=False)
        assert decide(clip, samples).action == action


def test_no_word_and_too_much_audio_are_told_apart() -> None:
    clip, _ = made_clip()
    empty = clip.utterance.model_copy(update={"text": "–!"})
    assert not_alignable(empty, 300.0).reasons == ["EMPTY_TRANSCRIPT"]
    assert not_alignable(clip.utterance.model_copy(update={"duration": 301.0}), 300.0).reasons == ["TOO_LONG"]


def test_segments_get_new_ids_a_common_group_and_the_text_before_them() -> None:
    clip, samples = made_clip(num_words=20, offset=7.0, prev_text="קודם")
    chosen = decide(clip, samples)
    first, second = cut_out(clip.utterance, chosen, {"u", "u-02"})
    assert (first.id, second.id) == ("u-01", "u-02+")
    assert first.group_id == second.group_id == "u"
    assert (first.prev_text, second.prev_text) == ("קודם", first.text)
    assert second.offset == pytest.approx(7.0 + chosen.segments[1].start_seconds)
    assert not first.needs_resegmentation


def test_a_segment_that_does_not_pass_is_not_kept() -> None:
    clip, samples = made_clip(num_words=20)
    chosen = decide(clip, samples)
    good, bad = cut_out(clip.utterance, chosen, {"u"})
    heard, _ = made_clip()
    lost, _ = made_clip("LOW_COVERAGE", heard=[True, False, False] * 3)
    segments = [heard._replace(utterance=good), lost._replace(utterance=bad)]
    kept, dropped = lines_of(clip, chosen, segments, SETTINGS)
    assert (kept.action, kept.tier, kept.parent_id) == ("resegment", "strong", "u")
    assert (dropped.action, dropped.attempted, dropped.tier) == ("drop", "resegment", None)
    assert dropped.reasons == ("LOW_COVERAGE",)
