"""The Qwen3 forced aligner: measurements on logits by hand, and the real class with random weights."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from audit_corpora import write_audit_corpus
from numpy.typing import NDArray
from scipy.special import comb, softmax

from caspi.cli import main
from caspi.config import Audit, Recipe
from caspi.model.aligners import AlignmentItem, FailedToAlign, build_aligner
from caspi.model.aligners.qwen import QwenAligner, moves_along
from caspi.model.aligners.shared_audio import plan_rows
from caspi.model.aligners.timestamp_evidence import (
    chance_ordered,
    longest_ordered,
    measure_timestamps,
    monotone_evidence,
)
from caspi.model.checkpoints.checkpoint import quiet_transformers
from caspi.model.tiny_models import build_tiny_aligner
from caspi.speech.alignment.quality import Alignment
from caspi.speech.corpora.audio import write_audio

WORDS = ("שלום", "לבן", "ילדה", "רוצה", "מיץ", "גשם")


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny aligner, random weights."""
    folder = tmp_path_factory.mktemp("aligner")
    model, processor = build_tiny_aligner()
    with quiet_transformers():
        model.save_pretrained(folder, save_original_format=False)
        processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def aligner(untrained: Path) -> QwenAligner:
    torch.set_num_threads(1)
    built = build_aligner(recipe(untrained))
    assert isinstance(built, QwenAligner)
    return built


def recipe(folder: Path | str, **changes: object) -> Recipe:
    return Recipe(audit=Audit(backend="qwen", aligner_model=str(folder), **changes))  # type: ignore[arg-type]


def clip(seconds: float, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 0.1, round(16_000 * seconds)).astype(np.float32)


def peaked(times: list[int], num_classes: int = 100) -> NDArray[np.float64]:
    """Logits of a model that is sure of these raw times."""
    logits = np.zeros((len(times), num_classes))
    logits[np.arange(len(times)), times] = 60.0
    return logits


PATHOLOGIES = {
    # raw argmax: (reported after the official repair, confidence and displacement by word, LIS, collapsed words)
    "ordered": ([1, 3, 4, 6, 7, 9], [1, 3, 4, 6, 7, 9], [1, 1, 1], [0, 0, 0], 6, 0),
    "constant": ([5] * 6, [5] * 6, [1, 1, 1], [0, 0, 0], 6, 3),
    "decreasing": ([5, 4, 3, 2, 1, 0], [5] * 6, [1, 0, 0], [0.5, 2.5, 4.5], 1, 3),
    "outlier block": (
        [0, 2, 4, 6, 90, 80, 70, 14, 16, 18, 20, 22],
        [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22],
        [1, 1, 0, 0, 1, 1],
        [0, 0, 76, 29, 0, 0],
        9,
        0,
    ),
}


