"""The tiny models are real ones, their making is repeatable, and the shipped one transcribes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from caspi.config import Language, SyntheticSpeech, TinyBase
from caspi.model.checkpoints.checkpoint import load_asr
from caspi.model.tiny import (
    BUILD_FILE,
    build_tiny_aligner,
    build_tiny_asr,
    named_words,
    rebuild_base,
    tiny_base,
    train_base,
    word_error_rate,
)
from caspi.model.tiny_models import NUM_KNOWN_WORDS, PLAIN_TOKENS, SPECIAL_TOKENS
from caspi.model.training.batch import Encoder
from caspi.speech.synthetic.synth import lexicon
from caspi.speech.synthetic.synth_corpus import plan_test_sets

HEBREW, SPEECH = Language(), SyntheticSpeech()
SHORT = TinyBase(num_utterances=48, batch_size=4, num_encoder_steps=10, num_steps=10, warmup_steps=2)
MAX_SHIPPED_MIB = 3


def test_frequent_words_are_one_token_with_and_without_the_blank() -> None:
    tokenizer = build_tiny_asr()[1].tokenizer
    words = lexicon(NUM_KNOWN_WORDS)
    assert {len(tokenizer.encode(blank + word)) for word in words for blank in ("", " ")} == {1}


def test_any_text_survives_the_tokenizer() -> None:
    tokenizer = build_tiny_asr()[1].tokenizer
    for text in ("שלום עולם", 'צה"ל ב-2024, "כן"!', "mixed English ועברית", " ".join(lexicon()[-20:])):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_tokens_are_those_of_the_published_model() -> None:
    tokenizer = build_tiny_asr()[1].tokenizer
    ids = [tokenizer.encode(token) for token in (*SPECIAL_TOKENS, *PLAIN_TOKENS)]
    assert {len(one) for one in ids} == {1}
    assert (
        tokenizer.decode([token for one in ids for token in one], skip_special_tokens=True) == "<asr_text><timestamp>"
    )
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    first, second, other = (build_tiny_asr(seed)[0].state_dict() for seed in (3, 3, 4))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_the_tiny_aligner_runs_the_processors_own_alignment() -> None:
    aligner, processor = build_tiny_aligner()
    texts = ["שלום ילדה", "מים"]
    audios = [np.sin(np.arange(samples) * 0.05).astype(np.float32) for samples in (20000, 9000)]
    inputs, words = processor.prepare_forced_aligner_inputs(audio=audios, transcript=texts)
    slots = (inputs["input_ids"] == aligner.config.timestamp_token_id).sum(dim=1)
    assert words == [text.split() for text in texts]
    assert slots.tolist() == [4, 2]
    with torch.no_grad():
        logits = aligner(**inputs).logits
    items = processor.decode_forced_alignment(logits, inputs["input_ids"], words, aligner.config.timestamp_token_id)
    assert [[item["text"] for item in one] for one in items] == words


def test_frames_that_name_the_words_have_a_lower_encoder_loss_than_frames_in_another_order() -> None:
    model, processor = build_tiny_asr()
    encoder = Encoder(processor, "Hebrew")
    example = encoder.encode(np.zeros(16000, dtype=np.float32), "מים לבן")
    frames = encoder.num_audio_tokens(example.features.shape[1])
    tokens = encoder.token_ids(" מים לבן")
    embeddings = 20 * torch.nn.functional.normalize(model.lm_head.weight, dim=1).detach()

    def loss(order: list[int]) -> float:
        named = [encoder.pad_id] * frames
        named[3], named[7] = order
        return named_words(model, encoder, 10 * embeddings[named], [example]).item()

    assert loss(tokens) < 0.1 * loss(tokens[::-1])


def test_the_first_steps_of_a_rebuild_are_the_same_in_two_runs() -> None:
    pytest.importorskip("espeakng_loader", reason="the speech engine is not installed (extra demo)")
    messages: list[str] = []
    first, second = (train_base(SHORT, SPEECH, HEBREW, messages.append)[0].state_dict() for _ in range(2))
    untrained = build_tiny_asr(SHORT.seed)[0].state_dict()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert not torch.equal(first["lm_head.weight"], untrained["lm_head.weight"])
    assert messages


def test_the_shipped_base_says_how_it_was_made() -> None:
    record = json.loads((tiny_base() / BUILD_FILE).read_text(encoding="utf-8"))
    assert TinyBase.model_validate(record["settings"]) == TinyBase()
    assert sum(path.stat().st_size for path in tiny_base().iterdir()) < MAX_SHIPPED_MIB * 2**20
    assert "lm_head.weight" not in load_file(tiny_base() / "model.safetensors")
    assert load_asr(tiny_base())[1].tokenizer.get_vocab() == build_tiny_asr()[1].tokenizer.get_vocab()


def test_the_shipped_base_transcribes_clean_speech_and_fails_on_noisy_speech() -> None:
    pytest.importorskip("espeakng_loader", reason="the speech engine is not installed (extra demo)")
    model, processor = load_asr(tiny_base())
    sets = plan_test_sets(40, seed=977, vocabulary_size=TinyBase().vocabulary_size)
    found = {name: word_error_rate(model, processor, plans, SPEECH, HEBREW) for name, plans in sets.items()}
    noisy = found.pop("eval-whatsapp")
    assert max(found.values()) < 0.2, found
    assert noisy > max(0.3, 2 * max(found.values())), (noisy, found)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_rebuilding_gives_the_shipped_base(tmp_path: Path) -> None:
    pytest.importorskip("espeakng_loader", reason="the speech engine is not installed (extra demo)")
    record = json.loads((tiny_base() / BUILD_FILE).read_text(encoding="utf-8"))
    measured = rebuild_base(tmp_path)
    shipped, rebuilt = (load_file(folder / "model.safetensors") for folder in (tiny_base(), tmp_path))
    assert shipped.keys() == rebuilt.keys()
    for name, value in measured.items():
        assert value == pytest.approx(record["wer"][name], abs=0.05)
    for name, tensor in shipped.items():
        torch.testing.assert_close(rebuilt[name], tensor, atol=1e-3, rtol=1e-2)
