import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caspi import compare
from caspi.config import Compare, Evaluate, Gate, Recipe
from caspi.records import Clip, Prediction, Utterance, write_json, write_jsonl

WORDS_PER_CLIP = 12
SETTINGS: dict[str, Any] = {
    "transcriber": {"prompt": "language Hebrew<asr_text>", "num_beams": 1},
    "test_sets": {"d1": "hash"},
}


def write_round(
    folder: Path, error_rate: float, num_clips: int = 400, test_sets: tuple[str, ...] = ("d1", "whatsapp"), **run: Any
) -> Path:
    """Predictions in which each word is wrong with this probability; both rounds share references and difficulty."""
    rows = []
    for test_set in test_sets:
        shared = np.random.default_rng(len(test_set))
        own = np.random.default_rng([len(test_set), round(1000 * error_rate)])
        for index in range(num_clips):
            words = [f"מילה{number}" for number in shared.integers(0, 500, WORDS_PER_CLIP)]
            difficulty = shared.gamma(4, 0.25)
            wrong = own.random(WORDS_PER_CLIP) < error_rate * difficulty
            rows.append(
                Prediction(
                    id=f"{test_set}-{index}",
                    test_set=test_set,
                    reference=" ".join(words),
                    hypothesis=" ".join("טעות" if bad else word for word, bad in zip(words, wrong, strict=True)),
                    domain="kan_clean",
                    group_id=f"speaker-{index % 40}",
                    duration=2.0 + index % 20,
                    finish_reason="stop",
                )
            )
    write_jsonl(folder / "predictions.jsonl", rows)
    write_json(folder / "run.json", {"model": folder.name, "settings": SETTINGS, **run})
    return folder


def recipe_for(tmp_path: Path, round1: Path | str, round2: Path | str, **fields: Any) -> Recipe:
    section = Compare.model_validate(
        {
            "round1_model": str(round1),
            "round2_model": str(round2),
            "output": tmp_path / "out" / "round2_comparison.csv",
            "predictions": tmp_path / "predictions",
            "num_bootstrap_draws": 2000,
            "num_permutations": 2000,
            **fields,
        }
    )
    return Recipe(compare=section, gate=Gate(report=tmp_path / "no_report.json"))


