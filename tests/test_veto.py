import numpy as np
import pytest

from caspi.config import Compare
from caspi.records import ComparedControl, Prediction
from caspi.speech.scoring.behaviour import Behaviour, behaviour_of, worsened
from caspi.speech.scoring.veto import compare_controls

WORDS = 10


def rows(error_rate: float, num_clips: int = 300, reference: bool = True) -> list[Prediction]:
    """Clips in which each word is wrong, or over silence invented, with this probability."""
    rng = np.random.default_rng(round(1000 * error_rate))
    made = []
    for index in range(num_clips):
        wrong = rng.random(WORDS if reference else 1) < error_rate
        words = ["טעות" if bad else "מילה" for bad in wrong] if reference else ["הזיה"] * int(wrong.sum())
        text = " ".join(["מילה"] * WORDS) if reference else ""
        fields = {"id": f"u{index}", "test_set": "english", "reference": text, "hypothesis": " ".join(words)}
        more = {"domain": "x", "group_id": None, "duration": 1.0, "finish_reason": "stop"}
        made.append(Prediction.model_validate({**fields, **more}))
    return made


def control(before: list[Prediction], after: list[Prediction], **fields: float) -> ComparedControl:
    values = {"control_sets": ("english",), "num_bootstrap_draws": 1000, "num_permutations": 100, **fields}
    (one,) = compare_controls(before, after, Compare.model_validate(values))
    return one


@pytest.mark.parametrize(
    ("after", "outcome"),
    [(0.10, "met"), (0.05, "met"), (0.30, "missed"), (0.12, "cannot tell")],
    ids=["the same", "better", "spoilt", "at the bound"],
)
def test_a_control_set_may_get_worse_only_within_its_bound(after: float, outcome: str) -> None:
    found = control(rows(0.10), rows(after + 1e-3))
    assert (found.measure, found.outcome, found.bound) == ("WER", outcome, 0.02)


@pytest.mark.parametrize(("after", "outcome"), [(0.0, "met"), (0.3, "missed")])
def test_over_silence_invented_words_are_counted(after: float, outcome: str) -> None:
    found = control(rows(0.0, reference=False), rows(after, reference=False))
    assert (found.measure, found.outcome, found.round1) == ("invented words per clip", outcome, 0.0)


def test_silence_that_stays_silent_in_few_clips_proves_little() -> None:
    assert control(rows(0, 25, False), rows(0, 25, False), min_utterances=20).outcome == "cannot tell"
    assert control(rows(0, 35, False), rows(0, 35, False)).outcome == "met"


def test_a_control_set_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="names nowhere, which is no test set"):
        compare_controls(rows(0.1, 3), rows(0.1, 3), Compare(control_sets=("nowhere",)))


def test_loops_cut_off_empty_and_foreign_output_are_seen_and_their_rise_named() -> None:
    before = rows(0.0, 4)
    changes = [
        {"hypothesis": "כן " * 30},
        {"finish_reason": "length"},
        {"hypothesis": ""},
        {"hypothesis": "hello there"},
    ]
    after = [row.model_copy(update=change) for row, change in zip(before, changes, strict=True)]
    (row,) = looks(after)
    assert (row.loop_fraction, row.truncated_fraction, row.empty_fraction) == (0.25, 0.25, 0.25)
    assert row.foreign_fraction == pytest.approx(10 / (60 + 4 * WORDS + 10))
    warnings = list(worsened(looks(before), looks(after), max_increase=0.01))
    assert [text.partition(" rose")[0] for text in warnings] == [
        "english: texts in a repetition loop",
        "english: texts cut off",
        "english: empty texts",
        "english: letters that are not Hebrew",
    ]
    assert not list(worsened(looks(before), looks(after), max_increase=0.5))


def looks(predictions: list[Prediction]) -> list[Behaviour]:
    return behaviour_of(predictions, 20, "Hebrew", {"english": "English"})


def test_the_language_that_the_model_names_is_held_against_that_of_the_test_set() -> None:
    tagged = ["English", "English", "Hebrew", ""]
    before = [row.model_copy(update={"language_tag": "English"}) for row in rows(0.0, 4)]
    after = [row.model_copy(update={"language_tag": tag}) for row, tag in zip(before, tagged, strict=True)]
    failed = after[0].model_copy(update={"finish_reason": "error", "hypothesis": "", "language_tag": None})
    assert [looks(rounds)[0].language_accuracy for rounds in (before, after, [*after, failed])] == [1.0, 0.5, 0.5]
    assert behaviour_of(after, 20, "Hebrew", {})[0].language_accuracy == 0.25
    assert looks(rows(0.0, 4))[0].language_accuracy is None
    assert list(worsened(looks(before), looks(after), max_increase=0.01)) == [
        "english: texts with another language named rose from 0.0% to 50.0%"
    ]
    assert not list(worsened(looks(rows(0.0, 4)), looks(after), max_increase=0.01))
