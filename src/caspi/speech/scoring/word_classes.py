"""Numbers, acronyms and foreign words: does a round get them right more often? They are few, and matter to readers."""

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import jiwer

from caspi.config import Compare
from caspi.records import ComparedWords, Prediction
from caspi.speech.hebrew import is_hebrew_letter
from caspi.speech.scoring.contrast import POOLED, block_labels, generator, spread_of
from caspi.speech.scoring.normalize_he import WHISPER_TOKEN
from caspi.speech.scoring.score import normalize
from caspi.speech.scoring.significance import sum_by_block, verdict

WordClass = Literal["number", "acronym", "foreign"]
CLASSES: tuple[WordClass, ...] = get_args(WordClass)
BETWEEN_PARTS = re.compile(r"[\s־‐‑–—-]+")
ACRONYM = re.compile('[א-ת]+["״”“„‟″][א-ת]')
"""Gershayim stand before the last letter: צה״ל, ד״ר. Quotation marks stand around words."""


class Word(NamedTuple):
    text: str
    """Normalised by profile `he`."""
    word_class: WordClass | None


class Judged(NamedTuple):
    """One utterance: its words of a class, and how many of them each round got wrong."""

    prediction: Prediction
    num_words: int
    errors_1: int
    errors_2: int


def classified_words(reference: str) -> list[Word]:
    """The words of a raw reference; acronyms show in it only, since the normaliser joins them."""
    words = []
    for part in BETWEEN_PARTS.split(WHISPER_TOKEN.sub(" ", reference)):
        is_acronym = ACRONYM.search(part) is not None
        words += [Word(token, class_of(token, is_acronym)) for token in normalize(part, "he").split()]
    return words


def class_of(token: str, is_acronym: bool) -> WordClass | None:
    if any(character.isdigit() for character in token):
        return "number"
    if any(character.isalpha() and not is_hebrew_letter(character) for character in token):
        return "foreign"
    return "acronym" if is_acronym else None


def wrong_words(reference: Sequence[str], hypothesis: str) -> set[int]:
    """Positions of the reference words that are substituted or deleted."""
    if not reference or not hypothesis:
        return set(range(len(reference)))
    chunks = jiwer.process_words(" ".join(reference), hypothesis).alignments[0]
    spans = [
        range(chunk.ref_start_idx, chunk.ref_end_idx) for chunk in chunks if chunk.type in ("substitute", "delete")
    ]
    return {position for span in spans for position in span}


def compare_word_classes(
    round1: Sequence[Prediction], round2: Sequence[Prediction], section: Compare
) -> list[ComparedWords]:
    """Each class in each test set and in all of them together; the rounds hold the same clips in the same order."""
    judged: dict[tuple[str, WordClass], list[Judged]] = {}
    for first, second in zip(round1, round2, strict=True):
        for word_class, one in judge_clip(first, second).items():
            for name in (first.test_set, POOLED):
                judged.setdefault((name, word_class), []).append(one)
    names = [*dict.fromkeys(row.test_set for row in round1), POOLED]
    keys = [(name, word_class) for name in names for word_class in CLASSES if (name, word_class) in judged]
    return [compare_class(name, word_class, judged[name, word_class], section) for name, word_class in keys]


def judge_clip(first: Prediction, second: Prediction) -> dict[WordClass, Judged]:
    words = classified_words(first.reference)
    if not any(word.word_class for word in words):
        return {}
    texts = [word.text for word in words]
    wrong_1, wrong_2 = (
        wrong_words(texts, "" if row.finish_reason == "error" else normalize(row.hypothesis, "he"))
        for row in (first, second)
    )
    judged = {}
    for word_class in CLASSES:
        if places := {place for place, word in enumerate(words) if word.word_class == word_class}:
            judged[word_class] = Judged(first, len(places), len(places & wrong_1), len(places & wrong_2))
    return judged


def compare_class(name: str, word_class: WordClass, judged: Sequence[Judged], section: Compare) -> ComparedWords:
    _, labels = block_labels([one.prediction for one in judged])
    errors_1, errors_2 = [one.errors_1 for one in judged], [one.errors_2 for one in judged]
    sizes = [one.num_words for one in judged]
    blocks = sum_by_block(errors_1, errors_2, sizes, labels)
    spread = spread_of([blocks], POOLED, section, generator(section.seed, name, word_class))
    interval = spread.of_difference
    return ComparedWords(
        test_set=name,
        word_class=word_class,
        num_words=sum(sizes),
        num_utterances=len(judged),
        round1_error=sum(errors_1) / sum(sizes),
        round2_error=sum(errors_2) / sum(sizes),
        difference=spread.difference,
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        verdict=verdict(interval) if len(judged) >= section.min_utterances else "cannot tell",
    )