def result_of(tmp_path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((tmp_path / "out" / "comparison.json").read_text())
    return content


def whole_rows(tmp_path: Path) -> dict[str, dict[str, Any]]:
    return {row["test_set"]: row for row in result_of(tmp_path)["rows"] if row["bucket"] == "all"}


def test_a_true_difference_is_better_and_the_answer_is_yes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    round1, round2 = write_round(tmp_path / "r1", 0.15), write_round(tmp_path / "r2", 0.12)
    assert compare.run(recipe_for(tmp_path, round1, round2)) == 0
    rows = whole_rows(tmp_path)
    assert [row["verdict"] for row in rows.values()] == ["better"] * 4
    pooled = rows["pooled_wer"]
    assert pooled["low"] <= pooled["difference"] <= pooled["high"] < 0
    assert pooled["p_value"] < 0.01
    assert pooled["mapsswe_p_value"] < 0.01
    assert (pooled["blocks"], pooled["num_blocks"], pooled["num_words"]) == ("group", 80, 800 * WORDS_PER_CLIP)
    assert rows["mean_wer"]["round1_wer"] == pytest.approx(
        (rows["d1"]["round1_wer"] + rows["whatsapp"]["round1_wer"]) / 2
    )
    assert result_of(tmp_path)["is_better"] is True
    assert "pooled_wer" in capsys.readouterr().out


def test_swapping_the_rounds_turns_better_into_worse_and_the_answer_into_no(tmp_path: Path) -> None:
    round1, round2 = write_round(tmp_path / "r1", 0.12), write_round(tmp_path / "r2", 0.15)
    assert compare.run(recipe_for(tmp_path, round1, round2)) == 1
    assert {row["verdict"] for row in whole_rows(tmp_path).values()} == {"worse"}


def test_no_difference_cannot_be_told(tmp_path: Path) -> None:
    round1, round2 = write_round(tmp_path / "r1", 0.12), write_round(tmp_path / "r2", 0.121)
    assert compare.run(recipe_for(tmp_path, round1, round2)) == 1
    rows = whole_rows(tmp_path)
    assert {row["verdict"] for row in rows.values()} == {"cannot tell"}
    assert all(row["num_utterances_needed"] > row["num_utterances"] for row in rows.values())


def test_the_same_predictions_twice_cannot_be_told_and_are_named(tmp_path: Path) -> None:
    round1 = write_round(tmp_path / "r1", 0.12, settings={**SETTINGS, "model_files_sha256": {"a": "b"}})
    assert compare.run(recipe_for(tmp_path, round1, round1)) == 1
    assert whole_rows(tmp_path)["pooled_wer"]["num_utterances_needed"] is None
    assert "both rounds are the same model" in result_of(tmp_path)["warnings"]


@pytest.mark.parametrize("rates", [(0.17, 0.15), (0.9, 0.1)], ids=["realistic", "enormous"])
def test_seventeen_clips_cannot_tell(tmp_path: Path, rates: tuple[float, float]) -> None:
    rounds = [write_round(tmp_path / f"r{rate}", rate, num_clips=17, test_sets=("d1",)) for rate in rates]
    assert compare.run(recipe_for(tmp_path, *rounds)) == 1
    rows = whole_rows(tmp_path)
    assert {row["verdict"] for row in rows.values()} == {"cannot tell"}
    assert "fewer than 30 utterances" in rows["d1"]["note"]


def test_one_worse_test_set_makes_the_answer_no_although_the_pool_is_better(tmp_path: Path) -> None:
    better = [write_round(tmp_path / f"b{rate}", rate, num_clips=600, test_sets=("d1",)) for rate in (0.3, 0.1)]
    worse = [write_round(tmp_path / f"w{rate}", rate, num_clips=200, test_sets=("other",)) for rate in (0.05, 0.15)]
    for name, folders in (("r1", (better[0], worse[0])), ("r2", (better[1], worse[1]))):
        (tmp_path / name).mkdir()
        merged = "".join((folder / "predictions.jsonl").read_text() for folder in folders)
        (tmp_path / name / "predictions.jsonl").write_text(merged)
    assert compare.run(recipe_for(tmp_path, tmp_path / "r1", tmp_path / "r2")) == 1
    rows = whole_rows(tmp_path)
    assert (rows["pooled_wer"]["verdict"], rows["other"]["verdict"]) == ("better", "worse")


def test_the_same_comparison_gives_the_same_bytes_and_a_table_of_the_guide(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, write_round(tmp_path / "r1", 0.15), write_round(tmp_path / "r2", 0.14))
    folder = tmp_path / "out"
    compare.run(recipe)
    first = [(folder / name).read_bytes() for name in ("round2_comparison.csv", "comparison.json")]
    compare.run(recipe)
    assert [(folder / name).read_bytes() for name in ("round2_comparison.csv", "comparison.json")] == first
    with (folder / "round2_comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["Dataset"] for row in rows] == ["d1", "whatsapp", "mean_wer", "pooled_wer"]
    for row in rows:
        gap = float(row["Round 2 WER"]) - float(row["Round 1 WER"])
        assert float(row["Improvement"]) == pytest.approx(gap)


def test_the_order_of_the_predictions_does_not_matter(tmp_path: Path) -> None:
    round1, round2 = write_round(tmp_path / "r1", 0.15), write_round(tmp_path / "r2", 0.14)
    compare.run(recipe_for(tmp_path, round1, round2))
    expected = result_of(tmp_path)["rows"]
    path = round2 / "predictions.jsonl"
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    compare.run(recipe_for(tmp_path, round1, round2))
    assert result_of(tmp_path)["rows"] == expected


def test_every_duration_bucket_is_compared(tmp_path: Path) -> None:
    compare.run(recipe_for(tmp_path, write_round(tmp_path / "r1", 0.15), write_round(tmp_path / "r2", 0.12)))
    sizes = {row["bucket"]: row["num_utterances"] for row in result_of(tmp_path)["rows"] if row["test_set"] == "d1"}
    assert sizes == {"all": 400, "short": 60, "medium": 220, "long": 120}


def edit_first(folder: Path, **fields: Any) -> None:
    lines = (folder / "predictions.jsonl").read_text().splitlines()
    lines[0] = json.dumps(json.loads(lines[0]) | fields)
    (folder / "predictions.jsonl").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"id": "another"}, r"not of the same clips: 1 utterances \(d1/d1-0\) only in"),
        ({"reference": "אחר"}, r"reference differs for 1 utterances \(d1/d1-0\)"),
        ({"group_id": "nobody"}, "group_id differs"),
        ({"id": "d1-1"}, "the same id occurs twice"),
    ],
    ids=["other id", "other reference", "other group", "id twice"],
)
def test_rounds_of_other_clips_are_refused(tmp_path: Path, fields: dict[str, str], message: str) -> None:
    round1, round2 = write_round(tmp_path / "r1", 0.15, 40), write_round(tmp_path / "r2", 0.14, 40)
    edit_first(round2, **fields)
    with pytest.raises(ValueError, match=message):
        compare.run(recipe_for(tmp_path, round1, round2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"transcriber": {"prompt": "other"}}, "the prompts differ: 'language Hebrew<asr_text>' in .* 'other' in"),
        ({**SETTINGS, "test_sets": {"d1": "another"}}, "the audio of d1 differs"),
    ],
    ids=["prompt", "audio"],
)
def test_rounds_of_other_prompts_or_audio_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    round1, round2 = write_round(tmp_path / "r1", 0.15, 40), write_round(tmp_path / "r2", 0.14, 40, settings=settings)
    with pytest.raises(ValueError, match=message):
        compare.run(recipe_for(tmp_path, round1, round2))


