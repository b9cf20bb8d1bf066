import pytest

from caspi.config import Compare
from caspi.records import Prediction
from caspi.speech.scoring.score import normalize
from caspi.speech.scoring.word_classes import classified_words, compare_word_classes, wrong_words

SECTION = Compare(num_bootstrap_draws=500, num_permutations=200)


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("בשנת 1948 קמה המדינה", [("1948", "number")]),
        ("1,000 שקל, ב-3.5 אחוז", [("1,000", "number"), ("3.5", "number")]),
        ('צה"ל וד״ר כהן', [("צהל", "acronym"), ("ודר", "acronym")]),
        ('הוא אמר "שלום" והלך', []),
        ("שלחתי WhatsApp ב־Google", [("whatsapp", "foreign"), ("google", "foreign")]),
        ("ג'ירפה וצ׳יפס", []),
        ("<|0.00|> שלום <|1.20|>", []),
        ("", []),
    ],
)
def test_words_are_classified_by_the_raw_reference(reference: str, expected: list[tuple[str, str]]) -> None:
    assert [tuple(word) for word in classified_words(reference) if word.word_class] == expected


@pytest.mark.parametrize(
    "reference", ['צה"ל קנה 1,000 WhatsApp ב־3.5 (אחוז), ג׳ירפה!', "<|0.00|>שָׁלוֹם – עולם", "a-b 2020-21 ד״ר"]
)
def test_the_words_are_those_that_are_scored(reference: str) -> None:
    assert " ".join(word.text for word in classified_words(reference)) == normalize(reference, "he")


def test_a_wrong_word_is_substituted_or_deleted_and_insertions_count_against_none() -> None:
    assert wrong_words(["א", "ב", "ג"], "א ד ג") == {1}
    assert wrong_words(["א", "ב", "ג"], "א ג") == {1}
    assert wrong_words(["א", "ב", "ג"], "א ב ב ג") == set()
    assert wrong_words(["א", "ב"], "") == {0, 1}


def rows(hypothesis: str, num_clips: int = 40) -> list[Prediction]:
    fields = {"test_set": "d1", "reference": 'צה"ל קנה 12 כלים', "hypothesis": hypothesis, "domain": "x"}
    return [
        Prediction.model_validate(
            {**fields, "id": f"u{i}", "group_id": None, "duration": 1.0, "finish_reason": "stop"}
            | ({"hypothesis": "צהל קנה 12 כלים"} if i % 4 == 0 else {})
        )
        for i in range(num_clips)
    ]


def test_each_class_is_compared_on_its_own_words_alone() -> None:
    compared = {
        (one.test_set, one.word_class): one
        for one in compare_word_classes(rows("צהל קנה 13 כלי"), rows("צהל קנה 12 כלי"), SECTION)
    }
    assert set(compared) == {(name, kind) for name in ("d1", "pooled_wer") for kind in ("number", "acronym")}
    numbers, acronyms = compared["d1", "number"], compared["d1", "acronym"]
    assert (numbers.num_words, numbers.round1_error, numbers.round2_error) == (40, 0.75, 0.0)
    assert numbers.verdict == "better"
    assert (acronyms.round1_error, acronyms.round2_error, acronyms.verdict) == (0.0, 0.0, "cannot tell")


def test_few_words_cannot_tell() -> None:
    few = compare_word_classes(rows("קנה", 20), rows("צהל קנה 12", 20), SECTION)
    assert {one.verdict for one in few} == {"cannot tell"}
