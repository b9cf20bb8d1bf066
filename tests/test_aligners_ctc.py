"""The CTC aligner: paths against enumeration and by hand, and a real Wav2Vec2 with random weights."""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers import Wav2Vec2Config, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

from caspi.config import Audit, Recipe
from caspi.model.aligners import AlignmentItem, FailedToAlign, build_aligner
from caspi.model.aligners.ctc import WILDCARD, Characters, align_words, best_path, target_columns
from caspi.speech.alignment.quality import Alignment

VOCABULARY = {"[PAD]": 0, "|": 1, "[UNK]": 2, "א": 3, "ב": 4, "ג": 5}
LETTERS = Characters({"א": 3, "ב": 4, "ג": 5}, blank=0, delimiter=1, special=frozenset({0, 1, 2}))


def emissions_of(text: str, sure: float = 0.95) -> NDArray[np.float64]:
    """Log probabilities of a model that writes one symbol per frame: `_` is the blank, `|` the delimiter."""
    symbols = {"_": 0, "|": 1, "א": 3, "ב": 4, "ג": 5}
    probabilities = np.full((len(text), 6), (1 - sure) / 5)
    for frame, symbol in enumerate(text):
        probabilities[frame, symbols[symbol]] = sure
    return np.log(probabilities)


def aligned(outcome: Alignment | FailedToAlign) -> Alignment:
    assert isinstance(outcome, Alignment), outcome
    return outcome


def test_the_right_text_costs_nothing_and_lies_where_it_was_said() -> None:
    found = aligned(align_words(emissions_of("__אא_ב||גג_"), ("אב", "ג"), LETTERS, 0.02))
    assert found.spans == (pytest.approx((0.04, 0.12)), pytest.approx((0.16, 0.20)))
    assert found.word_scores == (0, 0)
    assert found.score == 0


def test_a_wrong_letter_costs_its_log_ratio_to_the_free_decode() -> None:
    """`גא` was said, `בא` is claimed: one frame of .01 instead of .95, in a word of two frames and a clip of four."""
    found = aligned(align_words(emissions_of("_גא_"), ("בא",), LETTERS, 1.0))
    ratio = np.log(0.01 / 0.95)
    assert found.word_scores == (pytest.approx(ratio / 2),)
    assert found.score == pytest.approx(ratio / 4)
    assert found.spans == ((1.0, 3.0),)


def test_a_doubled_letter_needs_the_blank_between() -> None:
    found = aligned(align_words(emissions_of("אא_א"), ("אא",), LETTERS, 1.0))
    assert found.score == 0
    assert isinstance(align_words(emissions_of("אא"), ("אא",), LETTERS, 1.0), FailedToAlign)


def test_an_unknown_letter_takes_the_best_sound_and_not_the_blank() -> None:
    found = aligned(align_words(emissions_of("אב_"), ("א7",), LETTERS, 1.0))
    assert found.score == 0
    silent = aligned(align_words(emissions_of("א__"), ("א7",), LETTERS, 1.0))
    assert silent.score == pytest.approx(np.log(0.01 / 0.95) / 3)


def test_too_few_frames_are_a_failure_that_says_so() -> None:
    outcome = align_words(emissions_of("אב"), ("אבג",), LETTERS, 1.0)
    assert isinstance(outcome, FailedToAlign)
    assert "2 frames of audio are too few for 3 tokens" in str(outcome)


