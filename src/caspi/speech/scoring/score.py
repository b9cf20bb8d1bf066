"""Word and character error rates: counts per utterance first, rates only from sums of counts."""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

import jiwer

from caspi.speech.scoring.normalize_he import normalize_he, normalize_ivrit

Profile = Literal["ivrit", "he"]
PROFILES: dict[Profile, Callable[[str], str]] = {"ivrit": normalize_ivrit, "he": normalize_he}


class ErrorCounts(NamedTuple):
    """Alignment of one utterance, or the sum over many; in words or in characters."""

    hits: int
    substitutions: int
    deletions: int
    insertions: int

    @property
    def num_reference(self) -> int:
        return self.hits + self.substitutions + self.deletions

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors per reference word or character; above 1 when much is inserted.

        Raises:
            ValueError: the reference is empty, so that there is nothing to divide by.
        """
        if not self.num_reference:
            raise ValueError(f"no error rate: the reference is empty ({self.insertions} insertions)")
        return self.errors / self.num_reference


def normalize(text: str, profile: Profile) -> str:
    """Text as a scoring profile sees it: words separated by single blanks.

    Raises:
        ValueError: unknown profile.
    """
    if profile not in PROFILES:
        raise ValueError(f"unknown scoring profile {profile!r}; profiles: {', '.join(PROFILES)}")
    return PROFILES[profile](text)


def count_word_errors(reference: str, hypothesis: str) -> ErrorCounts:
    """Counts of the Levenshtein alignment of the words of two normalised texts."""
    num_words = len(reference.split()), len(hypothesis.split())
    return counts(jiwer.process_words(reference, hypothesis)) if all(num_words) else one_side_empty(*num_words)


def count_character_errors(reference: str, hypothesis: str) -> ErrorCounts:
    """The same for characters; the blank between two words is a character."""
    lengths = len(reference), len(hypothesis)
    return counts(jiwer.process_characters(reference, hypothesis)) if all(lengths) else one_side_empty(*lengths)


def counts(alignment: jiwer.WordOutput | jiwer.CharacterOutput) -> ErrorCounts:
    return ErrorCounts(alignment.hits, alignment.substitutions, alignment.deletions, alignment.insertions)


def one_side_empty(num_reference: int, num_hypothesis: int) -> ErrorCounts:
    """jiwer calls the number of insertions over an empty reference a rate; counts are the same everywhere."""
    return ErrorCounts(hits=0, substitutions=0, deletions=num_reference, insertions=num_hypothesis)


def pool(counts_per_utterance: Iterable[ErrorCounts]) -> ErrorCounts:
    """Sum of the counts of utterances."""
    totals = [0, 0, 0, 0]
    for counts_of_one in counts_per_utterance:
        totals = [total + count for total, count in zip(totals, counts_of_one, strict=True)]
    return ErrorCounts(*totals)


def wer(references: Sequence[str], hypotheses: Sequence[str], profile: Profile) -> float:
    """Pooled word error rate (fraction): all errors over all reference words.

    Utterances whose normalised reference is empty are left out; list them apart (`num_reference == 0`).

    Raises:
        ValueError: unequal numbers of texts, or no reference word at all.
    """
    return pooled_rate(references, hypotheses, profile, count_word_errors)


def cer(references: Sequence[str], hypotheses: Sequence[str], profile: Profile) -> float:
    """Pooled character error rate (fraction); otherwise as `wer`."""
    return pooled_rate(references, hypotheses, profile, count_character_errors)


def pooled_rate(
    references: Sequence[str],
    hypotheses: Sequence[str],
    profile: Profile,
    count_errors: Callable[[str, str], ErrorCounts],
) -> float:
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references but {len(hypotheses)} hypotheses")
    pairs = zip(references, hypotheses, strict=True)
    scored = [count_errors(normalize(ref, profile), normalize(hyp, profile)) for ref, hyp in pairs]
    return pool(count for count in scored if count.num_reference).rate
