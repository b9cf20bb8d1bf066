"""`caspi plan`: counts equal the published model, predictions follow the closed forms, no price is guessed."""

import json
from pathlib import Path

import pytest

from caspi.cli import main
from caspi.model import footprint

STRATEGY_B = {"projector", "llm_top", "lm_head"}
STRATEGY_A = STRATEGY_B | {"audio_top"}


def test_parameters_equal_those_counted_on_the_published_configuration() -> None:
    parts = footprint.parameters(footprint.QWEN3_ASR_1_7B, num_audio_top_layers=8, num_llm_top_layers=12)
    assert sum(parts.values()) == 2_038_052_480
    assert parts["projector"] == 3_148_800
    assert parts["audio_top"] == 100_769_792
    assert parts["llm_top"] == 604_032_000
    assert parts["lm_head"] == 311_164_928


def test_parameters_equal_those_of_the_stock_class_with_other_sizes() -> None:
    import torch
    from transformers import Qwen3ASRConfig, Qwen3ASRForConditionalGeneration

    config = Qwen3ASRConfig(
        audio_config={"num_mel_bins": 40, "encoder_layers": 3, "encoder_attention_heads": 2, "encoder_ffn_dim": 96,
                      "d_model": 64, "downsample_hidden_size": 8, "output_dim": 48},
        text_config={"vocab_size": 300, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 5,
                     "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True},
    )  # fmt: skip
    with torch.device("meta"):
        model = Qwen3ASRForConditionalGeneration(config)
    shape = footprint.Shape(3, 64, 96, 8, 40, 5, 48, 80, 4, 2, 16, 300)
    assert sum(footprint.parameters(shape, 1, 2).values()) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("seconds", "target_tokens", "gflop_b", "gflop_a"),
    [(15, 60, 2179, 2259), (10, 42, 1498, 1552), (4.3, 20, 721, 744)],
)
def test_flops_equal_the_counted_ones(seconds: float, target_tokens: float, gflop_b: int, gflop_a: int) -> None:
    shape = footprint.QWEN3_ASR_1_7B
    assert round(footprint.training_flops(shape, seconds, target_tokens, STRATEGY_B, 8, 12) / 1e9) == gflop_b
    assert round(footprint.training_flops(shape, seconds, target_tokens, STRATEGY_A, 8, 12) / 1e9) == gflop_a


def test_the_guides_run_is_planned_with_its_steps_and_price(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [stage["optimizer_steps"] for stage in result["stages"]] == [2 * 1150, 3 * 1150]
    assert result["usd"]["per_hour"] == 3.98
    assert result["usd"]["total"] == pytest.approx(3.98 * result["hours"]["paid"])
    assert result["fits"]
    assert result["memory_gb"]["peak"] <= 0.95 * 40
    assert "not measured" in result["basis"]


def test_training_every_layer_does_not_fit_a_small_card_and_exits_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "all.toml"
    recipe.write_text("[train]\nnum_llm_top_layers = 28\nnum_audio_top_layers = 24\n")
    assert main(["plan", "--recipe", str(recipe)]) == 1
    assert "does not fit" in capsys.readouterr().out


def test_a_step_that_does_not_fit_at_once_is_planned_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "--json", "--gpu", "A100-40GB"]) == 0
    small = json.loads(capsys.readouterr().out)
    assert main(["plan", "--json", "--gpu", "A100-80GB"]) == 0
    large = json.loads(capsys.readouterr().out)
    longest_share = 32 * (13 * 15 + 4 * 15 + 15)
    assert small["token_budget"] < longest_share < large["token_budget"]
    assert small["memory_gb"]["activations"] < large["memory_gb"]["activations"]


def test_a_known_rate_replaces_the_prediction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "--json", "--mfu-fraction", "0.04"]) == 0
    result = json.loads(capsys.readouterr().out)
    stage = result["stages"][0]
    assert stage["samples_per_second"] == pytest.approx(2 * 312e12 * 0.04 / (stage["gflop_per_sample"] * 1e9))
    assert result["basis"] == "given: 4% of the peak rate"


def test_measuring_rates_without_a_gpu_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert main(["plan", "--measure"]) == 2
    assert "needs a GPU" in capsys.readouterr().err


def test_an_unknown_price_or_gpu_is_one_clear_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--gpu", "L40S-48GB", "--num-gpus", "1"]) == 2
    assert "give --price" in capsys.readouterr().err
    assert main(["plan", "--gpu", "TPU"]) == 2
    assert "known: A100-40GB" in capsys.readouterr().err


def test_a_folder_without_audio_sizes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"audio_config": {}, "text_config": {}}')
    with pytest.raises(ValueError, match="'encoder_layers' is missing"):
        footprint.shape_of(str(tmp_path))
