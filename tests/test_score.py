import re
import shutil
import subprocess
from pathlib import Path

import jiwer
import pytest
from sclite_pair import sclite_pair

from caspi.config import Evaluate
from caspi.records import Prediction
from caspi.speech.scoring.predictions import Timing
from caspi.speech.scoring.score import ErrorCounts, cer, count_character_errors, count_word_errors, pool, wer
from caspi.speech.scoring.scoreboard import averages_of, benchmark_csv, bucket_of, has_loop, scores_of

RECORDED_SCLITE = (ErrorCounts(3057, 251, 76, 134), ErrorCounts(3166, 161, 57, 120))
"""Corr, Sub, Del, Ins of sclite 2.10 (Debian sctk 2.4.10) on `sclite_pair`."""


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("הילד הלך הביתה", "הילד הלך הביתה", ErrorCounts(3, 0, 0, 0)),
        ("הילד הלך הביתה", "הילדה הלכה הביתה", ErrorCounts(1, 2, 0, 0)),
        ("הילד הלך הביתה", "הלך", ErrorCounts(1, 0, 2, 0)),
        ("הילד הלך", "אז הילד כבר הלך היום", ErrorCounts(2, 0, 0, 3)),
        ("אחת שתיים שלוש ארבע חמש", "אחת שלוש ארבעים חמש שש", ErrorCounts(3, 1, 1, 1)),
        ("כן", "", ErrorCounts(0, 0, 1, 0)),
        ("", "כן לא", ErrorCounts(0, 0, 0, 2)),
        ("", "", ErrorCounts(0, 0, 0, 0)),
    ],
    ids=["equal", "substituted", "deleted", "inserted", "mixed", "nothing said", "empty reference", "both empty"],
)
def test_word_errors_are_those_counted_by_hand(reference: str, hypothesis: str, expected: ErrorCounts) -> None:
    assert count_word_errors(reference, hypothesis) == expected


def test_character_errors_count_blanks_as_characters() -> None:
    assert count_character_errors("בית ספר", "ביתספר") == ErrorCounts(6, 0, 1, 0)
    assert count_character_errors("", "אב") == ErrorCounts(0, 0, 0, 2)


def test_rates_are_pooled_over_words_and_not_averaged_over_utterances() -> None:
    references, hypotheses = ["a", "a b c d e f g h i"], ["x", "a b c d e f g h i"]
    assert wer(references, hypotheses, "he") == pytest.approx(1 / 10)
    assert cer(references, hypotheses, "he") == pytest.approx(1 / 18)


def test_an_empty_reference_never_enters_the_denominator_or_the_rate() -> None:
    assert wer(["a b", "?!"], ["a b", "x y z"], "he") == 0
    with pytest.raises(ValueError, match="reference is empty"):
        wer(["?!"], ["x"], "he")
    with pytest.raises(ValueError, match="2 references but 1 hypotheses"):
        wer(["a", "b"], ["a"], "he")


def test_counts_equal_what_sclite_reported() -> None:
    references, *systems = sclite_pair()
    for hypotheses, expected in zip(systems, RECORDED_SCLITE, strict=True):
        assert pool(map(count_word_errors, references, hypotheses)) == expected


