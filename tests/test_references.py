"""Times and scores known from elsewhere: gold clips, segment times, the corpus' own quality score."""

from pathlib import Path

import numpy as np
import pytest

from caspi.config import Audit
from caspi.prepare import segment_times
from caspi.records import SegmentTimes, dump_json
from caspi.speech.alignment.calibration import Measured
from caspi.speech.alignment.controls import DECOY, ORIGINAL
from caspi.speech.alignment.findings import Finding
from caspi.speech.alignment.gold import GoldClip, GoldWord, gold_figures, read_gold
from caspi.speech.alignment.quality import Alignment, Outcome, Pair
from caspi.speech.alignment.references import quality_score_correlation, segment_time_errors
from caspi.speech.corpora.audio import write_audio


def pair_at(times: list[tuple[float, float]]) -> Pair:
    alignment = Alignment(tuple(times), (0.0,) * len(times), 0.0)
    return Pair((3,) * len(times), 4 * len(times), 4.0, np.ones(400, dtype=bool), alignment)


def gold_clip(*times: tuple[float, float]) -> GoldClip:
    words = tuple(GoldWord(word="שלום,", start=start, end=end) for start, end in times)
    return GoldClip(id="g", audio_filepath="g.wav", words=(*words, GoldWord(word="-", start=9, end=9)))


def test_gold_errors_are_the_aligners_minus_the_verified_times() -> None:
    clip = gold_clip((0.1, 0.5), (0.6, 1.0))
    outcome = Outcome("g", {ORIGINAL: pair_at([(0.2, 0.45), (0.6, 1.3)])}, {})
    figures = gold_figures([clip], {"g": outcome}, None, None, Audit())
    assert figures["num_words"] == 2
    assert figures["median_boundary_error_seconds"] == pytest.approx((0.05 + 0.1) / 2)
    assert figures["within"] == {"0.08 s": 0.5, "0.16 s": 0.75}
    assert figures["mean_start_shift_seconds"] == pytest.approx(0.05)
    assert figures["mean_end_shift_seconds"] == pytest.approx((-0.05 + 0.3) / 2)
    assert "flagged_fraction" not in figures


def test_a_gold_clip_that_fails_is_counted() -> None:
    figures = gold_figures([gold_clip((0, 1))], {"g": Outcome("g", {}, {}, audio_error="x")}, None, None, Audit())
    assert figures == {"num_clips": 1, "num_failed": 1}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("", "holds no gold clip"),
        ('{"id": "a", "audio_filepath": "a.wav", "words": []}', "line 1: words"),
        (
            dump_json({"id": "a", "audio_filepath": "a", "words": [{"word": "א", "start": 2, "end": 1}]}),
            "ends at 1 s, before it starts at 2 s",
        ),
        (
            dump_json({"id": "a", "audio_filepath": "none.wav", "words": [{"word": "א", "start": 0, "end": 1}]}),
            r"clip 'a': .*none.wav",
        ),
        (
            dump_json({"id": "a", "audio_filepath": "a", "words": [{"word": "-", "start": 0, "end": 1}]}),
            "no word that could be aligned",
        ),
    ],
)
def test_a_damaged_gold_manifest_is_one_clear_line(line: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "gold.jsonl").write_text(line, encoding="utf-8")
    with pytest.raises(ValueError, match=problem):
        read_gold(tmp_path / "gold.jsonl")


def test_gold_paths_are_relative_to_their_manifest_and_other_keys_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    write_audio(tmp_path / "x" / "a.wav", np.zeros(8000, dtype=np.float32))
    line = dump_json(
        {"id": "a", "audio_filepath": "x/a.wav", "text": "א", "words": [{"word": "א", "start": 0, "end": 1}]}
    )
    (tmp_path / "gold.jsonl").write_text(line, encoding="utf-8")
    (clip,) = read_gold(tmp_path / "gold.jsonl")
    assert clip.audio_filepath == str(tmp_path / "x" / "a.wav")
    assert clip.seconds == pytest.approx(0.5)


def test_whisper_timestamps_become_segments_of_words() -> None:
    text = "מבוא <|0.00|> שלום - לכולם<|1.20|><|1.50|> עולם<|2.00|>"
    assert segment_times(text) == (
        SegmentTimes(first_word=1, num_words=2, start=0.0, end=1.2),
        SegmentTimes(first_word=3, num_words=1, start=1.5, end=2.0),
    )
    assert segment_times("בלי זמנים") == ()


def test_segment_times_are_held_against_the_first_and_last_word_and_the_decoy_is_the_contrast() -> None:
    own = pair_at([(0.0, 0.4), (0.5, 0.9), (1.0, 1.5), (1.6, 2.0)])
    decoy = pair_at([(0.0, 1.0), (1.0, 2.0)])
    segments = [
        SegmentTimes(first_word=0, num_words=2, start=0.1, end=1.0),
        SegmentTimes(first_word=2, num_words=2, start=1.0, end=2.0),
    ]
    item = Measured("a", "d", 0, {ORIGINAL: own, DECOY: decoy})
    assert segment_time_errors([item], {"a": segments}) == {
        "num_utterances": 1,
        "num_boundaries": 2,
        "median_error_seconds": pytest.approx(0.05),  # 0.9 to 1.0, and 1.0 to 1.0
        "shuffled_median_error_seconds": pytest.approx(0.0),
    }
    assert segment_time_errors([item], {}) is None


def test_the_corpus_own_score_is_correlated_by_rank() -> None:
    coverages = np.linspace(0.1, 1, 12)
    findings = [
        Finding(
            sample_id=str(i),
            group_id=None,
            domain="d",
            audio_duration=1,
            transcript_length=1,
            words=1,
            weight=1,
            low_quality=coverage < 0.5,
            reasons=[],
            alignment_coverage=float(coverage),
            dataset_quality_score=float(np.exp(10 * coverage)),
        )
        for i, coverage in enumerate(coverages)
    ]
    found = quality_score_correlation(findings)
    assert found is not None
    assert found["num_utterances"] == 12
    assert found["alignment_coverage"] == pytest.approx(1)
    assert found["low_quality"] < -0.8
    assert quality_score_correlation(findings[:9]) is None
