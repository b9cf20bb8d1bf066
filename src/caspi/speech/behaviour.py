"""How a round's output looks, whatever was said: loops, cut-off and empty texts, letters of another script."""

from collections.abc import Iterator, Sequence

from caspi.records import Prediction, Record
from caspi.speech.hebrew import hebrew_fraction
from caspi.speech.scoreboard import has_loop


class Behaviour(Record):
    """Of one round on one test set; fractions of the clips that have a text."""

    test_set: str
    num_texts: int
    """Clips that did not fail."""
    loop_fraction: float
    truncated_fraction: float
    empty_fraction: float
    foreign_fraction: float | None
    """Share of the letters that are not Hebrew; None without a letter."""


def behaviour_of(predictions: Sequence[Prediction], min_loop_repeats: int) -> list[Behaviour]:
    """One row per test set that has a text."""
    by_set: dict[str, list[Prediction]] = {}
    for row in predictions:
        if row.finish_reason != "error":
            by_set.setdefault(row.test_set, []).append(row)
    rows = []
    for name, texts in by_set.items():
        hebrew = hebrew_fraction(one.hypothesis for one in texts)
        rows.append(
            Behaviour(
                test_set=name,
                num_texts=len(texts),
                loop_fraction=sum(has_loop(one.hypothesis, min_loop_repeats) for one in texts) / len(texts),
                truncated_fraction=sum(one.finish_reason == "length" for one in texts) / len(texts),
                empty_fraction=sum(not one.hypothesis.strip() for one in texts) / len(texts),
                foreign_fraction=None if hebrew is None else 1 - hebrew,
            )
        )
    return rows


def worsened(round1: Sequence[Behaviour], round2: Sequence[Behaviour], max_increase: float) -> Iterator[str]:
    """What Round 2 does more often than Round 1, by more than this share."""
    before = {row.test_set: row for row in round1}
    names = {
        "loop_fraction": "texts in a repetition loop",
        "truncated_fraction": "texts cut off",
        "empty_fraction": "empty texts",
        "foreign_fraction": "letters that are not Hebrew",
    }
    for row in round2:
        for field, name in names.items():
            old = getattr(before[row.test_set], field, None) if row.test_set in before else None
            now = getattr(row, field)
            if old is not None and now is not None and now - old > max_increase:
                yield f"{row.test_set}: {name} rose from {old:.1%} to {now:.1%}"