def test_failed_clips_are_counted_as_deleted_and_make_the_run_exit_3(tmp_path: Path) -> None:
    round1, round2 = write_round(tmp_path / "r1", 0.15), write_round(tmp_path / "r2", 0.0)
    edit_first(round2, finish_reason="error", error="AUDIO_MISSING: gone")
    assert compare.run(recipe_for(tmp_path, round1, round2)) == 3
    assert whole_rows(tmp_path)["d1"]["round2_wer"] == pytest.approx(1 / 400)
    assert "Round 2: 1 clips failed: all their words count as deleted" in result_of(tmp_path)["warnings"]


def test_predictions_without_a_run_record_are_compared_with_a_warning(tmp_path: Path) -> None:
    round1, round2 = write_round(tmp_path / "r1", 0.15, 40), write_round(tmp_path / "r2", 0.14, 40)
    (round2 / "run.json").unlink()
    compare.run(recipe_for(tmp_path, round1 / "predictions.jsonl", round2))
    (warning,) = result_of(tmp_path)["warnings"]
    assert "does not say with which prompt" in warning


def test_an_unfinished_evaluation_is_not_compared(tmp_path: Path) -> None:
    (tmp_path / "r1").mkdir()
    (tmp_path / "r1" / "progress.jsonl").write_text("")
    with pytest.raises(ValueError, match="has not finished: run caspi evaluate again"):
        compare.run(recipe_for(tmp_path, tmp_path / "r1", tmp_path / "r1"))


def test_models_are_evaluated_first_on_the_test_sets_of_the_recipe(tmp_path: Path, asr_corpus: Any) -> None:
    from caspi.model.checkpoints.checkpoint import save_asr
    from caspi.model.tiny import build_tiny_asr

    for seed in (0, 1):
        save_asr(*build_tiny_asr(seed=seed), tmp_path / f"m{seed}")
    pairs = tuple(f"{name}={path}" for name, path in asr_corpus.test_sets.items())
    recipe = recipe_for(tmp_path, tmp_path / "m0", tmp_path / "m1")
    recipe = recipe.model_copy(update={"evaluate": Evaluate(test_sets=pairs, max_new_tokens=8)})
    assert compare.run(recipe) == 1
    assert set(whole_rows(tmp_path)) == {*asr_corpus.test_sets, "mean_wer", "pooled_wer"}
    assert result_of(tmp_path)["rounds"]["round2"]["model"] == str(tmp_path / "m1")
    assert (tmp_path / "predictions" / "round1" / "predictions.jsonl").is_file()


def criteria_of(tmp_path: Path) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in result_of(tmp_path)["criteria"]}


def test_criteria_without_evidence_cannot_tell_and_those_with_it_name_their_file(tmp_path: Path) -> None:
    round1 = write_round(tmp_path / "r1", 0.15, test_sets=("eval-whatsapp", "d1"))
    round2 = write_round(tmp_path / "r2", 0.08, test_sets=("eval-whatsapp", "d1"))
    compare.run(recipe_for(tmp_path, round1, round2))
    criteria = criteria_of(tmp_path)
    assert len(criteria) == 17
    assert criteria["mean WER below 11.5%"]["outcome"] == "met"
    assert criteria["mean WER below 11.5%"]["evidence"].endswith("comparison.json")
    assert criteria["eval-whatsapp improves by at least 1.5%"]["outcome"] == "met"
    assert criteria["mean CER below 4.5%"]["outcome"] == "missed"
    assert criteria["training completes all epochs"]["outcome"] == "cannot tell"
    assert criteria["Phase 0 finds less than 10 % of low quality"]["evidence"] is None


