from pathlib import Path

import pytest

from caspi.records import Clip, Prediction, Utterance, write_jsonl
from caspi.speech.leakage import KnownClip, find_leaks, leakage_report, leakage_summary

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
    report = leakage_report(tmp_path / "manifest.jsonl", training, clips, find_leaks(training, clips, 4))
    assert report["test_sets"] == {"d1": {"num_clips": 3, "audio": 1, "recording": 0, "transcript": 0, "group": 0}}
    assert (report["num_training_utterances"], report["num_audio_unchecked"]) == (2, 1)
    assert list(leakage_summary(report)) == [
        "d1: 1 of 3 clips are in the training manifest with the same audio",
        "the audio of 1 test clips could not be looked up in the training manifest: no hashes",
    ]


def test_predictions_are_looked_up_with_the_audio_of_their_clip() -> None:
    fields = {"id": "u", "test_set": "d1", "reference": "מה", "hypothesis": "", "domain": "x", "group_id": None}
    row = Prediction.model_validate({**fields, "duration": 5.0, "finish_reason": "stop"})
    audio = Clip(test_set="d1", id="u", audio_filepath="/a.flac", offset=3.0, duration=5.0, source_sha256="f")
    found = [find_leaks([trained(0, sha="f")], [KnownClip.of_prediction(row, one)], 4) for one in (audio, None)]
    assert [[leak.kind for leak in leaks] for leaks in found] == [["audio"], []]