@pytest.mark.skipif(shutil.which("sclite") is None, reason="sclite is not installed (Debian package sctk)")
def test_counts_equal_those_of_the_installed_sclite(tmp_path: Path) -> None:
    references, hypotheses, _ = sclite_pair()
    for name, texts in (("ref", references), ("hyp", hypotheses)):
        lines = [f"{text} (speaker-{index:04d})\n" for index, text in enumerate(texts)]
        (tmp_path / name).write_text("".join(lines))
    arguments = ["-r", "ref", "trn", "-h", "hyp", "trn", "-i", "rm", "-e", "utf-8", "-o", "rsum", "stdout"]
    printed = subprocess.run(["sclite", *arguments], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    found = re.search(r"\| Sum[^|]*\|[^|]*\|([^|]*)\|", printed)
    assert found, printed
    assert ErrorCounts(*map(int, found[1].split()[:4])) == pool(map(count_word_errors, references, hypotheses))


def test_pooled_rates_equal_jiwers_corpus_rates() -> None:
    references, hypotheses, _ = sclite_pair()
    assert wer(references, hypotheses, "he") == pytest.approx(jiwer.wer(references, hypotheses))
    assert cer(references, hypotheses, "he") == pytest.approx(jiwer.cer(references, hypotheses))


def prediction(index: int, reference: str, hypothesis: str, **fields: object) -> Prediction:
    values = {"test_set": "d1", "domain": "kan_clean", "group_id": None, "duration": 3.0, "finish_reason": "stop"}
    return Prediction.model_validate(
        {"id": f"u{index}", "reference": reference, "hypothesis": hypothesis} | values | fields
    )


def test_scores_count_every_oddity_and_list_empty_references_apart() -> None:
    rows = [
        prediction(0, "אחת שתיים", "אחת שתיים"),
        prediction(1, "אחת שתיים", "הא " * 30, finish_reason="length", duration=15.0),
        prediction(2, "אחת שתיים", "ignored", finish_reason="error", error="AUDIO_MISSING: x", duration=15.1),
        prediction(3, "...", "שלום לך", duration=5.0),
        prediction(4, "אחת", "", duration=4.9),
    ]
    whole, short, medium, long = scores_of(rows, "he", Evaluate())
    assert (whole.num_utterances, whole.num_failed, whole.num_truncated, whole.num_loops) == (5, 1, 1, 1)
    assert (whole.num_empty_hypotheses, whole.num_empty_references, whole.num_words_over_empty_references) == (1, 1, 2)
    assert (whole.num_words, whole.substitutions, whole.deletions, whole.insertions) == (7, 2, 3, 28)
    assert whole.wer == pytest.approx(33 / 7)
    assert [short.num_utterances, medium.num_utterances, long.num_utterances] == [2, 2, 1]
    assert long.wer == 1


def test_a_set_with_no_reference_word_has_no_rate() -> None:
    (whole, _) = scores_of([prediction(0, "...", "כן")], "he", Evaluate())
    assert whole.wer is None
    assert whole.cer is None
    assert averages_of([whole]) == (None, None, None, None)


def test_averages_are_the_mean_of_test_sets_and_the_pool_of_words() -> None:
    rows = [
        prediction(0, "א ב", "א ג", test_set="small"),
        prediction(1, "א ב ג ד ה ו ז ח", "א ב ג ד ה ו ז ח", test_set="large"),
    ]
    averages = averages_of(scores_of(rows, "he", Evaluate()))
    assert averages.mean_wer == pytest.approx((1 / 2 + 0) / 2)
    assert averages.pooled_wer == pytest.approx(1 / 10)


def test_buckets_follow_the_configuration_at_their_edges() -> None:
    section = Evaluate(short_below_seconds=5, long_above_seconds=15)
    assert [bucket_of(seconds, section) for seconds in (4.99, 5.0, 15.0, 15.01)] == [
        "short",
        "medium",
        "medium",
        "long",
    ]


def test_a_loop_is_a_pattern_of_at_most_twenty_characters_often_in_a_row() -> None:
    assert has_loop("כן " * 20, 20)
    assert has_loop("אה" * 25, 20)
    assert not has_loop("כן " * 18 + "כן", 20)
    assert not has_loop("עשרים ואחת אותיות בשורה " * 30, 20)


def test_the_benchmark_table_has_one_row_per_test_set_with_fractions() -> None:
    whole = [score for score in scores_of([prediction(0, "א ב", "א ג")], "he", Evaluate()) if score.bucket == "all"]
    header, row = benchmark_csv(whole, {"d1": Timing(4.0, 2.5)}, "chat").splitlines()
    values = dict(zip(header.split(","), row.split(","), strict=True))
    assert values["dataset"] == "d1"
    assert float(values["wer"]) == 0.5
    assert [values[key] for key in ("samples", "S", "D", "I", "words")] == ["1", "1", "0", "0", "2"]
    assert (float(values["avg_latency"]), float(values["total_time"])) == (4.0, 2.5)
    assert (values["hebrew_fraction"], values["route"]) == ("1.0", "chat")