def test_criteria_take_their_evidence_from_the_training_run_and_the_audit(tmp_path: Path) -> None:
    log = [
        {"epoch": 1.0, "eval_wer": 0.20, "gpu_memory_gib": 20.0},
        {"epoch": 2.0, "eval_wer": 0.14},
        {"epoch": 3.0, "eval_wer": 0.15, "gpu_memory_gib": 35.0},
        {"epoch": 5.0, "eval_wer": 0.12},
    ]
    train = tmp_path / "train"
    write_json(train / "trainer_state.json", {"epoch": 5.0, "log_history": log})
    stages = [{"name": "B", "num_epochs": 2}, {"name": "A", "num_epochs": 3}]
    write_json(train / "run.json", {"recipe": {"train": {"stages": stages}}, "train_seconds": 12.5 * 3600})
    (train / "torn-500").mkdir()
    write_json(tmp_path / "no_report.json", {"decision": "CAUTION", "low_quality_percentage": 11.0})
    rounds = [write_round(tmp_path / f"r{rate}", rate, 40) for rate in (0.15, 0.14)]
    compare.run(recipe_for(tmp_path, *rounds, train_run=train))
    outcomes = {name: one["outcome"] for name, one in criteria_of(tmp_path).items()}
    assert outcomes["Phase 0 finds less than 10 % of low quality"] == "missed"
    assert outcomes["training completes all epochs"] == "met"
    assert outcomes["the model is saved and pushed to the Hub"] == "missed"
    assert outcomes["no checkpoint is damaged or lost"] == "missed"
    assert outcomes["the last stage lowers WER by another 0.5%"] == "met"
    assert outcomes["training takes at most 13 hours"] == "met"
    assert outcomes["training takes at most 12 hours"] == "missed"
    assert outcomes["GPU memory stays below 34 GiB"] == "missed"
    assert outcomes["all metrics are logged to W&B"] == "cannot tell"


def test_a_missing_training_run_is_refused(tmp_path: Path) -> None:
    rounds = [write_round(tmp_path / f"r{rate}", rate, 40) for rate in (0.15, 0.14)]
    with pytest.raises(ValueError, match=r"training run .* does not exist"):
        compare.run(recipe_for(tmp_path, *rounds, train_run=tmp_path / "nowhere"))


def test_control_sets_stay_out_of_the_averages_and_a_spoilt_one_makes_the_answer_no(tmp_path: Path) -> None:
    round1, round2 = write_round(tmp_path / "r1", 0.15), write_round(tmp_path / "r2", 0.12)
    assert compare.run(recipe_for(tmp_path, round1, round2, control_sets=["whatsapp"])) == 0
    assert set(whole_rows(tmp_path)) == {"d1", "mean_wer", "pooled_wer"}
    assert whole_rows(tmp_path)["pooled_wer"]["num_utterances"] == 400
    (control,) = result_of(tmp_path)["controls"]
    assert (control["test_set"], control["outcome"]) == ("whatsapp", "met")
    assert criteria_of(tmp_path)["control whatsapp: WER rises by at most 0.02"]["outcome"] == "met"
    spoilt = write_round(tmp_path / "spoilt", 0.25, test_sets=("whatsapp",))
    merged = [
        *(round2 / "predictions.jsonl").read_text().splitlines(keepends=True)[:400],
        *(spoilt / "predictions.jsonl").read_text().splitlines(keepends=True),
    ]
    (round2 / "predictions.jsonl").write_text("".join(merged))
    assert compare.run(recipe_for(tmp_path, round1, round2, control_sets=["whatsapp"])) == 1
    assert whole_rows(tmp_path)["pooled_wer"]["verdict"] == "better"
    assert criteria_of(tmp_path)["control whatsapp: WER rises by at most 0.02"]["outcome"] == "missed"


def test_a_test_clip_that_was_trained_on_makes_the_answer_no(tmp_path: Path) -> None:
    rounds = [write_round(tmp_path / f"r{rate}", rate) for rate in (0.15, 0.12)]
    audio = {"audio_filepath": "/a.flac", "offset": 0.0, "duration": 2.0, "source_sha256": "f"}
    write_jsonl(rounds[0] / "clips.jsonl", [Clip.model_validate({"test_set": "d1", "id": "d1-0", **audio})])
    clean = Utterance(id="t0", audio_filepath="/b.flac", text="אחר", duration=2.0, domain="x", source_sha256="g")
    write_jsonl(tmp_path / "manifest.jsonl", [clean])
    recipe = recipe_for(tmp_path, *rounds, train_manifest=tmp_path / "manifest.jsonl")
    assert compare.run(recipe) == 0
    assert result_of(tmp_path)["leakage"]["test_sets"]["d1"]["audio"] == 0
    write_jsonl(tmp_path / "manifest.jsonl", [clean.model_copy(update={"source_sha256": "f"})])
    assert compare.run(recipe) == 1
    assert "d1: 1 of 400 clips are in the training manifest with the same audio" in result_of(tmp_path)["warnings"]


