"""What is Hebrew about a transcript; another language is another file like this one.

Code points from the Unicode block Hebrew (U+0590-05FF) and the Hebrew part of the presentation forms.
"""

from collections.abc import Iterable

NIQQUD = frozenset(map(chr, [*range(0x0591, 0x05BE), 0x05BF, 0x05C1, 0x05C2, 0x05C4, 0x05C5, 0x05C7]))
"""Vowel points and cantillation marks, which transcripts of speech do without. Not maqaf, paseq or sof pasuq."""

PRESENTATION_FORMS = range(0xFB1D, 0xFB50)
"""Letters joined with points, wide letters, the alef-lamed ligature: compatibility forms of plain letters."""

LETTERS_PER_DIGIT = 5
"""A digit is read as a word: 25 is read "esrim ve-hamesh", ten letters in Hebrew spelling."""

SENTENCE_ENDS = ".!?…\u05c3"
"""Marks that end a sentence; the last is sof pasuq."""


def is_hebrew_letter(character: str) -> bool:
    return "א" <= character <= "ת" or (ord(character) in PRESENTATION_FORMS and character.isalpha())


def hebrew_fraction(texts: Iterable[str]) -> float | None:
    """Share of the letters that are Hebrew, in any number of texts; None without a letter."""
    letters = [character for text in texts for character in text if character.isalpha()]
    return sum(map(is_hebrew_letter, letters)) / len(letters) if letters else None
