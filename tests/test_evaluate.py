import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caspi import evaluate
from caspi.config import Evaluate, Recipe
from caspi.model.checkpoints.checkpoint import save_asr
from caspi.model.tiny import build_tiny_asr
from caspi.model.transcribers import Transcription
from caspi.records import Clip, Prediction, Utterance, read_jsonl, write_jsonl
from caspi.speech.corpora.audio import write_audio

WORDS = ("שלום", "ילד", "בית", "ספר", "חלון", "שמש")


class CountingTranscriber:
    """Writes the length of each clip; can stop like a killed process before a given call."""

    num_concurrent = 1
    batch_size = 3
    folder = None
    packages: tuple[str, ...] = ()

    def __init__(self, stop_before_call: int | None = None, model: str = "m") -> None:
        self.stop_before_call = stop_before_call
        self.model = model
        self.num_calls = 0
        self.lengths: list[int] = []

    def transcribe(self, audios: Sequence[np.ndarray], language: str | None = None) -> list[Transcription]:
        if self.num_calls == self.stop_before_call:
            raise KeyboardInterrupt
        self.num_calls += 1
        self.lengths += [len(audio) for audio in audios]
        return [Transcription(f"שלום {len(audio)}", "stop") for audio in audios]

    def describe(self) -> dict[str, Any]:
        return {"kind": "counting", "prompt": "p", "model": self.model}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    save_asr(*build_tiny_asr(seed=0), folder)
    return folder


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten clips of 1.0 to 1.9 seconds from five speakers, as `caspi prepare` would write them."""
    folder = tmp_path_factory.mktemp("set")
    rng = np.random.default_rng(0)
    utterances = []
    for index in range(10):
        seconds = 1 + index / 10
        write_audio(folder / f"{index}.flac", rng.normal(0, 0.1, round(16_000 * seconds)).astype(np.float32))
        utterances.append(
            Utterance(
                id=f"u{index}",
                audio_filepath=f"{index}.flac",
                text=f"{WORDS[index % 6]} {WORDS[(index + 1) % 6]}",
                duration=seconds,
                domain="kan_clean",
                group_id=f"speaker-{index % 5}",
            )
        )
    write_jsonl(folder / "manifest.jsonl", utterances)
    return folder / "manifest.jsonl"


def recipe_for(output: Path, manifest: Path, checkpoint: Path, **fields: Any) -> Recipe:
    values = {"model": str(checkpoint), "test_sets": (f"d1={manifest}",), "batch_size": 3, "max_new_tokens": 8}
    return Recipe(evaluate=Evaluate.model_validate({**values, "output": output, **fields}))


def run_with(monkeypatch: pytest.MonkeyPatch, recipe: Recipe, transcriber: CountingTranscriber) -> int:
    monkeypatch.setattr(evaluate, "load_transcriber", lambda *_: transcriber)
    return evaluate.run(recipe)


def predictions_of(output: Path) -> list[Prediction]:
    return list(read_jsonl(output / "predictions.jsonl", Prediction))


def test_a_real_model_is_evaluated_twice_with_the_same_bytes(
    tmp_path: Path, manifest: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        assert evaluate.run(recipe_for(tmp_path / name, manifest, checkpoint)) == 0
    for name in ("predictions.jsonl", "scores.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    rows = predictions_of(tmp_path / "a")
    assert [row.id for row in rows] == [f"u{index}" for index in range(10)]
    assert rows[4].reference == "חלון שמש"
    assert all(row.hypothesis for row in rows)
    run = json.loads((tmp_path / "a" / "run.json").read_text())
    assert run["settings"]["transcriber"]["prompt"].endswith("language Hebrew<asr_text>")
    assert len(run["settings"]["model_files_sha256"]["model.safetensors"]) == 64
    scores = json.loads((tmp_path / "a" / "scores.json").read_text())
    whole = [row for row in scores["scores"] if row["bucket"] == "all"]
    assert {row["profile"] for row in whole} == {"ivrit", "he"}
    with (tmp_path / "a" / "benchmark_results_he.csv").open() as file:
        (line,) = csv.DictReader(file)
    assert (line["dataset"], line["samples"], line["words"]) == ("d1", "10", "20")
    assert float(line["wer"]) == pytest.approx(next(row["wer"] for row in whole if row["profile"] == "he"))
    assert "pooled_wer" in capsys.readouterr().out


@pytest.mark.parametrize("num_calls", [0, 1, 3])
def test_a_killed_evaluation_goes_on_after_the_last_batch_and_ends_with_the_same_file(
    tmp_path: Path, manifest: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, num_calls: int
) -> None:
    whole, halves = (recipe_for(tmp_path / name, manifest, checkpoint) for name in ("whole", "halves"))
    run_with(monkeypatch, whole, CountingTranscriber())
    first, second = CountingTranscriber(stop_before_call=num_calls), CountingTranscriber()
    with pytest.raises(KeyboardInterrupt):
        run_with(monkeypatch, halves, first)
    assert not (tmp_path / "halves" / "predictions.jsonl").exists()
    assert run_with(monkeypatch, halves, second) == 0
    assert first.num_calls + second.num_calls == 4
    assert len(first.lengths + second.lengths) == len(set(first.lengths + second.lengths)) == 10
    texts = [(tmp_path / name / "predictions.jsonl").read_bytes() for name in ("whole", "halves")]
    assert texts[0] == texts[1]
    third = CountingTranscriber()
    assert run_with(monkeypatch, halves, third) == 0
    assert third.num_calls == 0


def test_a_line_that_was_torn_by_a_kill_is_dropped_and_its_batch_done_again(
    tmp_path: Path, manifest: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_for(tmp_path, manifest, checkpoint)
    run_with(monkeypatch, recipe, CountingTranscriber())
    expected = (tmp_path / "predictions.jsonl").read_bytes()
    progress = tmp_path / "progress.jsonl"
    progress.write_bytes(progress.read_bytes()[:-20])
    again = CountingTranscriber()
    assert run_with(monkeypatch, recipe, again) == 0
    assert again.num_calls == 1
    assert (tmp_path / "predictions.jsonl").read_bytes() == expected


def test_results_of_another_model_are_never_mixed_in(
    tmp_path: Path, manifest: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_for(tmp_path, manifest, checkpoint)
    run_with(monkeypatch, recipe, CountingTranscriber())
    with pytest.raises(ValueError, match=r'results of other settings \(transcriber.model: "m" -> "n"\)'):
        run_with(monkeypatch, recipe, CountingTranscriber(model="n"))
    (tmp_path / "run.json").unlink()
    with pytest.raises(ValueError, match=r"predictions without run\.json"):
        run_with(monkeypatch, recipe, CountingTranscriber())


def test_a_clip_that_cannot_be_read_counts_as_deleted_and_is_tried_again(
    tmp_path: Path, manifest: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "set"
    shutil.copytree(manifest.parent, folder)
    good = (folder / "4.flac").read_bytes()
    (folder / "4.flac").write_bytes(b"")
    recipe = recipe_for(tmp_path / "out", folder / "manifest.jsonl", checkpoint)
    assert run_with(monkeypatch, recipe, CountingTranscriber()) == 3
    failed = predictions_of(tmp_path / "out")[4]
    assert (failed.finish_reason, failed.hypothesis) == ("error", "")
    assert failed.error is not None
    assert failed.error.startswith("AUDIO_EMPTY")
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())["scores"]
    whole = next(row for row in scores if row["bucket"] == "all" and row["profile"] == "he")
    assert (whole["num_failed"], whole["num_words"], whole["deletions"]) == (1, 20, 2)
    (folder / "4.flac").write_bytes(good)
    again = CountingTranscriber()
    assert run_with(monkeypatch, recipe, again) == 0
    assert (again.num_calls, len(again.lengths)) == (1, 1)
    assert predictions_of(tmp_path / "out")[4].finish_reason == "stop"


def test_a_raw_csv_manifest_is_read_with_the_reader_of_prepare(
    tmp_path: Path, manifest: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = manifest.parent / "raw.csv"
    raw.write_text("audio_filepath,text\n0.flac,<|0.00|> שָׁלוֹם\n1.flac,בית ספר\n2.flac,\n", encoding="utf-8")
    recipe = recipe_for(tmp_path, raw, checkpoint)
    assert run_with(monkeypatch, recipe, CountingTranscriber()) == 0
    rows = predictions_of(tmp_path)
    assert [(row.reference, row.duration) for row in rows] == [("שלום", 1.0), ("בית ספר", 1.1)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "audio_filepath,text\n0.flac,שלום\nmissing.flac,בית\n",
            "1 of 2 rows of .* cannot be evaluated; .*AUDIO_MISSING",
        ),
        ("audio_filepath,text\n", "holds no rows"),
        ("audio_filepath,text\n0.flac,\n", "no row with a transcript"),
    ],
    ids=["missing clip", "empty", "no transcript"],
)
def test_a_test_set_that_cannot_be_read_whole_is_an_error_and_never_skipped(
    tmp_path: Path, manifest: Path, checkpoint: Path, content: str, message: str
) -> None:
    raw = manifest.parent / f"{tmp_path.name}.csv"
    raw.write_text(content, encoding="utf-8")
    recipe = recipe_for(tmp_path / "out", raw, checkpoint, test_sets=(f"good={manifest}", f"bad={raw}"))
    with pytest.raises(ValueError, match=message):
        evaluate.run(recipe)
    assert not (tmp_path / "out" / "predictions.jsonl").exists()


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ((), "test_sets is empty"),
        (("ivrit-ai/eval-d1",), "expected NAME=SOURCE"),
        (("a=x", "a=y"), "named twice"),
        (("a=/no/such/manifest.jsonl",), "does not exist"),
    ],
    ids=["none", "no name", "twice", "missing"],
)
def test_bad_test_sets_are_refused_with_one_line(
    tmp_path: Path, manifest: Path, checkpoint: Path, pairs: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate.run(recipe_for(tmp_path, manifest, checkpoint, test_sets=pairs))


def test_a_sample_is_seeded_nested_and_announced(
    tmp_path: Path, manifest: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def ids(size: int, seed: int = 42) -> list[str]:
        recipe = recipe_for(tmp_path, manifest, checkpoint, max_samples=size, seed=seed)
        return [one.id for one in evaluate.read_test_sets(recipe.evaluate)["d1"]]

    assert ids(4) == ids(4) == sorted(ids(4))
    assert set(ids(4)) < set(ids(7))
    assert ids(4) != ids(4, seed=1)
    assert ids(99) == [f"u{index}" for index in range(10)]
    assert "WARNING: d1: 4 of 10 utterances; intervals are about 1.6 times as wide" in capsys.readouterr().out


def test_synthetic_hebrew_speech_is_evaluated_as_test_sets_of_the_guide(
    tmp_path: Path, asr_corpus: Any, checkpoint: Path
) -> None:
    pairs = tuple(f"{name}={path}" for name, path in asr_corpus.test_sets.items())
    assert evaluate.run(recipe_for(tmp_path, Path(), checkpoint, test_sets=pairs, num_beams=2)) == 0
    rows = predictions_of(tmp_path)
    assert list(dict.fromkeys(row.test_set for row in rows)) == list(asr_corpus.test_sets)
    assert len(rows) == 24


def test_clips_that_were_trained_on_are_named_before_scoring(
    tmp_path: Path,
    manifest: Path,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = recipe_for(tmp_path, manifest, checkpoint, train_manifest=manifest, min_leak_words=2)
    assert run_with(monkeypatch, recipe, CountingTranscriber()) == 0
    report = json.loads((tmp_path / "leakage.json").read_text())
    assert report["test_sets"]["d1"] == {"num_clips": 10, "audio": 0, "recording": 0, "transcript": 10, "group": 10}
    assert "WARNING: d1: 10 of 10 clips have the words of a training utterance" in capsys.readouterr().out


def test_where_the_audio_is_stays_beside_the_predictions(
    tmp_path: Path, manifest: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_with(monkeypatch, recipe_for(tmp_path, manifest, checkpoint), CountingTranscriber())
    clips = list(read_jsonl(tmp_path / "clips.jsonl", Clip))
    assert [(clip.test_set, clip.id) for clip in clips] == [("d1", f"u{index}") for index in range(10)]
    assert all(Path(clip.audio_filepath).is_file() for clip in clips)


def test_a_language_for_a_test_set_that_does_not_exist_is_refused(
    tmp_path: Path, manifest: Path, checkpoint: Path
) -> None:
    with pytest.raises(ValueError, match="languages names english, which is no test set"):
        evaluate.run(recipe_for(tmp_path, manifest, checkpoint, languages={"english": "English"}))


def test_failed_clips_are_named_at_the_end_with_the_way_out(
    tmp_path: Path,
    manifest: Path,
    checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "set"
    shutil.copytree(manifest.parent, folder)
    for index in range(7):
        (folder / f"{index}.flac").unlink()
    recipe = recipe_for(tmp_path / "out", folder / "manifest.jsonl", checkpoint)
    assert run_with(monkeypatch, recipe, CountingTranscriber()) == 3
    lines = capsys.readouterr().out.splitlines()[-7:]
    assert lines[0].startswith(
        "MISSING: 7 of 10 clips have no text (7 AUDIO_MISSING); all their words count as deleted."
    )
    assert lines[1].startswith("  d1/u0: AUDIO_MISSING: ")
    assert lines[-1] == "  and 2 more in predictions.jsonl"
