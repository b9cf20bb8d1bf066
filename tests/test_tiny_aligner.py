"""The tiny forced aligner: its lessons do not give the times away, its making is repeatable, the audit can use it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from audit_corpora import write_audit_corpus
from safetensors.torch import load_file

from caspi.cli import main
from caspi.config import AlignerStage, Language, SplicedClips, SyntheticSpeech, TinyAligner
from caspi.model.checkpoints.checkpoint import load_aligner
from caspi.model.tiny import BUILD_FILE, tiny_base
from caspi.model.tiny_aligner import (
    AlignerExample,
    Losses,
    draw_examples,
    encode,
    rebuild_aligner,
    tiny_aligner,
    train_aligner,
    watched_attention,
)
from caspi.model.tiny_aligner_score import measure_set
from caspi.model.tiny_aligner_score import test_sentences as spoken_test_sentences
from caspi.model.tiny_models import build_tiny_aligner
from caspi.model.training.batch import Encoder
from caspi.records import sha256_of_file
from caspi.speech.synthetic.spliced import SplicedClip, WordBank
from caspi.speech.synthetic.synth import SyntheticUtterance, lexicon

HEBREW, SPEECH = Language(), SyntheticSpeech()
SHORT = TinyAligner(
    num_sentences=12,
    num_clips=16,
    batch_size=4,
    warmup_steps=2,
    stages=tuple(AlignerStage(max_words=words, num_steps=3, complete_fraction=0.3) for words in (3, 5)),
)
MAX_SHIPPED_MIB = 3
WORDS = lexicon(8)


def made_sentence(number: int) -> SyntheticUtterance:
    """Eight words of 0.3 s each, back to back after 0.2 s; word k sounds as a constant of (k + 1) / 10."""
    samples = np.zeros(round(2.8 * 16_000), dtype=np.float32)
    times = tuple((0.2 + 0.3 * k, 0.5 + 0.3 * k) for k in range(8))
    for k, (start, end) in enumerate(times):
        samples[round(start * 16_000) : round(end * 16_000)] = (k + 1) / 10
    return SyntheticUtterance(
        f"s{number}", WORDS, " ".join(WORDS), samples, times, "kan_clean", f"speaker-{number % 2}", "train", "made"
    )


def drawn(count: int, complete_fraction: float, **changes: Any) -> list[SplicedClip]:
    settings = SplicedClips(level_spread_db=1e-9, **changes)
    bank = WordBank([made_sentence(i) for i in range(4)], lexicon(12), settings)
    rng = np.random.default_rng(1)
    return [bank.draw(int(rng.integers(2, 7)), complete_fraction, rng) for _ in range(count)]


@pytest.mark.parametrize("sentence_fraction", [0.0, 1.0], ids=["spliced", "a stretch of a sentence"])
def test_every_word_sounds_where_the_clip_says(sentence_fraction: float) -> None:
    for clip in drawn(40, 1.0, sentence_fraction=sentence_fraction, foreign_fraction=0.0):
        assert clip.words == clip.spoken
        for word, times in zip(clip.words, clip.times, strict=True):
            assert times is not None
            middle = clip.samples[round(sum(times) / 2 * 16_000)]
            assert middle == pytest.approx((WORDS.index(word) + 1) / 10, abs=1e-3)


def test_a_transcript_is_a_part_of_what_is_spoken_in_order_and_foreign_words_have_no_time() -> None:
    clips = drawn(300, 0.3)
    num_partial = num_foreign = 0
    for clip in clips:
        own = [(word, times) for word, times in zip(clip.words, clip.times, strict=True) if times is not None]
        starts = [times[0] for _, times in own]
        assert starts == sorted(starts)
        assert all(0 <= start < end <= len(clip.samples) / 16_000 + 1e-6 for _, (start, end) in own)
        heard = iter(clip.spoken)
        assert all(word in heard for word, _ in own)
        foreign = {word for word, times in zip(clip.words, clip.times, strict=True) if times is None}
        assert not foreign & set(clip.spoken)
        num_partial += len(own) < len(clip.spoken)
        num_foreign += bool(foreign)
    assert 0.5 <= num_partial / len(clips) <= 0.75
    assert 0.2 <= num_foreign / len(clips) <= 0.4


def test_neither_place_nor_letters_give_the_times_away() -> None:
    """The k-th word of a clip begins anywhere within more than a second, and its speed varies by more than a tenth."""
    clips = drawn(400, 0.3)
    seconds = [clip.times[1][0] for clip in clips if len(clip.times) > 1 and clip.times[1] is not None]
    assert np.quantile(seconds, 0.9) - np.quantile(seconds, 0.1) > 1
    lengths = [times[1] - times[0] for clip in clips for times in clip.times if times is not None]
    assert np.std(lengths) / np.mean(lengths) > 0.1


def test_lessons_have_the_prompt_of_the_processor() -> None:
    _, processor = build_tiny_aligner()
    encoder = Encoder(processor, "Hebrew")
    clip = SplicedClip(
        np.sin(np.arange(21_000) * 0.05).astype(np.float32), WORDS[:3], ((0.1, 0.3), None, (0.4, 0.8)), WORDS[:4]
    )
    example = encode(clip, encoder)
    inputs, _ = processor.prepare_forced_aligner_inputs(audio=clip.samples, transcript=" ".join(clip.words))
    assert list(example.input_ids) == inputs["input_ids"][0].tolist()
    assert example.boundaries.tolist() == pytest.approx([1.25, 3.75, np.nan, np.nan, 5, 10], nan_ok=True)
    assert len(example.spoken_ids) == 4
    features = inputs["input_features"][0]
    torch.testing.assert_close(example.features, features[:, : example.features.shape[1]])


def lesson(num_audio_tokens: int, boundaries: list[float]) -> AlignerExample:
    ids = (1, *[2] * num_audio_tokens, 3, *[4] * len(boundaries))
    return AlignerExample(torch.zeros(40, 1), ids, torch.tensor(boundaries), (), num_audio_tokens)


def test_a_head_that_looks_at_its_word_has_no_loss_and_one_that_looks_elsewhere_has() -> None:
    """A word from 0.5 to 1 s of 26 frames of 1/13 s: its frames are 6 to 12, one in 26 looks everywhere alike."""
    model, processor = build_tiny_aligner()
    caught: dict[str, torch.Tensor] = {}
    losses = Losses(model, Encoder(processor, "Hebrew"), caught, SHORT)
    example = lesson(26, [6.25, 12.5])
    is_slot = torch.tensor([[False] * 28 + [True] * 2])
    own = torch.zeros(1, 3, 30, 30)
    own[0, :, 28:, 1 + 8] = 1
    other = torch.zeros(1, 3, 30, 30)
    other[0, :, 28:, 1 + 20] = 1
    found = []
    for weights in (own, other, torch.full((1, 3, 30, 30), 1 / 30)):
        caught["weights"] = weights
        found.append(losses.looking(is_slot, [example]).item())
    assert found[0] == pytest.approx(0, abs=1e-3)
    assert found[1] == pytest.approx(-np.log(1e-4), rel=1e-3)
    assert found[2] == pytest.approx(-np.log(8 / 30), rel=0.15)


def test_the_boundary_loss_is_least_where_the_head_is_right_and_flat_for_words_that_nobody_speaks() -> None:
    model, processor = build_tiny_aligner()
    losses = Losses(model, Encoder(processor, "Hebrew"), {}, SHORT)
    classes, inside = torch.arange(200.0), 26  # classes 0 to 25 lie in 26 frames of 1/13 s, which last 2 s
    logits = {}
    for name, place in (("right", 5), ("wrong", 15)):
        flat = torch.full((2, 200), -20.0)
        flat[:, :inside] = 0.0 if name == "right" else torch.linspace(0, 8, inside)
        logits[name] = torch.cat([(-(classes - place).square() / 2).clamp(min=-20).repeat(2, 1), flat])
    found = {}
    for name, values in logits.items():
        model.score = torch.nn.Identity()  # type: ignore[assignment]
        present, absent = losses.boundaries(values, [lesson(26, [5, 5, np.nan, np.nan])])
        found[name] = present.item(), absent.item()
    bell = np.exp(-(np.arange(-2, 3) ** 2) / 2)
    entropy = -(bell / bell.sum() * np.log(bell / bell.sum())).sum()
    assert found["right"][0] == pytest.approx(entropy, abs=0.15)
    assert found["right"][1] == pytest.approx(np.log(inside), abs=0.01)
    assert found["wrong"][0] > found["right"][0] + 5
    assert found["wrong"][1] > found["right"][1] + 1


@pytest.mark.espeak
def test_the_first_steps_of_a_rebuild_are_the_same_in_two_runs_and_leave_the_model_as_it_was_loaded() -> None:
    messages: list[str] = []
    (first, _), (second, _) = (train_aligner(SHORT, SPEECH, HEBREW, messages.append) for _ in range(2))
    states = first.state_dict(), second.state_dict()
    assert [name for name in states[0] if not torch.equal(states[0][name], states[1][name])] == []
    assert not torch.equal(states[0]["score.weight"], build_tiny_aligner(SHORT.seed)[0].state_dict()["score.weight"])
    language_model = first.model.language_model
    assert not language_model.layers[SHORT.attention_layer].self_attn._forward_hooks
    assert (
        language_model.config._attn_implementation
        == build_tiny_aligner()[0].model.language_model.config._attn_implementation
    )
    assert any("stage 2" in message for message in messages)


def test_attention_is_watched_only_inside_the_block() -> None:
    model, _ = build_tiny_aligner()
    ids = torch.tensor([[5, 6, 7]])
    with watched_attention(model, 1) as caught, torch.no_grad():
        model.model.language_model(input_ids=ids)
    assert caught["weights"].shape == (1, 3, 3, 3)
    assert caught["weights"].sum(dim=-1).allclose(torch.ones(()))
    before = caught["weights"]
    model.model.language_model(input_ids=ids[:, :2])
    assert caught["weights"] is before


def test_the_shipped_aligner_says_how_it_was_made() -> None:
    record = json.loads((tiny_aligner() / BUILD_FILE).read_text(encoding="utf-8"))
    assert TinyAligner.model_validate(record["settings"]) == TinyAligner()
    assert record["base_sha256"] == sha256_of_file(tiny_base() / "model.safetensors")
    assert sum(path.stat().st_size for path in tiny_aligner().iterdir()) < MAX_SHIPPED_MIB * 2**20
    values = record["measured"]["held-out sentences"]
    assert values["boundaries_within_160_ms"] >= 0.80
    assert values["auc_lower_bound"] >= 0.80
    assert values["separable_mass"] >= 0.5


@pytest.mark.espeak
def test_the_shipped_aligner_finds_words_and_tells_decoys_apart_on_sentences_that_nobody_has_measured() -> None:
    settings = TinyAligner(seed=977, num_test_utterances=40)
    found = measure_set(tiny_aligner(), spoken_test_sentences("test", settings, SPEECH, HEBREW, False), settings)
    assert found["boundaries_within_160_ms"] >= 0.75
    assert found["auc_lower_bound"] >= 0.80
    assert found["separable_mass"] >= 0.5


def audit_with_shipped_aligner(
    folder: Path, defects: float, num_utterances: int, num_controls: int
) -> tuple[int, dict[str, Any]]:
    """Exit code and report of `caspi audit` on clean speech of the words that the aligner knows."""
    manifest = write_audit_corpus(
        folder / "corpus", num_utterances, defects, 51, {"kan_clean": 1.0}, vocabulary_size=40, num_words=(4, 8)
    )
    flags = ["--manifest", str(manifest), "--output", str(folder / "audit")]
    flags += ["--backend", "qwen", "--aligner-model", str(tiny_aligner()), "--num-processes", "1"]
    flags += ["--embed-audio", "none", "--sample-rate", "1.0", "--calibration.num-self-test-sentences", "0"]
    flags += ["--calibration.num-control-utterances", str(num_controls)]
    flags += ["--calibration.num-dose-utterances", str(num_controls)]
    code = main(["audit", *flags])
    return code, json.loads((folder / "audit" / "alignment_report.json").read_text(encoding="utf-8"))


@pytest.mark.espeak
@pytest.mark.parametrize(
    ("defects", "code", "decisions"),
    [pytest.param(0.0, 0, ("PROCEED", "CAUTION"), marks=pytest.mark.slow), (0.4, 1, ("STOP",))],
    ids=["nothing planted", "forty percent planted"],
)
def test_the_qwen_backend_gives_a_valid_audit_and_the_right_decision(
    defects: float, code: int, decisions: tuple[str, ...], tmp_path: Path
) -> None:
    found, report = audit_with_shipped_aligner(tmp_path, defects, 60, 0)
    assert report["audit_valid"]
    assert report["provenance"]["backend"] == "qwen"
    assert (found, report["decision"] in decisions) == (code, True)
    assert report["calibration"]["separable_mass"] >= 0.5
    assert abs(report["low_quality_percentage"] - 100 * defects) <= 12


@pytest.mark.slow
@pytest.mark.espeak
def test_good_data_get_proceed_from_the_qwen_backend_with_all_its_controls(tmp_path: Path) -> None:
    code, report = audit_with_shipped_aligner(tmp_path, 0.0, 200, 60)
    assert [check for check in report["calibration"]["checks"] if not check["passed"]] == []
    assert (code, report["decision"], report["audit_status"]) == (0, "PROCEED", "valid")


@pytest.mark.slow
@pytest.mark.espeak
@pytest.mark.timeout(7200)
def test_rebuilding_gives_the_shipped_aligner(tmp_path: Path) -> None:
    record = json.loads((tiny_aligner() / BUILD_FILE).read_text(encoding="utf-8"))
    measured = rebuild_aligner(tmp_path)
    shipped, rebuilt = (load_file(folder / "model.safetensors") for folder in (tiny_aligner(), tmp_path))
    assert shipped.keys() == rebuilt.keys()
    for name, values in measured.items():
        assert values == pytest.approx(record["measured"][name], abs=0.05)
    for name, tensor in shipped.items():
        torch.testing.assert_close(rebuilt[name], tensor, atol=1e-3, rtol=1e-2)
    assert load_aligner(tmp_path)[1].tokenizer.get_vocab() == load_aligner(tiny_aligner())[1].tokenizer.get_vocab()


def test_a_stage_has_the_clips_it_asks_for() -> None:
    bank = WordBank([made_sentence(0)], lexicon(12), SHORT.clips)
    encoder = Encoder(build_tiny_aligner()[1], "Hebrew")
    examples = draw_examples(bank, encoder, SHORT.stages[0], SHORT, 0)
    assert len(examples) == SHORT.num_clips
    assert {len(example.spoken_ids) for example in examples} == {2, 3}
