"""Export: the right checkpoint, both layouts, proof against the base, model card, adapters, averages."""

import json
import shlex
import shutil
import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from jinja2 import Environment
from made_runs import make_run
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from caspi import cli
from caspi.config import Export, Recipe
from caspi.export import retry_command, run
from caspi.model.checkpoints.averaging import load_average, weighted_mean
from caspi.model.checkpoints.checkpoint import load_asr, save_asr
from caspi.model.tiny_models import build_tiny_asr
from caspi.ops.training.artifacts import commit, read_marker
from caspi.ops.training.evaluations import rank_checkpoints
from caspi.records import RunFailed, sha256_of_file, write_json

ASSETS = Path("/work/shared/assets/qwen3-asr")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder that no test changes."""
    return make_run(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def exported(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both layouts of the best checkpoint in float32, that no test changes."""
    output = tmp_path_factory.mktemp("exported") / "out"
    assert run(recipe(made, output, layout="both")) == 0
    return output


def recipe(run_dir: Path, output: Path, **options: object) -> Recipe:
    fields = {"run_dir": run_dir, "output": output, "dtype": "float32", "max_new_tokens": 8}
    return Recipe(export=Export.model_validate(fields | options))


def report_of(output: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((output / "export_report.json").read_text(encoding="utf-8"))
    return content


def test_the_checkpoint_with_the_lowest_eval_wer_is_exported_in_both_layouts(made: Path, exported: Path) -> None:
    expected, _ = load_asr(made / "checkpoint-200")
    for layout in ("hf", "original"):
        found, _ = load_asr(exported / layout)
        assert all(torch.equal(a, b) for a, b in zip(expected.parameters(), found.parameters(), strict=True))
    assert "lm_head.weight" not in load_file(exported / "hf" / "model.safetensors")
    assert all(name.startswith("thinker.") for name in load_file(exported / "original" / "model.safetensors"))


def test_the_report_accounts_for_every_tensor_by_layer_group(made: Path, exported: Path) -> None:
    weights = report_of(exported)["weights"]
    rows = {row["group"]: row for row in weights["groups"]}  # type: ignore[index]
    state = load_file(made / "checkpoint-200" / "model.safetensors")
    assert sum(row["num_tensors"] for row in rows.values()) == len(state)
    assert rows["projector"]["num_changed_as_expected"] == rows["projector"]["num_tensors"] == 4
    assert rows["audio_top"]["num_expected"] == 0, "stage B had not trained it"
    assert rows["audio_top"]["num_unchanged"] == rows["audio_top"]["num_tensors"]
    assert weights["unexpectedly_changed"] == weights["unexpectedly_unchanged"] == []  # type: ignore[index]


def test_a_later_stage_may_have_changed_more(made: Path, tmp_path: Path) -> None:
    run(recipe(made, tmp_path / "out", checkpoint="300"))

    weights = report_of(tmp_path / "out")["weights"]
    rows = {row["group"]: row for row in weights["groups"]}  # type: ignore[index]
    assert rows["audio_top"]["num_changed_as_expected"] == rows["audio_top"]["num_tensors"]


def change_weights(folder: Path, change: str) -> None:
    model, processor = load_asr(folder)
    base, _ = build_tiny_asr(seed=0)
    with torch.no_grad():
        if change == "frozen tensor":
            model.model.language_model.norm.weight[0] += 1
        else:
            model.load_state_dict(base.state_dict())
    save_asr(model, processor, folder)
    marker = read_marker_unchecked(folder)
    commit(folder, **{key: value for key, value in marker.items() if key != "files"})


def read_marker_unchecked(folder: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((folder / "COMPLETE.json").read_text(encoding="utf-8"))
    return content


@pytest.mark.parametrize(
    ("change", "message"),
    [("frozen tensor", "language_model.norm.weight"), ("none", "projector trained, but is bit for bit")],
)
def test_weights_that_the_run_cannot_have_made_are_not_exported(
    change: str, message: str, tmp_path: Path, made: Path
) -> None:
    shutil.copytree(made.parent, tmp_path / "copy")
    run_dir = tmp_path / "copy" / "round2"
    change_weights(run_dir / "checkpoint-200", change)

    with pytest.raises(RunFailed, match=message):
        run(recipe(run_dir, tmp_path / "out"))

    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def test_a_torn_best_checkpoint_is_passed_over_and_said(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made.parent, tmp_path / "copy")
    run_dir = tmp_path / "copy" / "round2"
    with (run_dir / "checkpoint-200" / "model.safetensors").open("ab") as file:
        file.write(b"x")

    run(recipe(run_dir, tmp_path / "out"))

    report = report_of(tmp_path / "out")
    assert "step 300" in report["checkpoints"][0]  # type: ignore[index]
    assert "step 200 (eval_wer 12.00%): model.safetensors has" in report["notes"][0]  # type: ignore[index]


def test_in_bfloat16_every_weight_is_the_nearest_one(made: Path, tmp_path: Path) -> None:
    run(recipe(made, tmp_path / "out", dtype="bfloat16", layout="both"))

    source = load_file(made / "checkpoint-200" / "model.safetensors")
    exported = load_file(tmp_path / "out" / "hf" / "model.safetensors")
    assert exported.keys() == source.keys()
    for name, tensor in exported.items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, source[name].to(torch.bfloat16)), name
    config = json.loads((tmp_path / "out" / "original" / "config.json").read_text(encoding="utf-8"))
    assert config["dtype"] == config["thinker_config"]["dtype"] == "bfloat16"
    assert 0 < report_of(tmp_path / "out")["round_trip"]["rounding_relative_difference"] < 0.05  # type: ignore[index]


def test_rounding_that_changes_too_much_is_refused(made: Path, tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="use --dtype float32"):
        run(recipe(made, tmp_path / "out", dtype="bfloat16", max_rounding_difference=1e-9))


def test_the_exported_template_takes_forced_language(exported: Path) -> None:
    jinja = (exported / "hf" / "chat_template.jinja").read_text(encoding="utf-8")
    original = json.loads((exported / "original" / "chat_template.json").read_text(encoding="utf-8"))
    for template in (jinja, original["chat_template"]):
        without_mark = template.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")
        messages = [{"role": "user", "content": [{"type": "audio"}]}]
        text = (
            Environment()
            .from_string(without_mark)
            .render(messages=messages, add_generation_prompt=True, forced_language="Hebrew")
        )
        assert text == (
            "<|im_start|>system\n<|im_end|>\n<|im_start|>user\n<|audio_start|><|audio_pad|><|audio_end|><|im_end|>\n"
            "<|im_start|>assistant\nlanguage Hebrew<asr_text>"
        )


def test_an_average_is_the_weighted_mean_to_the_last_bit(made: Path, tmp_path: Path) -> None:
    weights = (3.0, 1.0, 4.0)
    run(recipe(made, tmp_path / "out", checkpoint="average", num_averaged=3, average_weights=weights))

    order = (200, 300, 100)
    sources = [load_file(made / f"checkpoint-{step}" / "model.safetensors") for step in order]
    exported = load_file(tmp_path / "out" / "hf" / "model.safetensors")
    for name in ("model.multi_modal_projector.linear_1.weight", "model.language_model.norm.weight"):
        flat = [source[name].flatten()[:50].tolist() for source in sources]
        for index, value in enumerate(exported[name].flatten()[:50].tolist()):
            exact = sum(Fraction(w) * Fraction(values[index]) for w, values in zip(weights, flat, strict=True)) / 8
            assert value == struct.unpack("f", struct.pack("f", float(exact)))[0]


def test_a_mean_does_not_depend_on_the_order() -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(1000, generator=generator) for _ in range(4)]

    means = [weighted_mean(order, [1.0] * 4).float() for order in (tensors, tensors[::-1])]

    assert torch.equal(*means)


