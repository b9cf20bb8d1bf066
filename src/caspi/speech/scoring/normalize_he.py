"""Hebrew scoring profiles: what two texts may differ in without an error being counted.

`ivrit` is the normaliser of ivrit.ai's leaderboard, step by step (github.com/ivrit-ai/asr-training, evaluate_model.py),
so that figures can be compared with published ones. `he` repairs its known faults: צה״ל and צה"ל are one word, text in
brackets counts, 1,000 and 3.5 stay one word, vowel points of presentation forms do not split a word. A figure without
the name of its profile means nothing.
"""

import re
import unicodedata
from collections.abc import Callable
from functools import cache

INVISIBLE = dict.fromkeys(
    map(ord, "\u061c\u200b\u200c\u200d\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff")
)
"""Directional and zero-width marks, as in the leaderboard's list."""
NIQQUD = re.compile("[\u05b0-\u05bc\u05c1\u05c2\u05c4\u05c5\u05c7]")
"""What `no_niqqud` of PyPI `hebrew` 0.8.1 removes; meteg, rafe and cantillation it leaves, and they split words."""
DOUBLE_QUOTES = "״“”„‟″"
SINGLE_QUOTES = "׳‘’‚‛′´`"
UNIFIED_QUOTES = str.maketrans(DOUBLE_QUOTES + SINGLE_QUOTES, '"' * len(DOUBLE_QUOTES) + "'" * len(SINGLE_QUOTES))
WHISPER_TOKEN = re.compile(r"<\|[^<>|]*\|>")
"""Timestamps such as <|1.20|> and other control tokens of Whisper transcripts."""
NUMBER_SEPARATOR = re.compile(r"(?<=\d)[.,](?=\d)")


def normalize_ivrit(text: str) -> str:
    """The leaderboard's text: like theirs, without blanks at the ends."""
    text = NIQQUD.sub("", text.translate(INVISIBLE)).replace('"', "").replace("'", "")
    return whisper_normalizer()(text).strip()


def normalize_he(text: str) -> str:
    """The same idea, fair to Hebrew writing: quotes unified, brackets kept, numbers in one piece."""
    text = WHISPER_TOKEN.sub(" ", text).translate(UNIFIED_QUOTES)
    text = unicodedata.normalize("NFKC", text).replace('"', "").replace("'", "").lower()
    separators = {match.start() for match in NUMBER_SEPARATOR.finditer(text)}
    return " ".join("".join(c if i in separators else spoken(c) for i, c in enumerate(text)).split())


def spoken(character: str) -> str:
    """What is left of a character: combining and format marks vanish, punctuation and symbols separate words."""
    category = unicodedata.category(character)
    if category in ("Mn", "Cf"):
        return ""
    return " " if category[0] in "MSP" else character


@cache
def whisper_normalizer() -> Callable[[str], str]:
    """Whisper's BasicTextNormalizer; loads transformers (not torch), so only when something is really scored."""
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer

    return BasicTextNormalizer()
