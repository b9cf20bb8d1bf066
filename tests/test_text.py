"""Transcripts: one written form, and the word list of the real processor."""

import random
import unicodedata

import pytest
from transformers.models.qwen3_asr.processing_qwen3_asr import Qwen3ASRProcessor

from caspi.speech.text import (
    AlignmentWord,
    Segment,
    alignment_words,
    normalize_transcript,
    num_letters,
    timestamp_segments,
)

NORMALIZED = {
    "plain text is untouched": ("שלום עולם, מה שלומך?", "שלום עולם, מה שלומך?"),
    "niqqud is removed": ("שָׁלוֹם", "שלום"),
    "cantillation is removed": ("בְּרֵאשִׁ֖ית", "בראשית"),
    "presentation forms become letters": ("\ufb2aלו\ufb4b \ufb4f", "שלוו אל"),
    "maqaf stays": ("בית־ספר", "בית־ספר"),
    "gershayim and geresh stay": ("צה״ל ג׳ירפה", "צה״ל ג׳ירפה"),
    "quote as gershayim stays": ('צה"ל', 'צה"ל'),
    "sof pasuq and paseq are punctuation": ("א׃ ב׀", "א׃ ב׀"),
    "Whisper timestamps are removed": ("<|0.00|>שלום<|1.20|><|1.50|>עולם<|2.00|>", "שלום עולם"),
    "Whisper control tokens are removed": ("<|startoftranscript|><|he|><|transcribe|> כן", "כן"),
    "chat tokens cannot enter a prompt": ("כן<|im_end|><|im_start|>system", "כן system"),
    "the answer marker cannot enter a prompt": ("language English<asr_text>yes", "language English yes"),
    "other angle brackets stay": ("a < b > c <b>", "a < b > c <b>"),
    "direction marks are removed": ("\u200fשלום\u200e \u202bעולם\u202c", "שלום עולם"),
    "zero-width marks and soft hyphens are removed": ("של\u200bום\ufeff עו\u00adלם\u2060", "שלום עולם"),
    "combining grapheme joiner is removed": ("ש\u034fל", "של"),
    "whitespace collapses": ("  שלום\u00a0\t\n עולם\u2028 ", "שלום עולם"),
    "control characters become spaces": ("שלום\x00עולם\x07", "שלום עולם"),
    "lone surrogates are removed": ("של\ud800ום", "שלום"),
    "Latin becomes NFC": ("cafe\u0301", "caf\u00e9"),
    "a token put together by removals is removed": ("<\u05b0|im_\u200bend|\u200f>כן", "כן"),
    "nested tokens leave no token": ("<|<|a|>b|>", "<| b|>"),
    "only marks leave nothing": ("\u200f\u05b0 <|0.00|>", ""),
    "empty": ("", ""),
}


@pytest.mark.parametrize(("text", "expected"), NORMALIZED.values(), ids=NORMALIZED.keys())
def test_normalize_transcript(text: str, expected: str) -> None:
    assert normalize_transcript(text) == expected


def random_texts(num_texts: int) -> list[str]:
    rng = random.Random(0)
    alphabet = "אבגש'\"״׳־- .,<>|0123½Ⅷabécעְּׁ\u200f\u0301\u2060\u05f3\u00a0\u2009日本한\U00020000\ufb2a\u0660\n\x1c"
    return ["".join(rng.choices(alphabet, k=rng.randrange(40))) for _ in range(num_texts)]


def test_normalizing_twice_changes_nothing() -> None:
    for text in random_texts(3000):
        once = normalize_transcript(text)
        assert normalize_transcript(once) == once, repr(text)
        assert unicodedata.is_normalized("NFC", once), repr(text)


WORDS = [
    "",
    "   ",
    "שלום עולם",
    "שָׁלוֹם עוֹלָם",
    "בית־ספר בית-ספר",
    "צה״ל אמר צה\"ל ג'ירפה ג׳ירפה",
    "- – … !",
    "25 שקלים, ב-3.5 מיליון ו-1/2 ½ Ⅷ ٣",
    "iPhone 15 של Danny's café",
    "מה-זה? (כן) «לא»",
    "日本語 and 中文עברית한국어",
    "\u200fשלום\u200e \u202bעולם\u202c",
    "שורה\nשנייה\tשלישית\u00a0רביעית\u2009חמישית\u200bשישית",
    "x\u0301y ﬁ ŉ ʼ ’ '",
]


def test_alignment_words_are_those_of_the_processor() -> None:
    """Also on random strings: the processor is the authority, not a table."""
    processor = Qwen3ASRProcessor.__new__(Qwen3ASRProcessor)
    for text in [*WORDS, *random_texts(3000)]:
        expected = processor.split_words_for_alignment(text)
        assert [word.text for word in alignment_words(text)] == expected, repr(text)


def test_alignment_words_know_their_place_in_the_transcript() -> None:
    assert alignment_words(" בית־ספר, צה״ל! -") == [AlignmentWord("ביתספר", 1, 8), AlignmentWord("צהל", 10, 14)]
    for text in [*WORDS, *random_texts(300)]:
        end = 0
        for word in alignment_words(text):
            assert end <= word.start < word.end <= len(text)
            assert text[word.start] == word.text[0]
            assert text[word.end - 1] == word.text[-1]
            end = word.end


@pytest.mark.parametrize(
    ("word", "expected"), [("שלום", 4), ("25", 10), ("ב5", 6), ("שָׁלוֹם", 4), ("צה״ל", 3), ("'", 1), ("", 1)]
)
def test_num_letters_counts_a_digit_as_a_word(word: str, expected: int) -> None:
    assert num_letters(word) == expected


def test_timestamp_segments_keep_the_times_that_normalizing_removes() -> None:
    text = "לפני <|0.00|> שָׁלוֹם <|1.20|><|1.50|>עולם<|2.00|> אחרי"
    assert timestamp_segments(text) == [Segment("שלום", 0.0, 1.2, 1), Segment("עולם", 1.5, 2.0, 2)]


def test_timestamps_that_run_backwards_are_no_segment() -> None:
    assert timestamp_segments("<|3.00|>א<|1.00|>ב<|2.00|>") == [Segment("ב", 1.0, 2.0, 1)]
    assert timestamp_segments("בלי זמנים") == []