def test_models_of_different_size_are_not_averaged(tmp_path: Path, made: Path) -> None:
    shutil.copytree(made / "checkpoint-100", tmp_path / "other")
    state = load_file(tmp_path / "other" / "model.safetensors")
    state.pop("model.language_model.norm.weight")
    from safetensors.torch import save_file

    save_file(state, tmp_path / "other" / "model.safetensors")

    with pytest.raises(ValueError, match=r"not checkpoints of one model: model\.language_model\.norm\.weight"):
        load_average([made / "checkpoint-200", tmp_path / "other"])


def test_more_checkpoints_than_there_are_cannot_be_averaged(made: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"4 checkpoints are to be averaged, but .* has 3"):
        run(recipe(made, tmp_path / "out", checkpoint="average", num_averaged=4))


@pytest.fixture
def adapter_run(made: Path, tmp_path: Path) -> Path:
    """A run whose newest, best checkpoint holds LoRA adapters of the language model and the projector."""
    shutil.copytree(made.parent, tmp_path / "lora")
    run_dir = tmp_path / "lora" / "round2"
    model, _ = load_asr(tmp_path / "lora" / "base")
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "linear_1"], init_lora_weights=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        adapted = get_peft_model(model, config)
    folder = run_dir / "checkpoint-400"
    adapted.save_pretrained(str(folder), safe_serialization=True)
    marker = read_marker(run_dir / "checkpoint-300")
    state = {"global_step": 400, "log_history": [{"step": 400, "eval_wer": 0.05, "eval_loss": 1.0}]}
    write_json(folder / "trainer_state.json", state)
    commit(folder, **(marker.model_dump(exclude={"files"}) | {"step": 400}))
    return run_dir


