"""A remembered outcome is the fresh one, to the bit."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import soundfile

from caspi.config import Recipe
from caspi.model.aligners.battery import Outcome, Task, measure_group
from caspi.model.aligners.blind import RandomAligner
from caspi.model.aligners.outcome_record import NOT_FINITE, outcome_json, outcome_of, request_json
from caspi.records import dump_json
from caspi.speech.alignment.controls import DECOY, ORIGINAL, PlannedPair
from caspi.speech.alignment.quality import Alignment, Pair

PLANNED = (PlannedPair(ORIGINAL, ("שלום", "רב")), PlannedPair(DECOY, ("ילדה",), "reversed", 0.3))


def remembered(outcome: Outcome) -> Outcome:
    return outcome_of(outcome.id, json.loads(dump_json(outcome_json(outcome))))


def made_outcome(**changes: object) -> Outcome:
    rng = np.random.default_rng(1)
    speech = rng.random(203) < 0.6
    values = {"spans": ((np.float64(0.1), 1 / 3), None), "word_scores": (np.float32(0.3), 1e-17), "score": 2 / 3}
    pair = Pair((4, 3), 8, 2.031, speech, Alignment(**(values | changes)))  # type: ignore[arg-type]
    return Outcome("u1", {ORIGINAL: pair}, {DECOY: "too short"}, 1.1, None)


def test_spans_scores_and_mask_come_back_exactly() -> None:
    before, after = made_outcome(word_confidences=(0.1, 0.2)), remembered(made_outcome(word_confidences=(0.1, 0.2)))
    assert after._replace(pairs={}) == before._replace(pairs={})
    first, second = asdict(before.pairs[ORIGINAL]), asdict(after.pairs[ORIGINAL])
    np.testing.assert_array_equal(first.pop("speech"), second.pop("speech"))
    assert first == second


def test_a_real_outcome_and_a_broken_file_come_back(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 16_000), 16_000)
    recipe = Recipe()
    for task in (Task("a", str(path), 0.0, 1.0, PLANNED), Task("b", str(tmp_path / "none.wav"), 0.0, 1.0, PLANNED)):
        (outcome,) = measure_group([task], RandomAligner(recipe), recipe)
        assert outcome_json(remembered(outcome)) == outcome_json(outcome)
        assert remembered(outcome).audio_error == outcome.audio_error


@pytest.mark.parametrize(
    "changes", [{"score": float("nan")}, {"word_scores": (float("inf"), 1.0)}, {"spans": ((0.0, float("nan")), None)}]
)
def test_a_number_that_is_not_finite_is_a_failure(changes: dict[str, object]) -> None:
    after = remembered(made_outcome(**changes))
    assert after.pairs == {}
    assert after.failures == {DECOY: "too short", ORIGINAL: NOT_FINITE}


@pytest.mark.parametrize("value", [None, [], {}, {"pairs": {"original": {}}}, 3])
def test_rubbish_is_refused_in_one_line(value: object) -> None:
    with pytest.raises(ValueError, match="remembered alignment of u1") as caught:
        outcome_of("u1", value)
    assert "\n" not in str(caught.value)


def test_words_stretch_and_distortion_are_part_of_the_request() -> None:
    base = Task("a", "a.wav", 0.0, 1.0, PLANNED)
    others = [
        base._replace(offset_seconds=0.5),
        base._replace(duration_seconds=2.0),
        base._replace(planned=PLANNED[:1]),
        base._replace(planned=(PLANNED[0]._replace(words=("שלום רב",)), PLANNED[1])),
        base._replace(planned=(PLANNED[0], PLANNED[1]._replace(amount=0.4))),
    ]
    assert len({dump_json(request_json(task)) for task in [base, *others]}) == 6
    assert request_json(base._replace(id="z", audio_filepath="moved.wav")) == request_json(base)
