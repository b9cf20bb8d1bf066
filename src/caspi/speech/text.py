"""Transcripts: what is kept of them, and which words an aligner looks for in the audio."""

import re
import unicodedata
from typing import NamedTuple

from caspi.speech import hebrew

MARKUP = re.compile(r"<\|[^|<>\s]*\|>|</?(?:asr_text|timestamp|non_speech|think|tool_\w+|tts_\w+|blank\d+)>")
"""Whisper's tokens, and the tokens of Qwen3-ASR that must not enter a prompt through a transcript."""
TIMESTAMP = re.compile(r"<\|(\d+(?:\.\d+)?)\|>")
COMBINING_GRAPHEME_JOINER = "\u034f"
CJK_RANGES = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0x2F800, 0x2FA1F),
)
"""Ideographs, as Qwen3ASRProcessor delimits them: each is a word of its own."""


class AlignmentWord(NamedTuple):
    text: str
    """The word as the aligner sees it: letters, numbers and apostrophes only."""
    start: int
    """Index of the word's first kept character in the transcript."""
    end: int
    """Index behind its last kept character."""


class Segment(NamedTuple):
    text: str
    start_seconds: float
    end_seconds: float
    first_word: int
    """Place of its first alignment word in the whole transcript."""


def normalize_transcript(text: str) -> str:
    """Bring a transcript into the one form that manifests hold. Applying it twice changes nothing.

    1. Hebrew presentation forms become plain letters (U+FB2A to shin and point).
    2. Niqqud and cantillation marks are removed.
    3. Marks that nobody sees are removed: bidirectional and zero-width marks, soft hyphens and all other format
       characters (Unicode category Cf), the combining grapheme joiner, lone surrogates. Controls become spaces.
    4. The text becomes NFC.
    5. Whisper tokens (`<|0.00|>`, `<|he|>`) and special tokens of Qwen3-ASR (`<asr_text>`) become spaces; last of the
       removals, because the others could put such a token together.
    6. Any run of whitespace becomes one space; none remains at either end.

    Punctuation, geresh and gershayim, maqaf, digits, and letters of other scripts stay as they are.
    """
    letters = "".join(
        unicodedata.normalize("NFKC", character) if ord(character) in hebrew.PRESENTATION_FORMS else character
        for character in text
    )
    visible = unicodedata.normalize("NFC", "".join(map(visible_character, letters)))
    return " ".join(MARKUP.sub(" ", visible).split())


def visible_character(character: str) -> str:
    """The character, a space for a control, or nothing for a mark that transcripts do without."""
    category = unicodedata.category(character)
    if character in hebrew.NIQQUD or character == COMBINING_GRAPHEME_JOINER or category in ("Cf", "Cs"):
        return ""
    return " " if category == "Cc" else character


def timestamp_segments(text: str) -> list[Segment]:
    """The stretches of text between two Whisper timestamps, in order; text outside such pairs has no times.

    `<|0.00|>one<|1.20|><|1.50|>two<|2.00|>` is two segments. A pair whose times run backwards is left out.
    """
    pieces = TIMESTAMP.split(text)
    times = [float(piece) for piece in pieces[1::2]]
    segments = []
    num_words = len(alignment_words(normalize_transcript(pieces[0])))
    for start, end, piece in zip(times, times[1:], pieces[2::2], strict=False):
        words = normalize_transcript(piece)
        if words and start <= end:
            segments.append(Segment(words, start, end, num_words))
        num_words += len(alignment_words(words))
    return segments


def alignment_words(text: str) -> list[AlignmentWord]:
    """The words of `Qwen3ASRProcessor.split_words_for_alignment(text)` with their places in the transcript.

    Words end at whitespace only, and consist of the letters, numbers and apostrophes in between: points, geresh,
    gershayim and maqaf vanish, so that a compound with maqaf is one word and a lone dash is none.
    """
    words = []
    kept: list[int] = []

    def finish_word() -> None:
        if kept:
            words.append(AlignmentWord("".join(text[index] for index in kept), kept[0], kept[-1] + 1))
            kept.clear()

    for index, character in enumerate(text):
        if is_cjk(character):
            finish_word()
            words.append(AlignmentWord(character, index, index + 1))
        elif character.isspace():
            finish_word()
        elif character == "'" or unicodedata.category(character)[0] in "LN":
            kept.append(index)
    finish_word()
    return words


def is_cjk(character: str) -> bool:
    return any(first <= ord(character) <= last for first, last in CJK_RANGES)


def num_letters(word: str) -> int:
    """How much there is to say: letters, and `hebrew.LETTERS_PER_DIGIT` for each digit; at least 1."""
    categories = [unicodedata.category(character)[0] for character in word]
    return max(1, categories.count("L") + hebrew.LETTERS_PER_DIGIT * categories.count("N"))