def test_adapters_are_merged_into_the_weights(adapter_run: Path, tmp_path: Path) -> None:
    run(recipe(adapter_run, tmp_path / "out", base_model=str(adapter_run.parent / "base"), layout="both"))

    base = load_file(adapter_run.parent / "base" / "model.safetensors")
    adapter = load_file(adapter_run / "checkpoint-400" / "adapter_model.safetensors")
    exported = load_file(tmp_path / "out" / "hf" / "model.safetensors")
    name = "model.multi_modal_projector.linear_1"
    low, high = (adapter[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
    scale = 8 / 4
    torch.testing.assert_close(exported[f"{name}.weight"], base[f"{name}.weight"] + scale * high @ low)
    changed = {key for key in exported if not torch.equal(exported[key], base[key])}
    assert changed == {key for key in exported if "q_proj.weight" in key or key == f"{name}.weight"}
    assert report_of(tmp_path / "out")["merge_relative_difference"] < 1e-4  # type: ignore[operator]


def test_adapters_are_not_averaged(adapter_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the mean of adapters is not the adapter of the mean"):
        run(recipe(adapter_run, tmp_path / "out", checkpoint="average", num_averaged=2))


def write_evaluation(folder: Path, weights: Path, wer: float) -> Path:
    score = dict.fromkeys(
        ("num_failed", "num_truncated", "num_loops", "num_empty_hypotheses", "num_empty_references", "deletions"), 0
    ) | {
        "test_set": "eval-d1",
        "bucket": "all",
        "profile": "ivrit",
        "num_utterances": 200,
        "audio_seconds": 900.0,
        "num_words": 2000,
        "num_words_over_empty_references": 0,
        "substitutions": 246,
        "insertions": 0,
        "wer": wer,
        "num_characters": 9000,
        "character_errors": 495,
        "cer": 0.055,
    }
    write_json(folder / "scores.json", {"scores": [score]})
    files = {"model.safetensors": sha256_of_file(weights)}
    write_json(folder / "run.json", {"model": "somewhere", "settings": {"model_files_sha256": files}})
    return folder


def card_of(output: Path) -> str:
    return (output / "hf" / "README.md").read_text(encoding="utf-8")


def test_the_card_shows_numbers_measured_on_these_weights(made: Path, tmp_path: Path) -> None:
    evaluation = write_evaluation(tmp_path / "eval", made / "checkpoint-200" / "model.safetensors", wer=0.123)

    run(recipe(made, tmp_path / "out", evaluation=evaluation))

    card = card_of(tmp_path / "out")
    assert "| eval-d1 | 200 | 2,000 | 12.30% | 5.50% | 0 | 0 |" in card
    assert sha256_of_file(evaluation / "scores.json")[:16] in card
    assert "unverified" not in card


def test_numbers_of_other_weights_are_marked_unverified(made: Path, tmp_path: Path) -> None:
    evaluation = write_evaluation(tmp_path / "eval", made / "checkpoint-300" / "model.safetensors", wer=0.123)

    run(recipe(made, tmp_path / "out", evaluation=evaluation))

    assert "**unverified**" in card_of(tmp_path / "out")
    assert "an evaluation of other weights (somewhere)" in card_of(tmp_path / "out")


def test_an_average_has_no_number_of_its_parts(made: Path, tmp_path: Path) -> None:
    evaluation = write_evaluation(tmp_path / "eval", made / "checkpoint-200" / "model.safetensors", wer=0.123)

    run(recipe(made, tmp_path / "out", evaluation=evaluation, checkpoint="average", num_averaged=2))

    assert "**unverified**" in card_of(tmp_path / "out")


def test_without_an_evaluation_the_card_claims_nothing(made: Path, exported: Path) -> None:
    assert "nothing is claimed about its error rate" in card_of(exported)
    assert str(made.parent) not in card_of(exported), "no path of this machine is published"


def test_the_same_command_again_uses_the_finished_export(
    made: Path, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (exported / "hf" / "model.safetensors").stat().st_mtime_ns

    assert run(recipe(made, exported, layout="both")) == 0

    assert (exported / "hf" / "model.safetensors").stat().st_mtime_ns == before
    assert "holds this export already" in capsys.readouterr().out


def test_an_output_with_something_else_is_left_alone(made: Path, exported: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds another export \(dtype"):
        run(recipe(made, exported, layout="both", dtype="bfloat16"))
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="is no export"):
        run(recipe(made, tmp_path / "mine"))
    shutil.copytree(exported, tmp_path / "edited")
    with (tmp_path / "edited" / "hf" / "README.md").open("a") as file:
        file.write("edited")
    with pytest.raises(ValueError, match=r"README\.md is not as it was exported"):
        run(recipe(made, tmp_path / "edited", layout="both"))


def test_two_exports_have_the_same_bytes(made: Path, exported: Path, tmp_path: Path) -> None:
    run(recipe(made, tmp_path / "again", layout="both"))

    assert report_of(tmp_path / "again") == report_of(exported)


def test_a_dry_run_lists_what_would_be_uploaded(made: Path, exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"push_to_hub": True, "hub_model_id": "someone/model", "dry_run": True, "layout": "both"}

    assert run(recipe(made, exported, **options)) == 0

    out = capsys.readouterr().out
    size = (exported / "hf" / "model.safetensors").stat().st_size
    assert "to someone/model-hf (private)" in out
    assert "to someone/model (private)" in out
    assert f"{size:15,}  model.safetensors" in out
    assert "export_report.json" not in out


def test_the_command_to_try_again_is_this_request() -> None:
    section = Export(run_dir=Path("my run"), hub_model_id="a/b", push_to_hub=True, average_weights=(1.0, 2.0, 3.0))

    command = retry_command(section)

    flags = cli.parse("export", shlex.split(command)[2:]).export
    assert flags == section


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"push_to_hub": True}, r"needs export\.hub_model_id"),
        ({"dry_run": True}, "give both"),
        ({"average_weights": (1.0, 2.0)}, "has 2 weights for num_averaged=3"),
        ({"checkpoint": "best-ever"}, "should match pattern"),
    ],
)
def test_options_that_do_not_go_together_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Export.model_validate(fields)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--run-dir", "/nowhere"], "run folder /nowhere does not exist"),
        (["--hub-model-id", "no-owner"], "expected OWNER/NAME"),
        (["--checkpoint", "250"], "has no checkpoint of step 250; steps there: 100, 200, 300"),
        (["--checkpoint", "final"], "has no final model"),
        (["--clip", "/nowhere.wav"], "the clip cannot be read"),
    ],
)
def test_a_wrong_request_is_one_line_and_exit_code_2(
    flags: list[str], message: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["export", "--run-dir", str(made), "--output", str(tmp_path / "out"), *flags]

    assert cli.main(given) == 2

    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1
    assert message in errors[0]


def test_the_final_model_is_exported_when_it_is_the_checkpoint_it_claims(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made.parent, tmp_path / "copy")
    run_dir = tmp_path / "copy" / "round2"
    model, processor = load_asr(run_dir / "checkpoint-300")
    save_asr(model, processor, run_dir)
    content = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
    write_json(run_dir / "run.json", content | {"final_step": 300})

    assert run(recipe(run_dir, tmp_path / "out", checkpoint="final")) == 0
    write_json(run_dir / "run.json", content | {"final_step": 200})
    with pytest.raises(ValueError, match="is not that of checkpoint-200"):
        run(recipe(run_dir, tmp_path / "out2", checkpoint="final"))


def test_the_published_files_are_written_back_as_they_were(tmp_path: Path) -> None:
    if not ASSETS.is_dir():
        pytest.skip(f"the published configuration is not at {ASSETS}")
    from transformers import Qwen2Tokenizer

    from caspi.model.checkpoints.export_layouts import original_config, save_tokenizer_files, token_ids
    from caspi.model.checkpoints.original_layout import config_from_original

    class Processor:
        tokenizer = Qwen2Tokenizer.from_pretrained(ASSETS)

    published = json.loads((ASSETS / "config.json").read_text(encoding="utf-8"))
    config = config_from_original(published, (151643, 151645))
    written = original_config(config, token_ids(Processor()), 151643, 151645, "bfloat16", "Hebrew")  # type: ignore[arg-type]
    save_tokenizer_files(Processor(), tmp_path)  # type: ignore[arg-type]

    assert differences(published, written) == ["support_languages"]
    assert (tmp_path / "merges.txt").read_bytes() == (ASSETS / "merges.txt").read_bytes()
    for name in ("vocab.json", "added_tokens.json"):
        ours, theirs = (json.loads((folder / name).read_text(encoding="utf-8")) for folder in (tmp_path, ASSETS))
        assert ours == theirs


def differences(published: dict[str, object], written: dict[str, object]) -> list[str]:
    found = []
    for key, value in written.items():
        if isinstance(value, dict):
            found += differences(published[key], value)  # type: ignore[arg-type]
        elif published.get(key, "absent") != value:
            found.append(key)
    return found


def test_the_ranking_is_that_of_the_guides_command(made: Path) -> None:
    entries = []
    for path in made.glob("checkpoint-*/trainer_state.json"):
        history = json.loads(path.read_text(encoding="utf-8"))["log_history"]
        entries += [(entry["eval_wer"], entry["step"]) for entry in history if "eval_wer" in entry]

    assert rank_checkpoints(made).best[0].step == min(entries)[1] == 200


def test_logits_of_a_clip_are_finite_and_as_long_as_prompt_and_text(made: Path) -> None:
    from caspi.model.checkpoints.weight_proof import clip_logits

    model, processor = load_asr(made / "checkpoint-200")
    clip = np.full(16_000, 0.01, dtype=np.float32)

    short, long = (clip_logits(model, processor, clip, "Hebrew", text) for text in ("", "שלום"))

    added = len(processor.tokenizer("שלום").input_ids)
    assert long.shape[0] == short.shape[0] + added
    assert torch.isfinite(long).all()
