"""How a round's output looks, whatever was said: loops, cut-off and empty texts, another script or language."""

from collections.abc import Iterator, Mapping, Sequence

from caspi.records import Prediction, Record
from caspi.speech.hebrew import hebrew_fraction
from caspi.speech.scoring.scoreboard import has_loop


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
    language_accuracy: float | None
    """Share of the texts before which the model named the language of the test set; None where it was not left to the
    model to name one (`language_forcing`)."""


def behaviour_of(
    predictions: Sequence[Prediction], min_loop_repeats: int, language: str, languages: Mapping[str, str]
) -> list[Behaviour]:
    """One row per test set that has a text.

    `languages`: of test sets that are not in `language`, by name.
    """
    by_set: dict[str, list[Prediction]] = {}
    for row in predictions:
        if row.finish_reason != "error":
            by_set.setdefault(row.test_set, []).append(row)
    rows = []
    for name, texts in by_set.items():
        hebrew = hebrew_fraction(one.hypothesis for one in texts)
        tags = [one.language_tag for one in texts if one.language_tag is not None]
        expected = languages.get(name, language)
        rows.append(
            Behaviour(
                test_set=name,
                num_texts=len(texts),
                loop_fraction=sum(has_loop(one.hypothesis, min_loop_repeats) for one in texts) / len(texts),
                truncated_fraction=sum(one.finish_reason == "length" for one in texts) / len(texts),
                empty_fraction=sum(not one.hypothesis.strip() for one in texts) / len(texts),
                foreign_fraction=None if hebrew is None else 1 - hebrew,
                language_accuracy=tags.count(expected) / len(tags) if tags else None,
            )
        )
    return rows


def worsened(round1: Sequence[Behaviour], round2: Sequence[Behaviour], max_increase: float) -> Iterator[str]:
    """What Round 2 does more often than Round 1, by more than this share."""
    before = {row.test_set: oddities_of(row) for row in round1}
    for row in round2:
        for name, now in oddities_of(row).items():
            old = before.get(row.test_set, {}).get(name)
            if old is not None and now is not None and now - old > max_increase:
                yield f"{row.test_set}: {name} rose from {old:.1%} to {now:.1%}"


def oddities_of(row: Behaviour) -> dict[str, float | None]:
    """Fractions that should be small, by what they count."""
    return {
        "texts in a repetition loop": row.loop_fraction,
        "texts cut off": row.truncated_fraction,
        "empty texts": row.empty_fraction,
        "letters that are not Hebrew": row.foreign_fraction,
        "texts with another language named": None if row.language_accuracy is None else 1 - row.language_accuracy,
    }


def language_lines(rows: Sequence[Behaviour]) -> Iterator[str]:
    """For the terminal; nothing where the language was forced."""
    for row in rows:
        if row.language_accuracy is not None:
            yield f"{row.test_set}: the right language is named before {row.language_accuracy:.1%} of the texts"
