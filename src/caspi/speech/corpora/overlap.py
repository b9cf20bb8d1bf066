"""How much of a test set's wording a training corpus holds, counted in word n-grams."""

from collections.abc import Iterable, Iterator, Sequence

from caspi.records import Record
from caspi.speech.scoring.score import normalize

MAX_WORST = 20
"""Utterances that a report lists for a test set."""


class SeenUtterance(Record):
    """A test utterance and how many of its n-grams are in the training corpus."""

    id: str
    num_ngrams: int
    num_seen: int


class SeenNgrams(Record):
    """The n-grams of one test set; those that occur in it several times count each time."""

    num_ngrams: int
    num_seen: int
    seen_fraction: float | None
    """None without an n-gram: all texts are shorter."""
    num_mostly_seen: int
    """Utterances with at least half of their n-grams seen."""
    worst: list[SeenUtterance]
    """With the largest share seen, the longest first where shares are equal; only utterances with a seen n-gram."""


def seen_ngrams(
    training: Iterable[str], clips: Sequence[tuple[str, str, str]], num_words: int
) -> dict[str, SeenNgrams]:
    """By test set, in the order of the clips.

    Only n-grams of the test sets are kept in memory, so that the training corpus may be of any size.

    Args:
        training: raw texts.
        clips: test set, id and raw text of each.
        num_words: length of an n-gram.
    """
    of_clips = [list(ngrams(text, num_words)) for _, _, text in clips]
    wanted = {ngram for found in of_clips for ngram in found}
    seen = {ngram for text in training for ngram in ngrams(text, num_words) if ngram in wanted}
    rows: dict[str, list[SeenUtterance]] = {}
    for (test_set, name, _), found in zip(clips, of_clips, strict=True):
        num_seen = sum(ngram in seen for ngram in found)
        rows.setdefault(test_set, []).append(SeenUtterance(id=name, num_ngrams=len(found), num_seen=num_seen))
    return {test_set: summed(utterances) for test_set, utterances in rows.items()}


def ngrams(text: str, num_words: int) -> Iterator[str]:
    words = normalize(text, "he").split()
    return (" ".join(words[start : start + num_words]) for start in range(len(words) - num_words + 1))


def summed(utterances: Sequence[SeenUtterance]) -> SeenNgrams:
    num_ngrams, num_seen = sum(one.num_ngrams for one in utterances), sum(one.num_seen for one in utterances)
    touched = [one for one in utterances if one.num_seen]
    return SeenNgrams(
        num_ngrams=num_ngrams,
        num_seen=num_seen,
        seen_fraction=num_seen / num_ngrams if num_ngrams else None,
        num_mostly_seen=sum(2 * one.num_seen >= one.num_ngrams for one in touched),
        worst=sorted(touched, key=lambda one: (-one.num_seen / one.num_ngrams, -one.num_ngrams, one.id))[:MAX_WORST],
    )
