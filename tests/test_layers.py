"""Layer groups are closed sets, counted from the model's configuration."""

from collections import Counter
from typing import Any, cast

import pytest
import torch

from caspi.model.tiny import build_tiny_asr
from caspi.model.training.layers import (
    GROUPS,
    assign_groups,
    check_closed,
    check_group_names,
    group_of,
    group_table,
    is_head_tied,
    train_only,
)

NUM_LLM_LAYERS = NUM_AUDIO_LAYERS = 3


@pytest.fixture(scope="module")
def model() -> Any:
    return build_tiny_asr()[0]


def test_every_parameter_is_in_exactly_one_group_and_no_group_is_empty(model: Any) -> None:
    assigned = assign_groups(model, 2, 1)
    assert assigned.keys() == {name for name, _ in model.named_parameters()}
    assert set(assigned.values()) == {*GROUPS, "frozen"}


def test_the_sizes_of_the_groups_are_those_counted_by_hand(model: Any) -> None:
    text = model.config.text_config
    vocabulary, width, head_dim, heads = text.vocab_size, text.hidden_size, text.head_dim, text.num_attention_heads
    assert text.num_key_value_heads == 1
    assert model.config.audio_config.d_model == model.config.audio_config.output_dim == width
    llm_layer = (
        width * heads * head_dim * 2  # query, output
        + width * head_dim * 2  # one key and value head
        + 2 * head_dim  # norms of query and key
        + 3 * width * model.config.text_config.intermediate_size
        + 2 * width  # norms
    )
    ffn = model.config.audio_config.encoder_ffn_dim
    audio_layer = 4 * (width * width + width) + 2 * (2 * width) + width * ffn + ffn + ffn * width + width
    rows = {row.name: row for row in group_table(model, assign_groups(model, 2, 1), {"projector": 1e-4})}
    assert rows["llm_top"].num_parameters == 2 * llm_layer
    assert rows["audio_top"].num_parameters == audio_layer
    assert rows["projector"].num_parameters == 2 * (width * width + width)
    assert rows["lm_head"].num_parameters == vocabulary * width
    assert sum(row.num_parameters for row in rows.values()) == sum(p.numel() for p in model.parameters())
    assert rows["projector"].learning_rate == 1e-4
    assert rows["llm_top"].learning_rate is None


def test_the_top_layers_are_the_last_ones_without_the_norms_that_follow(model: Any) -> None:
    assigned = assign_groups(model, 1, 1)
    assert assigned[f"model.language_model.layers.{NUM_LLM_LAYERS - 1}.mlp.up_proj.weight"] == "llm_top"
    assert assigned["model.language_model.layers.0.mlp.up_proj.weight"] == "frozen"
    assert assigned[f"model.audio_tower.layers.{NUM_AUDIO_LAYERS - 1}.fc1.weight"] == "audio_top"
    assert assigned["model.audio_tower.layers.0.fc1.weight"] == "frozen"
    assert assigned["model.audio_tower.ln_post.weight"] == assigned["model.language_model.norm.weight"] == "frozen"


def test_the_lm_head_is_the_embedding_matrix_of_a_tied_model(model: Any) -> None:
    assigned = assign_groups(model, 1, 1)
    assert is_head_tied(model)
    assert [name for name, group in assigned.items() if group == "lm_head"] == [
        "model.language_model.embed_tokens.weight"
    ]


@pytest.mark.parametrize(("llm", "audio"), [(NUM_LLM_LAYERS + 1, 1), (1, NUM_AUDIO_LAYERS + 1), (0, 1), (1, 0)])
def test_more_or_fewer_layers_than_the_model_has_are_refused(model: Any, llm: int, audio: int) -> None:
    with pytest.raises(ValueError, match=r"num_(llm|audio)_top_layers is \d+"):
        assign_groups(model, llm, audio)


def test_an_empty_group_is_refused(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caspi.model.training.layers.PROJECTOR", "model.renamed_projector.")
    with pytest.raises(ValueError, match="projector is empty"):
        assign_groups(model, 1, 1)


def test_overlapping_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="two layer groups: a and b"):
        group_of("model.layers.3.weight", {"a": ["model."], "b": ["model.layers.3."]})


def test_layer_1_does_not_claim_layer_11() -> None:
    assert group_of("layers.11.weight", {"top": ["layers.1."]}) == "frozen"


def test_an_unknown_group_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown layer group encoder"):
        check_group_names(["projector", "encoder"])


def test_exactly_the_groups_of_the_stage_train_and_earlier_choices_are_undone() -> None:
    model, _ = build_tiny_asr()
    assigned = assign_groups(model, 1, 1)
    train_only(model, assigned, ["projector", "audio_top"])
    train_only(model, assigned, ["llm_top"])
    trainable = Counter(assigned[name] for name, p in model.named_parameters() if p.requires_grad)
    assert set(trainable) == {"llm_top"}
    assert trainable["llm_top"] == sum(group == "llm_top" for group in assigned.values())


def test_a_trainable_parameter_in_no_group_of_the_stage_is_refused() -> None:
    model, _ = build_tiny_asr()
    assigned = assign_groups(model, 1, 1)
    train_only(model, assigned, ["projector"])
    model.model.audio_tower.ln_post.weight.requires_grad_(True)
    with pytest.raises(ValueError, match=r"ln_post\.weight would train"):
        check_closed(model, assigned, ["projector"])


def test_trainable_parameters_are_float32_and_frozen_ones_keep_their_precision() -> None:
    model, _ = build_tiny_asr()
    cast(Any, model).to(torch.bfloat16)
    assigned = assign_groups(model, 1, 1)
    train_only(model, assigned, ["llm_top", "lm_head"])
    kinds = {(assigned[name] in ("llm_top", "lm_head"), p.dtype) for name, p in model.named_parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
