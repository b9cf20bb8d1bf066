"""Training and evaluation share no recording, and every utterance is somewhere."""

from typing import Any

import pytest

from caspi.records import Utterance
from caspi.speech.corpora.split import Split, fixed_subset, split_utterances


def utterance(number: int, **changes: Any) -> Utterance:
    fields: dict[str, Any] = {"duration": 3.0, "domain": "kan_clean", "group_id": f"show{number % 20}"} | changes
    return Utterance(id=f"u{number}", audio_filepath=f"{number}.wav", text="שלום", **fields)


def split(utterances: list[Utterance], fraction: float = 0.1, seed: int = 1) -> Split:
    return split_utterances(
        utterances, min_duration_seconds=0.5, max_duration_seconds=15.0, evaluation_fraction=fraction, seed=seed
    )


def ids(utterances: list[Utterance]) -> set[str]:
    return {item.id for item in utterances}


CORPUS = [utterance(number) for number in range(200)]


def test_whole_recordings_are_held_out_until_the_share_is_reached() -> None:
    made = split(CORPUS)
    assert ids(made.training) | ids(made.evaluation) == ids(CORPUS)
    assert not {item.group_id for item in made.training} & {item.group_id for item in made.evaluation}
    assert len(made.evaluation) == 20


def test_adding_recordings_moves_no_old_one_from_evaluation_to_training() -> None:
    more = CORPUS + [utterance(number, group_id=f"new{number % 20}") for number in range(200, 400)]
    assert ids(split(CORPUS).evaluation) <= ids(split(more, fraction=0.15).evaluation) | ids(split(more).evaluation)
    again = split(list(reversed(CORPUS)))
    assert ids(again.evaluation) == ids(split(CORPUS).evaluation)


def test_seeds_choose_other_recordings() -> None:
    assert len({frozenset(ids(split(CORPUS, seed=seed).evaluation)) for seed in range(10)}) > 5


def test_utterances_without_a_recording_are_held_out_one_by_one() -> None:
    alone = [utterance(number, group_id=None) for number in range(100)]
    assert len(split(alone, fraction=0.07).evaluation) == 7


def test_the_manifests_own_split_is_taken_at_its_word() -> None:
    marked = [utterance(n, split="Validation" if n < 5 else "train") for n in range(50)]
    marked += [utterance(50, split=" DEV "), utterance(51, split=None), utterance(52, split="test")]
    made = split(marked)
    assert ids(made.evaluation) == {"u0", "u1", "u2", "u3", "u4", "u50"}
    assert "u51" in ids(made.training)
    assert [(item.id, item.reason) for item in made.left_out] == [("u52", "OTHER_SPLIT")]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"duration": 15.01}, "TOO_LONG"),
        ({"duration": 0.49}, "TOO_SHORT"),
        ({"needs_resegmentation": True}, "NEEDS_RESEGMENTATION"),
        ({"split": "test"}, "OTHER_SPLIT"),
    ],
)
def test_what_is_left_out_is_named_with_its_reason(changes: dict[str, Any], reason: str) -> None:
    made = split([*CORPUS, utterance(999, **changes)])
    assert [(item.id, item.reason) for item in made.left_out] == [("u999", reason)]


def test_the_limits_themselves_are_admitted() -> None:
    assert split([*CORPUS, utterance(998, duration=15.0), utterance(999, duration=0.5)]).left_out == []


@pytest.mark.parametrize(
    "corpus", [[utterance(0)], [utterance(n, group_id="one") for n in range(9)], [utterance(0, duration=99)]]
)
def test_a_side_without_utterances_is_refused(corpus: list[Utterance]) -> None:
    with pytest.raises(ValueError, match="both need some"):
        split(corpus)


def test_a_larger_fixed_subset_contains_the_smaller_one() -> None:
    small, large = fixed_subset(CORPUS, 10, 1), fixed_subset(CORPUS, 50, 1)
    assert set(small) < set(large)
    assert small == sorted(small)
    assert len(small) == 10
    assert fixed_subset(CORPUS, 999, 1) == list(range(200))
