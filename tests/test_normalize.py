"""Scoring profiles.

Expected `ivrit` texts were recorded from ivrit.ai's own pieces: PyPI hebrew 0.8.1 and whisper-normalizer 0.1.15 in the
steps of asr-training/evaluate_model.py; blanks at the ends aside.
"""

import subprocess
import sys

import pytest

from caspi.speech.scoring.score import normalize

TABLE = [
    ("niqqud", "שָׁלוֹם עוֹלָם", "שלום עולם", "שלום עולם"),
    ("maqaf", "בֵּית־סֵפֶר", "בית ספר", "בית ספר"),
    ("gershayim", 'צה״ל וצה"ל', "צה ל וצהל", "צהל וצהל"),
    ("geresh", "ג׳ירפה וג'ירפה", "ג ירפה וגירפה", "גירפה וגירפה"),
    ("typographic quotes", "”שלום“ ו‘כן’", "שלום ו כן", "שלום וכן"),
    ("thousands", "1,000 ש״ח", "1 000 ש ח", "1,000 שח"),
    ("decimal", "3.5%", "3 5", "3.5"),
    ("digits with prefix", "ב-2024", "ב 2024", "ב 2024"),
    ("comma after a number", "בשנת 1999, אז", "בשנת 1999 אז", "בשנת 1999 אז"),
    ("Whisper timestamps", "<|0.00|> שלום<|1.20|>", "שלום", "שלום"),
    ("brackets", "(צחוק) כן [רעש] לא <unk>", "כן לא", "צחוק כן רעש לא unk"),
    ("Latin", "Wi-Fi של GOOGLE", "wi fi של google", "wi fi של google"),
    ("directional marks", "\u200fמה?\u200e \ufeffטוב!", "מה טוב", "מה טוב"),
    ("address", "דוא״ל: a@b.co", "דוא ל a b co", "דואל a b co"),
    ("meteg and cantillation", "בְּֽרֵאשִׁ֖ית", "ב ראש ית", "בראשית"),
    ("presentation form", "\ufb2aוּק", "ש וק", "שוק"),
    ("blanks", "  שתי   מילים\n", "שתי מילים", "שתי מילים"),
    ("ellipsis", "כן... לא…", "כן לא", "כן לא"),
    ("currency and dash", "₪50 – 60", "50 60", "50 60"),
    ("accents of other scripts", "cafe\u0301", "café", "café"),
    ("nothing", "", "", ""),
    ("punctuation only", "״?!", "", ""),
]


@pytest.mark.parametrize(("text", "ivrit", "he"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_each_profile_normalises_as_its_definition_says(text: str, ivrit: str, he: str) -> None:
    assert normalize(text, "ivrit") == ivrit
    assert normalize(text, "he") == he


@pytest.mark.parametrize("text", [row[1] for row in TABLE], ids=[row[0] for row in TABLE])
def test_the_he_profile_applied_twice_changes_nothing(text: str) -> None:
    assert normalize(normalize(text, "he"), "he") == normalize(text, "he")


def test_words_on_both_sides_of_a_timestamp_stay_apart_in_the_he_profile() -> None:
    assert normalize("שלום<|1.20|>עולם", "he") == "שלום עולם"
    assert normalize("שלום<|1.20|>עולם", "ivrit") == "שלוםעולם"


def test_an_unknown_profile_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"unknown scoring profile 'english'; profiles: ivrit, he"):
        normalize("כן", "english")  # type: ignore[arg-type]


def test_normalising_loads_transformers_but_not_torch() -> None:
    code = (
        "import sys; from caspi.speech.scoring.score import normalize; assert 'transformers' not in sys.modules; "
        "normalize('כן', 'he'); assert 'transformers' not in sys.modules; "
        "normalize('כן', 'ivrit'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
