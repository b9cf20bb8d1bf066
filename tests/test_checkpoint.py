"""Checkpoints load exactly or not at all, in both layouts."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3ASRForConditionalGeneration, Qwen3ASRProcessor

from caspi.model.checkpoints.checkpoint import end_token_ids, forced_prefix, load_aligner, load_asr, save_asr
from caspi.model.checkpoints.original_layout import config_from_original, processor_parts
from caspi.model.tiny import build_tiny_aligner, build_tiny_asr

ASSETS = Path(__file__).parents[2] / "shared" / "assets" / "qwen3-asr"
needs_assets = pytest.mark.skipif(not ASSETS.is_dir(), reason=f"the published model's configuration is not at {ASSETS}")


@pytest.fixture(scope="module")
def tiny() -> tuple[Qwen3ASRForConditionalGeneration, Qwen3ASRProcessor]:
    return build_tiny_asr(seed=1)


@pytest.fixture
def saved(tiny: Any, tmp_path: Path) -> Path:
    model, processor = tiny
    save_asr(model, processor, tmp_path / "hf")
    return tmp_path / "hf"


@pytest.fixture
def original(saved: Path, tmp_path: Path) -> Path:
    return write_original(saved, tmp_path / "original")


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def published_name(name: str) -> str:
    """The tensor's name in QwenLM's own repository."""
    renamed = {"lm_head.weight": "thinker.lm_head.weight", "score.weight": "thinker.lm_head.weight"}
    for ours, theirs in (
        ("model.language_model.", "thinker.model."),
        ("model.multi_modal_projector.linear_1.", "thinker.audio_tower.proj1."),
        ("model.multi_modal_projector.linear_2.", "thinker.audio_tower.proj2."),
        ("model.audio_tower.", "thinker.audio_tower."),
    ):
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return renamed[name]


def write_original(hf: Path, folder: Path) -> Path:
    """Rewrite a saved tiny checkpoint as QwenLM publishes theirs: other names, other config, no tokenizer.json."""
    folder.mkdir()
    config = read(hf / "config.json")
    tensors = {published_name(name): tensor for name, tensor in load_file(hf / "model.safetensors").items()}
    if config["tie_word_embeddings"]:
        tensors["thinker.lm_head.weight"] = tensors["thinker.model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    text = config["text_config"] | {"model_type": "qwen3_asr_text", "rope_theta": 1000000}
    text["rope_scaling"] = {"mrope_section": [6, 5, 5], "mrope_interleaved": True, "rope_type": "default"}
    text["tie_word_embeddings"] = config["tie_word_embeddings"]
    del text["rope_parameters"]
    audio = config["audio_config"] | {"model_type": "qwen3_asr_audio_encoder", "max_source_positions": 1500}
    del audio["max_position_embeddings"]
    thinker = {"audio_config": audio, "text_config": text, "audio_token_id": config["audio_token_id"]}
    if "score.weight" in load_file(hf / "model.safetensors"):
        thinker["classify_num"] = len(config["id2label"])
    published = {
        "model_type": "qwen3_asr",
        "thinker_config": thinker,
        "timestamp_token_id": config["timestamp_token_id"],
    }
    (folder / "config.json").write_text(json.dumps(published))
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 40, "n_fft": 400})
    )
    write_published_tokenizer(read(hf / "tokenizer.json"), folder)
    return folder


def write_published_tokenizer(tokenizer: dict[str, Any], folder: Path) -> None:
    (folder / "vocab.json").write_text(json.dumps(tokenizer["model"]["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in tokenizer["model"]["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    roles = {
        "audio_token": "<|audio_pad|>",
        "audio_bos_token": "<|audio_start|>",
        "audio_eos_token": "<|audio_end|>",
    }
    keys = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    added = {str(token["id"]): {key: token[key] for key in keys} for token in tokenizer["added_tokens"]}
    values = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(values | {"extra_special_tokens": roles, "added_tokens_decoder": added, "processor_class": "X"})
    )


def request(processor: Qwen3ASRProcessor) -> Any:
    audio = np.sin(np.arange(24000) * 0.1).astype(np.float32)
    messages: Any = [{"role": "user", "content": [{"type": "audio", "audio": audio}]}]
    return processor.apply_chat_template(
        [messages],
        tokenize=True,
        return_dict=True,
        add_generation_prompt=True,
        forced_language="Hebrew",
        processor_kwargs={"sampling_rate": 16000},
    )


def assert_equal_tensors(left: torch.nn.Module, right: torch.nn.Module) -> None:
    ours, theirs = left.state_dict(), right.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_a_saved_checkpoint_loads_bit_equal(tiny: Any, saved: Path) -> None:
    model, processor = load_asr(saved)
    assert_equal_tensors(tiny[0], model)
    assert processor.chat_template == tiny[1].chat_template
    assert processor.tokenizer.get_vocab() == tiny[1].tokenizer.get_vocab()
    assert torch.equal(model(**request(processor)).logits, tiny[0](**request(tiny[1])).logits)


def test_a_saved_checkpoint_is_what_vllm_and_transformers_read(saved: Path) -> None:
    names = load_file(saved / "model.safetensors").keys()
    assert "lm_head.weight" not in names
    assert all(name.startswith("model.") for name in names)
    assert "forced_language" in (saved / "chat_template.jinja").read_text()
    generation = read(saved / "generation_config.json")
    added = {token["content"]: token["id"] for token in read(saved / "tokenizer.json")["added_tokens"]}
    assert generation["eos_token_id"] == [added["<|endoftext|>"], added["<|im_end|>"]]
    assert not generation.get("do_sample", False)
    assert not [path.name for path in saved.iterdir() if path.name.startswith(".")]


def test_the_head_stays_tied_to_the_embeddings(saved: Path) -> None:
    model, _ = load_asr(saved)
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight


def test_the_original_layout_loads_bit_equal(tiny: Any, original: Path) -> None:
    model, processor = load_asr(original)
    assert_equal_tensors(tiny[0], model)
    assert processor.tokenizer.get_vocab() == tiny[1].tokenizer.get_vocab()
    theirs, ours = request(processor), request(tiny[1])
    assert torch.equal(theirs["input_ids"], ours["input_ids"])
    assert torch.equal(model(**theirs).logits, tiny[0](**ours).logits)
    assert model.generation_config.eos_token_id == list(end_token_ids(processor.tokenizer))


def test_an_original_checkpoint_saves_in_the_transformers_layout(tiny: Any, original: Path, tmp_path: Path) -> None:
    save_asr(*load_asr(original), tmp_path / "converted")
    model, _ = load_asr(tmp_path / "converted")
    assert_equal_tensors(tiny[0], model)
    assert "thinker_config" not in read(tmp_path / "converted" / "config.json")


def test_the_aligner_loads_bit_equal_from_both_layouts(tmp_path: Path) -> None:
    aligner, processor = build_tiny_aligner(seed=2)
    aligner.save_pretrained(tmp_path / "hf", save_original_format=False)
    processor.save_pretrained(tmp_path / "hf")
    for folder in (tmp_path / "hf", write_original(tmp_path / "hf", tmp_path / "original")):
        loaded, loaded_processor = load_aligner(folder)
        assert_equal_tensors(aligner, loaded)
        assert loaded.config.num_labels == aligner.config.num_labels
        assert loaded.config.timestamp_token_id == processor.tokenizer.get_vocab()["<timestamp>"]
        assert loaded_processor.chat_template == processor.chat_template


@pytest.mark.parametrize("layout", ["saved", "original"])
@pytest.mark.parametrize(
    ("tamper", "told"),
    [
        (lambda name, tensor: (name.replace("layers.0.", "layers.7."), tensor), "missing"),
        (
            lambda name, tensor: (name, tensor[:-1].clone() if name.endswith("ln_post.bias") else tensor),
            "another shape",
        ),
    ],
    ids=["renamed", "cut"],
)
def test_a_tampered_checkpoint_is_refused(layout: str, tamper: Any, told: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(layout)
    tensors = load_file(folder / "model.safetensors")
    save_file(dict(tamper(*item) for item in tensors.items()), folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=told) as refusal:
        load_asr(folder)
    message = str(refusal.value)
    assert "\n" not in message
    assert re.search(r"layers\.0\.|ln_post\.bias", message)
    assert "check that config.json" in message


def test_a_refusal_names_at_most_three_keys(saved: Path) -> None:
    tensors = load_file(saved / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "layers.0" not in name}
    save_file(kept, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"{len(tensors) - len(kept)} missing") as refusal:
        load_asr(saved)
    assert str(refusal.value).count("layers.0") == 3


def test_a_tied_head_that_differs_from_the_embeddings_is_refused(original: Path) -> None:
    tensors = load_file(original / "model.safetensors")
    tensors["thinker.lm_head.weight"] += 1
    save_file(tensors, original / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"tied|lm_head"):
        load_asr(original)


def test_a_pickled_checkpoint_is_refused(saved: Path) -> None:
    (saved / "model.safetensors").rename(saved / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin, which is never unpickled"):
        load_asr(saved)


def test_a_damaged_weight_file_is_refused_in_one_line(saved: Path) -> None:
    data = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="cannot be loaded") as refusal:
        load_asr(saved)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "JSON"),
        ("[]", "JSON object"),
        ('{"model_type": "whisper"}', "whisper"),
        ('{"thinker_config": {}}', "lacks"),
    ],
)
def test_a_config_of_something_else_is_refused(saved: Path, content: str, told: str) -> None:
    (saved / "config.json").write_text(content)
    (saved / "preprocessor_config.json").write_text("{}")
    with pytest.raises(ValueError, match=told):
        load_asr(saved)


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config\.json"):
        load_asr(tmp_path)
    with pytest.raises(ValueError, match="no such folder"):
        load_asr(tmp_path / "absent")


def test_a_hub_id_that_cannot_be_reached_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="neither a folder nor available from the Hub") as refusal:
        load_asr("nobody/nothing-of-this-name")
    assert "\n" not in str(refusal.value)


def test_sharded_checkpoints_load_and_saving_over_them_leaves_no_stale_shard(tiny: Any, saved: Path) -> None:
    tiny[0].save_pretrained(saved, save_original_format=False, max_shard_size="500KB")
    (saved / "model.safetensors").unlink(missing_ok=True)
    assert len(list(saved.glob("model-*.safetensors"))) > 1
    assert_equal_tensors(tiny[0], load_asr(saved)[0])
    save_asr(tiny[0], tiny[1], saved)
    assert [path.name for path in saved.glob("model*")] == ["model.safetensors"]


def test_the_prompt_is_the_one_the_model_was_trained_on(tiny: Any) -> None:
    processor = tiny[1]
    user = [{"role": "user", "content": [{"type": "audio", "audio": "x.wav"}]}]
    context = [{"role": "system", "content": "תל אביב"}]
    head = "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n<|audio_start|><|audio_pad|><|audio_end|><|im_end|>\n"
    options = {"tokenize": False, "add_generation_prompt": True}
    plain = head.format("") + "<|im_start|>assistant\n"
    assert processor.apply_chat_template(user, **options) == plain
    forced = processor.apply_chat_template(context + user, forced_language="Hebrew", **options)
    assert forced == head.format("תל אביב") + "<|im_start|>assistant\n" + forced_prefix("Hebrew")
    answer = [{"role": "assistant", "content": [{"type": "text", "text": "language Hebrew<asr_text>שלום"}]}]
    whole = processor.apply_chat_template(user + answer, tokenize=False)
    assert whole == plain + "language Hebrew<asr_text>שלום<|im_end|>\n"
    continued = processor.apply_chat_template(user + answer, tokenize=False, continue_final_message=True)
    assert continued == plain + "language Hebrew<asr_text>שלום"


@needs_assets
def test_the_published_config_maps_to_the_published_number_of_parameters() -> None:
    config = config_from_original(read(ASSETS / "config.json"), (151643, 151645))
    with torch.device("meta"):
        model = Qwen3ASRForConditionalGeneration(config)
    model.tie_weights()
    assert sum(parameter.numel() for parameter in model.parameters()) == 2_038_052_480
    assert (config.pad_token_id, config.eos_token_id) == (151645, [151643, 151645])
    assert config.to_dict()["text_config"]["rope_parameters"]["rope_theta"] == 1e6


@needs_assets
def test_the_published_tokenizer_gives_the_published_prompt_ids() -> None:
    processor = Qwen3ASRProcessor(*processor_parts(ASSETS, read(ASSETS / "preprocessor_config.json")))
    ids = read(ASSETS / "added_tokens.json")
    assert processor.feature_extractor.feature_size == 128
    assert processor.audio_token_id == ids["<|audio_pad|>"]
    assert end_token_ids(processor.tokenizer) == (ids["<|endoftext|>"], ids["<|im_end|>"])
    encoded = processor.tokenizer.encode(forced_prefix("Hebrew"))
    assert encoded == [*processor.tokenizer.encode("language Hebrew"), ids["<asr_text>"]]
    vocabulary = read(ASSETS / "vocab.json")
    assert encoded[:2] == [vocabulary["language"], vocabulary["ĠHebrew"]]
