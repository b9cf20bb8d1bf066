from pathlib import Path

import pytest

from caspi.config import Evaluate
from caspi.records import Clip, Prediction, Utterance, write_jsonl
from caspi.speech.corpora.leakage import KnownClip, find_leaks, leakage_report, leakage_summary
from caspi.speech.corpora.overlap import seen_ngrams

LONG_TEXT = "היום מזג האוויר נאה מאוד"


def trained(number: int, text: str = "אחר", sha: str = "", group: str | None = None, offset: float = 0.0) -> Utterance:
    fields = {"id": f"train-{number}", "audio_filepath": "a.flac", "text": text, "duration": 5.0, "domain": "kan_clean"}
    return Utterance.model_validate({**fields, "source_sha256": sha, "group_id": group, "offset": offset})


def clip(text: str = "שונה", sha: str = "", group: str | None = None, offset: float = 0.0) -> KnownClip:
    return KnownClip("d1", "test-0", text, group, sha, offset, 5.0)


@pytest.mark.parametrize(
    ("training", "tested", "kinds"),
    [
        (trained(0, sha="f"), clip(sha="f"), ["audio"]),
        (trained(0, sha="f"), clip(sha="f", offset=4.9), ["audio"]),
        (trained(0, sha="f"), clip(sha="f", offset=5.0), ["recording"]),
        (trained(0, LONG_TEXT), clip('היום, מֶזֶג האוויר "נאה" מאוד!'), ["transcript"]),
        (trained(0, "מזג האוויר נאה"), clip("מזג האוויר נאה"), []),
        (trained(0, group="speaker"), clip(group="speaker"), ["group"]),
        (trained(0, LONG_TEXT, "f", "s"), clip(LONG_TEXT, "f", "s"), ["audio", "transcript", "group"]),
        (trained(0, sha="", group=None), clip(sha="", group=None), []),
    ],
    ids=["same clip", "overlap", "same file", "same words", "too short", "same speaker", "everything", "unknown"],
)
def test_each_way_of_having_seen_a_clip_is_named(training: Utterance, tested: KnownClip, kinds: list[str]) -> None:
    leaks = find_leaks([training], [tested], min_words=4)
    assert [leak.kind for leak in leaks] == kinds
    assert {leak.train_id for leak in leaks} <= {"train-0"}


def test_an_overlap_is_found_among_many_stretches_of_one_file() -> None:
    training = [trained(number, sha="f", offset=10.0 * number) for number in range(5)]
    (leak,) = find_leaks(training, [clip(sha="f", offset=32.0)], min_words=4)
    assert (leak.kind, leak.train_id) == ("audio", "train-3")


def test_the_report_counts_by_set_and_says_what_it_could_not_look_up(tmp_path: Path) -> None:
    training = [trained(0, sha="f"), trained(1, sha="g")]
    write_jsonl(tmp_path / "manifest.jsonl", training)
    clips = [clip(sha="f"), clip(sha=""), clip(sha="x")]
    report = leakage_report(tmp_path / "manifest.jsonl", clips, Evaluate())
    assert report["test_sets"] == {"d1": {"num_clips": 3, "audio": 1, "recording": 0, "transcript": 0, "group": 0}}
    assert (report["num_training_utterances"], report["num_audio_unchecked"]) == (2, 1)
    assert list(leakage_summary(report)) == [
        "d1: 1 of 3 clips are in the training manifest with the same audio",
        "the audio of 1 test clips could not be looked up in the training manifest: no hashes",
    ]


COUNTING = "אחת שתיים שלוש ארבע חמש שש שבע שמונה"
"""Eight words: four sequences of five."""


def test_sequences_of_words_are_counted_by_set_and_the_worst_utterances_named() -> None:
    training = [f"אמרתי {COUNTING}", "כן לא אולי בטח", "שתיים שלוש ארבע חמש שש"]
    clips = [
        ("d1", "inside", "פתח שלוש, ארבע חמש שֵׁש שבע שמונה"),  # 3 sequences, the first is new
        ("d1", "equal", COUNTING),
        ("d1", "across", "אולי בטח שתיים שלוש ארבע"),  # the end of one text and the start of another
        ("d1", "short", "כן לא אולי בטח"),
        ("d2", "new", "היום מזג האוויר נאה מאוד"),
        ("d3", "too short", "כן"),
    ]
    found = seen_ngrams(training, clips, 5)
    d1 = found["d1"]
    assert (d1.num_ngrams, d1.num_seen, d1.seen_fraction, d1.num_mostly_seen) == (3 + 4 + 1 + 0, 6, 6 / 8, 2)
    assert [(one.id, one.num_ngrams, one.num_seen) for one in d1.worst] == [("equal", 4, 4), ("inside", 3, 2)]
    assert (found["d2"].seen_fraction, found["d2"].worst) == (0.0, [])
    assert found["d3"].seen_fraction is None


@pytest.mark.parametrize(
    ("bound", "says"),
    [(0.4, ["d1: 50.0% of 4 sequences of 5 words are in the training manifest"]), (0.5, [])],
)
def test_shared_wording_above_the_bound_is_said_aloud(tmp_path: Path, bound: float, says: list[str]) -> None:
    write_jsonl(tmp_path / "manifest.jsonl", [trained(0, "אחת שתיים שלוש ארבע חמש שש אחר", sha="f")])
    section = Evaluate(max_seen_ngram_fraction=bound)
    report = leakage_report(tmp_path / "manifest.jsonl", [clip(COUNTING, sha="x")], section)
    assert list(leakage_summary(report)) == says


def test_predictions_are_looked_up_with_the_audio_of_their_clip() -> None:
    fields = {"id": "u", "test_set": "d1", "reference": "מה", "hypothesis": "", "domain": "x", "group_id": None}
    row = Prediction.model_validate({**fields, "duration": 5.0, "finish_reason": "stop"})
    audio = Clip(test_set="d1", id="u", audio_filepath="/a.flac", offset=3.0, duration=5.0, source_sha256="f")
    found = [find_leaks([trained(0, sha="f")], [KnownClip.of_prediction(row, one)], 4) for one in (audio, None)]
    assert [[leak.kind for leak in leaks] for leaks in found] == [["audio"], []]