def test_the_manifest_of_the_training_run_is_searched_for_test_clips(tmp_path: Path) -> None:
    rounds = [write_round(tmp_path / f"r{rate}", rate, 40) for rate in (0.15, 0.14)]
    known = Utterance(id="t0", audio_filepath="/b.flac", text="אחר", duration=2.0, domain="x", group_id="speaker-3")
    write_jsonl(tmp_path / "manifest.jsonl", [known])
    train = {"manifest": str(tmp_path / "manifest.jsonl"), "stages": []}
    write_json(tmp_path / "train" / "run.json", {"recipe": {"train": train}})
    compare.run(recipe_for(tmp_path, *rounds, train_run=tmp_path / "train"))
    assert result_of(tmp_path)["leakage"]["test_sets"]["d1"]["group"] == 1


def test_beam_search_is_judged_by_a_second_evaluation_of_round_2(tmp_path: Path) -> None:
    round1, round2 = write_round(tmp_path / "r1", 0.15), write_round(tmp_path / "r2", 0.12)
    beams = {"transcriber": {**SETTINGS["transcriber"], "num_beams": 5}, "test_sets": {}}
    name = "beam search improves the mean WER by at least 0.5%"
    for rate, outcome in ((0.09, "met"), (0.121, "missed")):
        folder = write_round(tmp_path / f"beams{rate}", rate, settings=beams)
        compare.run(recipe_for(tmp_path, round1, round2, round2_beams=folder))
        found = criteria_of(tmp_path)[name]
        assert (found["outcome"], found["evidence"]) == (outcome, "predictions with beams")
    claims = {claim["name"]: claim["files"] for claim in result_of(tmp_path)["ledger"]["claims"]}
    assert claims[f"criterion: {name}"] == ["round2", "round2_beams"]
    with pytest.raises(ValueError, match="num_beams is 1; evaluate Round 2 with --num-beams 5"):
        compare.run(recipe_for(tmp_path, round1, round2, round2_beams=round2))


def test_beams_of_another_model_are_refused(tmp_path: Path) -> None:
    round1 = write_round(tmp_path / "r1", 0.15, 40)
    round2 = write_round(tmp_path / "r2", 0.12, 40, settings={**SETTINGS, "model_files_sha256": {"a": "1"}})
    beams = {"transcriber": {**SETTINGS["transcriber"], "num_beams": 5}, "model_files_sha256": {"a": "2"}}
    folder = write_round(tmp_path / "beams", 0.1, 40, settings=beams)
    with pytest.raises(ValueError, match="is of another model than"):
        compare.run(recipe_for(tmp_path, round1, round2, round2_beams=folder))


def test_one_server_is_not_asked_for_both_rounds(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, "round-1", "round-2")
    recipe = recipe.model_copy(update={"evaluate": Evaluate(server="http://localhost:8000/v1")})
    with pytest.raises(ValueError, match="run caspi evaluate for each round and give compare their folders"):
        compare.run(recipe)


def test_rounds_through_the_transcription_route_carry_a_warning(tmp_path: Path) -> None:
    settings = {"transcriber": {"prompt": None, "route": "transcription"}}
    rounds = [write_round(tmp_path / f"r{rate}", rate, 40, settings=settings) for rate in (0.15, 0.14)]
    compare.run(recipe_for(tmp_path, *rounds))
    assert any(
        "Round 2: transcribed through the transcription route" in text for text in result_of(tmp_path)["warnings"]
    )


def test_what_a_folder_alone_shows_is_unverified(tmp_path: Path) -> None:
    rounds = [write_round(tmp_path / f"r{rate}", rate, 40) for rate in (0.15, 0.14)]
    (tmp_path / "train").mkdir()
    compare.run(recipe_for(tmp_path, *rounds, train_run=tmp_path / "train"))
    assert "criterion: no checkpoint is damaged or lost" in result_of(tmp_path)["ledger"]["unverified"]
    assert "(unverified: no file proves it)" in (tmp_path / "out" / "comparison.html").read_text()