@pytest.mark.parametrize("tokens", [[3], [3, 4], [3, 3], [4, WILDCARD], [WILDCARD, WILDCARD], [3, 1, 3]])
@pytest.mark.parametrize("num_frames", [2, 4, 6])
def test_the_path_is_the_best_of_all_paths(tokens: list[int], num_frames: int) -> None:
    """Every assignment of frames to targets or the blank, kept if it collapses to the targets."""
    rng = np.random.default_rng(num_frames)
    emissions = np.log(rng.dirichlet(np.full(6, 0.5), num_frames))
    columns = target_columns(emissions, tokens, LETTERS.special)

    def is_valid(path: tuple[int, ...]) -> bool:
        visited = [target for target, _ in itertools.groupby(path)]
        if [target for target in visited if target >= 0] != list(range(len(tokens))):
            return False
        return not any(a >= 0 and b >= 0 and tokens[a] == tokens[b] != WILDCARD for a, b in itertools.pairwise(visited))

    def total(path: tuple[int, ...]) -> float:
        return sum(columns[f, t] if t >= 0 else emissions[f, 0] for f, t in enumerate(path))

    choices = itertools.product(range(-1, len(tokens)), repeat=num_frames)
    possible = {path: total(path) for path in choices if is_valid(path)}
    found = best_path(emissions[:, 0], columns, tokens)
    if not possible:
        assert found is None
        return
    assert found is not None
    assert is_valid(tuple(found.tolist()))
    assert total(tuple(found.tolist())) == pytest.approx(max(possible.values()))


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small Wav2Vec2ForCTC, random weights."""
    folder = tmp_path_factory.mktemp("ctc")
    (folder / "vocab.json").write_text(json.dumps(VOCABULARY), encoding="utf-8")
    tokenizer = Wav2Vec2CTCTokenizer(str(folder / "vocab.json"), unk_token="[UNK]", pad_token="[PAD]")
    config = Wav2Vec2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        conv_dim=(32,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    Wav2Vec2ForCTC(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)
    return folder


def recipe(folder: Path | str) -> Recipe:
    return Recipe(audit=Audit(backend="ctc", ctc_model=str(folder)))


def test_a_real_model_aligns_and_a_batch_changes_nothing(untrained: Path) -> None:
    torch.set_num_threads(1)
    aligner = build_aligner(recipe(untrained))
    first, second = (np.random.default_rng(n).normal(0, 0.1, 8000 * (n + 2)).astype(np.float32) for n in (0, 1))
    items = [AlignmentItem(first, ("אב", "גג")), AlignmentItem(first, ("ג",)), AlignmentItem(second, ("באב", "x"))]
    outcomes = aligner.align(items)
    assert outcomes == [aligner.align([item])[0] for item in items]
    for item, outcome in zip(items, outcomes, strict=True):
        found = aligned(outcome)
        times = [time for span in found.spans if span for time in span]
        assert len(found.spans) == len(item.words)
        assert times == sorted(times)
        assert times[-1] <= len(item.samples) / 16_000 + 1e-9
        assert found.score < 0


def test_what_cannot_be_aligned_is_a_failure_and_not_a_score(untrained: Path) -> None:
    aligner = build_aligner(recipe(untrained))
    second = np.zeros(16_000, dtype=np.float32)
    items = [
        AlignmentItem(second, ()),
        AlignmentItem(second[:0], ("א",)),
        AlignmentItem(second[:399], ("א",)),
        AlignmentItem(second, ("אב" * 60,)),
        AlignmentItem(np.zeros(16_000 * 301, dtype=np.float32), ("א",)),
    ]
    assert all(isinstance(outcome, FailedToAlign) for outcome in aligner.align(items))


def test_a_model_that_is_not_there_is_one_line_with_the_way_out() -> None:
    with pytest.raises(ValueError, match="download it on a machine with network, or give a folder") as caught:
        build_aligner(recipe("imvladikon/wav2vec2-xls-r-300m-hebrew"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("lost", "loads"), [("wav2vec2.masked_spec_embed", True), ("lm_head.weight", False)])
def test_only_weights_of_training_may_be_missing(lost: str, loads: bool, untrained: Path, tmp_path: Path) -> None:
    shutil.copytree(untrained, tmp_path, dirs_exist_ok=True)
    weights = load_file(untrained / "model.safetensors")
    del weights[lost]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    if loads:
        assert build_aligner(recipe(tmp_path)).model_id == str(tmp_path)
        return
    with pytest.raises(ValueError, match=r"1 missing: lm_head\.weight"):
        build_aligner(recipe(tmp_path))


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    from caspi.model.tiny import tiny_base

    with pytest.raises(ValueError, match=r"ctc_model .*cannot be loaded"):
        build_aligner(recipe(tiny_base()))