@pytest.mark.parametrize("name", PATHOLOGIES)
def test_the_logits_show_what_the_official_repair_hides(name: str, aligner: QwenAligner) -> None:
    raw, repaired, confidences, displacements, ordered, collapsed = PATHOLOGIES[name]
    logits = torch.as_tensor(peaked(raw), dtype=torch.float32)
    words = WORDS[: len(raw) // 2]
    decoded = aligner._read(AlignmentItem(clip(0.08 * 98.5), words), logits)
    assert [round(time / 0.08) for span in decoded.spans for time in span] == repaired
    evidence = decoded.evidence
    assert evidence.word_confidences.tolist() == pytest.approx(confidences, abs=1e-9)
    assert evidence.displacements.tolist() == displacements
    assert evidence.collapse_run == collapsed
    assert longest_ordered(np.array(raw)) == ordered
    chance = chance_ordered(len(raw), 100)
    assert evidence.lis_agreement == pytest.approx((ordered - chance) / (len(raw) - chance))
    assert evidence.entropies.tolist() == pytest.approx([0] * len(words), abs=1e-9)


def test_collapse_looks_perfect_to_the_order_and_not_to_the_run() -> None:
    """Eight slots, ten bins: Z is at least .982^8, and flat distributions reach C(17, 8) / 10^8 = 24310 / 10^8."""
    evidence = measure_timestamps(peaked([3] * 8, 10), np.full(8, 3), 10)
    assert evidence.lis_agreement == 1
    assert 1 - 8 * np.log(0.982) / np.log(24310e-8) <= evidence.monotone_evidence < 1
    assert evidence.collapse_run == 4


def test_times_in_reverse_are_worse_than_chance() -> None:
    """Two slots, two bins: the paths (0,0), (0,1), (1,1) weigh .01*.99 + .01*.01 + .99*.01 = .0199; flat ones 3/4."""
    evidence = measure_timestamps(peaked([1, 0], 2), np.array([1, 1]), 2)
    assert evidence.monotone_evidence == pytest.approx(1 - np.log(0.0199) / np.log(0.75))
    assert evidence.lis_agreement is None


@pytest.mark.parametrize(("num_slots", "num_bins"), [(2, 3), (4, 5), (6, 4)])
def test_monotone_evidence_equals_the_sum_over_all_ordered_paths(num_slots: int, num_bins: int) -> None:
    inside = softmax(np.random.default_rng(num_slots).normal(0, 2, (num_slots, num_bins)), axis=1)
    mixed = 0.98 * inside + 0.02 / num_bins
    paths = [
        np.prod(mixed[np.arange(num_slots), path])
        for path in itertools.product(range(num_bins), repeat=num_slots)
        if list(path) == sorted(path)
    ]
    assert len(paths) == comb(num_slots + num_bins - 1, num_slots, exact=True)
    expected = 1 - np.log(sum(paths)) / np.log(len(paths) / num_bins**num_slots)
    assert monotone_evidence(inside) == pytest.approx(expected)


def test_flat_distributions_are_chance() -> None:
    evidence = measure_timestamps(np.zeros((6, 50)), np.arange(6), 40)
    assert evidence.monotone_evidence == pytest.approx(0, abs=1e-12)
    assert evidence.entropies.tolist() == pytest.approx([1] * 3)
    assert evidence.out_of_audio_mass == pytest.approx(10 / 50)
    # three, four and then five of 40 bins lie within two of the times 0, 1, 2, 3, 4, 5
    assert evidence.word_confidences.tolist() == pytest.approx(
        [np.sqrt(3 * 4) / 40, np.sqrt(5 * 5) / 40, np.sqrt(5 * 5) / 40]
    )


@pytest.mark.parametrize(("num_words", "share"), [(1, 0.75), (2, 0.61), (3, 0.53), (8, 0.37), (20, 0.25)])
def test_random_times_are_in_order_as_often_as_the_design_measured(num_words: int, share: float) -> None:
    assert chance_ordered(2 * num_words, 125) / (2 * num_words) == pytest.approx(share, abs=0.04)


def test_times_behind_the_audio_have_no_confidence() -> None:
    evidence = measure_timestamps(peaked([80, 90], 100), np.array([80, 90]), 20)
    assert evidence.out_of_audio_mass == pytest.approx(1)
    assert evidence.word_confidences.tolist() == [0]


@pytest.mark.parametrize(("num_slots", "num_bins"), [(0, 5), (3, 5), (2, 1), (2, 11)])
def test_impossible_shapes_are_refused(num_slots: int, num_bins: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        measure_timestamps(np.zeros((num_slots, 10)), np.zeros(num_slots, dtype=np.int64), num_bins)


def test_spans_are_those_of_the_official_forward_pass_and_decode(aligner: QwenAligner) -> None:
    samples = clip(3.3)
    inputs, words = aligner.processor.prepare_forced_aligner_inputs(audio=samples, transcript=" ".join(WORDS))
    with torch.no_grad():
        logits = aligner.model(**inputs).logits
    token = aligner.model.config.timestamp_token_id
    (official,) = aligner.processor.decode_forced_alignment(logits, inputs["input_ids"], words, token)
    (ours,) = aligner.align([AlignmentItem(samples, WORDS)])
    assert isinstance(ours, Alignment)
    assert ours.spans == tuple((word["start_time"], word["end_time"]) for word in official)


def test_a_batch_changes_no_time(aligner: QwenAligner) -> None:
    lengths = ((0.01, 1), (1.0, 6), (2.03, 2), (5.5, 4), (11.9, 3))
    items = [AlignmentItem(clip(seconds, i), WORDS[:count]) for i, (seconds, count) in enumerate(lengths)]
    together = aligner.slot_logits(items)
    for item, logits in zip(items, together, strict=True):
        (alone,) = aligner.slot_logits([item])
        assert torch.equal(alone.argmax(dim=-1), logits.argmax(dim=-1))
        torch.testing.assert_close(alone, logits, atol=1e-4, rtol=1e-4)
    for item, outcome in zip(items, aligner.align(items), strict=True):
        (alone_outcome,) = aligner.align([item])
        assert isinstance(outcome, Alignment)
        assert isinstance(alone_outcome, Alignment)
        assert outcome.spans == alone_outcome.spans
        assert outcome.score == pytest.approx(alone_outcome.score, abs=1e-4)


def test_transcripts_that_share_their_audio_are_computed_as_if_alone(aligner: QwenAligner) -> None:
    """Four transcripts of two clips in two rows, against one row each through the model's own forward pass."""
    samples = [clip(2.3, 1), clip(1.1, 2)]
    items = [AlignmentItem(samples[n % 2], WORDS[: 2 + n]) for n in range(4)]
    shared = aligner.slot_logits(items)
    token = aligner.model.config.timestamp_token_id
    for item, logits in zip(items, shared, strict=True):
        inputs, _ = aligner.processor.prepare_forced_aligner_inputs(audio=item.samples, transcript=" ".join(item.words))
        with torch.no_grad():
            official = aligner.model(**inputs).logits[0][inputs["input_ids"][0] == token]
        assert torch.equal(official.argmax(dim=-1), logits.argmax(dim=-1))
        torch.testing.assert_close(official, logits, atol=1e-4, rtol=1e-4)


def test_the_encoder_hears_each_clip_once(aligner: QwenAligner) -> None:
    frames: list[int] = []
    hook = aligner.model.model.audio_tower.register_forward_hook(
        lambda module, arguments, keywords, result: frames.append(keywords["input_features"].shape[0]),
        with_kwargs=True,
    )
    samples = clip(2.3, 1)
    aligner.align([AlignmentItem(samples, WORDS[:count]) for count in (2, 3, 4, 5)])
    hook.remove()
    assert frames == [1]


def test_a_row_that_would_be_too_long_repeats_the_audio() -> None:
    rows = plan_rows([(7, 2000), (7, 2000), (7, 2000), (8, 5000)], {7: 90, 8: 10})
    assert [(row.audio, row.transcripts, row.num_tokens) for row in rows] == [
        (7, (0, 1), 4090),
        (7, (2,), 2090),
        (8, (3,), 5010),
    ]


def test_what_cannot_be_aligned_is_a_failure_and_not_a_score(aligner: QwenAligner) -> None:
    items = [AlignmentItem(clip(1), ()), AlignmentItem(clip(0), WORDS), AlignmentItem(clip(16), WORDS)]
    outcomes = aligner.align([*items, AlignmentItem(clip(1), WORDS)])
    assert [isinstance(outcome, FailedToAlign) for outcome in outcomes] == [True, True, True, False]
    assert "at most 15.92 s" in str(outcomes[2])


def test_only_words_that_follow_the_audio_are_stable() -> None:
    before = [(0.0, 0.4), (0.4, 0.8), (0.8, 1.2)]
    after = [(0.48, 0.88), (0.56, 0.8), (0.96, 1.84)]
    assert moves_along(before, after).tolist() == [True, False, False]


def test_an_unstable_word_loses_its_score(untrained: Path, aligner: QwenAligner) -> None:
    """Random weights hardly follow the audio, so most words must lose."""
    tested = build_aligner(recipe(untrained, shift_stability=True))
    item = AlignmentItem(clip(4), WORDS)
    (plain,), (strict,) = aligner.align([item]), tested.align([item])
    assert isinstance(plain, Alignment)
    assert isinstance(strict, Alignment)
    lost = np.array(plain.word_scores) - np.array(strict.word_scores)
    assert set(np.round(lost, 6).tolist()) <= {0.0, round(np.log(101), 6)}
    assert (lost > 0).sum() >= 4


def test_a_model_that_is_not_there_is_one_line_with_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"download it on a machine with network, or give a folder") as caught:
        build_aligner(recipe("Qwen/Qwen3-ForcedAligner-0.6B"))
    assert "\n" not in str(caught.value)


@pytest.mark.espeak
def test_an_untrained_aligner_ends_in_audit_invalid(untrained: Path, tmp_path: Path) -> None:
    """Through the command line, on clean synthetic speech with correct transcripts: good data, a blind tool."""
    manifest = write_audit_corpus(tmp_path / "corpus", 40, 0.0, 5, {"kan_clean": 1.0})
    output = tmp_path / "audit"
    flags = ["--manifest", str(manifest), "--output", str(output), "--sample-rate", "1.0"]
    flags += ["--aligner-model", str(untrained), "--num-processes", "1", "--calibration.num-control-utterances", "0"]
    flags += ["--calibration.num-self-test-sentences", "4", "--calibration.num-dose-utterances", "0"]
    assert main(["audit", *flags]) == 3
    report = json.loads((output / "alignment_report.json").read_text(encoding="utf-8"))
    assert (report["decision"], report["decision_code"]) == ("STOP", "AUDIT_INVALID")
    assert report["provenance"]["backend"] == "qwen"
    assert report["provenance"]["model_id"] == str(untrained)
    assert report["failed_count"] == 0
    assert not report["calibration"]["self_test"]["passed"]
    assert all(row["model_confidence"] is not None for row in report["detailed_metrics"])


def test_the_default_backend_is_the_guides_aligner_and_says_how_to_get_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_audio(tmp_path / "a.wav", clip(1))
    (tmp_path / "m.jsonl").write_text(
        '{"id": "a", "audio_filepath": "a.wav", "text": "שלום", "duration": 1.0, "domain": "kan_clean"}\n', "utf-8"
    )
    assert main(["audit", "--manifest", str(tmp_path / "m.jsonl"), "--output", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "Qwen/Qwen3-ForcedAligner-0.6B" in line
    assert "download it on a machine with network, or give a folder" in line
    assert not (tmp_path / "out").exists()
