"""What goes into the model, and what carries loss."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from caspi.model.packed.batch import PackedBatch, Packer
from caspi.model.tiny import build_tiny_asr
from caspi.model.training.batch import IGNORED, Encoder, MicroBatch, StepBatch, Utterances, check_supervision
from caspi.model.training.parts import PackedParts, PaddedParts, Parts, split_padded
from caspi.records import Rejected, RunFailed, Utterance
from caspi.speech.corpora.audio import write_audio

TEXTS = ["שלום עולם", "בוקר טוב, ילד", "אור", 'צה"ל בית־ספר', "לילה"]
NUM_SAMPLES = [32_000, 20_000, 8_000, 47_777, 3_000]
MODEL, PROCESSOR = build_tiny_asr()
ENCODER = Encoder(PROCESSOR, "Hebrew")
PARTS: dict[str, Parts] = {
    "padded": PaddedParts(ENCODER, 2),
    "packed": PackedParts(ENCODER, Packer(MODEL.config, ENCODER.pad_id), 100),
}


def clips() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [(rng.standard_normal(count) * 0.1).astype(np.float32) for count in NUM_SAMPLES]


def padded(step: StepBatch) -> MicroBatch:
    """The one part of a step."""
    (part,) = step.parts
    assert not isinstance(part, PackedBatch)
    return part


def corpus(folder: Path) -> list[Utterance]:
    utterances = []
    for index, (samples, text) in enumerate(zip(clips(), TEXTS, strict=True)):
        path = folder / f"{index}.wav"
        write_audio(path, samples)
        duration = len(samples) / 16_000
        utterances.append(
            Utterance(id=f"u{index}", audio_filepath=str(path), text=text, duration=duration, domain="kan_clean")
        )
    return utterances


@pytest.mark.parametrize("index", range(len(TEXTS)))
def test_one_clip_is_encoded_as_the_processor_encodes_it(index: int) -> None:
    message: Any = {"role": "user", "content": [{"type": "audio"}]}
    prompt = PROCESSOR.apply_chat_template(
        [message], tokenize=False, add_generation_prompt=True, forced_language="Hebrew"
    )
    assert prompt.endswith("language Hebrew<asr_text>")
    theirs = PROCESSOR(text=[f"{prompt}{TEXTS[index]}<|im_end|>"], audio=[clips()[index]])
    ours = ENCODER.batch([ENCODER.encode(clips()[index], TEXTS[index])])
    for name in ("input_ids", "attention_mask"):
        assert torch.equal(ours[name], theirs[name]), name
    torch.testing.assert_close(ours["input_features"], theirs["input_features"], rtol=0, atol=1e-5)
    assert torch.equal(ours["input_features_mask"], theirs["input_features_mask"].long())


def test_only_the_transcript_and_the_end_of_the_turn_carry_loss() -> None:
    batch = ENCODER.batch([ENCODER.encode(*pair) for pair in zip(clips(), TEXTS, strict=True)])
    assert ENCODER.supervised_text(batch) == [f"{text}<|im_end|>" for text in TEXTS]
    for row, text in zip(range(len(TEXTS)), TEXTS, strict=True):
        labels = batch["labels"][row]
        assert PROCESSOR.tokenizer.decode(labels[labels != IGNORED]) == f"{text}<|im_end|>"
        assert not (labels[batch["attention_mask"][row] == 0] != IGNORED).any()


def test_padding_is_on_the_right_and_only_to_the_longest_clip() -> None:
    batch = ENCODER.batch([ENCODER.encode(*pair) for pair in zip(clips(), TEXTS, strict=True)])
    longest_frames = 47_777 // 160
    assert batch["input_features"].shape[-1] == 300 >= longest_frames
    for mask in (batch["attention_mask"], batch["input_features_mask"]):
        assert (mask[:, :-1] >= mask[:, 1:]).all()
    assert batch["attention_mask"].sum(1).max() == batch["input_ids"].shape[1]


def test_the_loss_on_label_positions_is_the_stock_loss() -> None:
    batch = ENCODER.batch([ENCODER.encode(*pair) for pair in zip(clips(), TEXTS, strict=True)])
    stock = {name: batch[name] for name in batch if name not in ("logits_to_keep", "shift_labels")}
    with torch.no_grad():
        assert MODEL(**batch).loss.item() == pytest.approx(MODEL(**stock).loss.item(), abs=1e-5)


def test_a_clip_in_a_batch_has_the_features_it_has_alone() -> None:
    examples = [ENCODER.encode(*pair) for pair in zip(clips(), TEXTS, strict=True)]
    batch = ENCODER.batch(examples)
    for row, example in enumerate(examples):
        frames = example.features.shape[1]
        assert torch.equal(batch["input_features"][row, :, :frames], example.features)
        assert not batch["input_features"][row, :, frames:].any()


def test_a_share_without_utterances_is_silence_without_loss() -> None:
    step = PARTS["padded"].collator()([])
    batch = padded(step)
    assert step.num_target_tokens == 0
    assert ENCODER.supervised_text(batch) == [""]
    MODEL.zero_grad()
    loss = MODEL(**batch, num_items_in_batch=torch.tensor(7)).loss
    loss.backward()
    assert loss.item() == 0
    assert all(not p.grad.any() for p in MODEL.parameters() if p.grad is not None)
    MODEL.zero_grad()


@pytest.mark.parametrize("kind", PARTS)
def test_a_clip_that_does_not_decode_makes_the_step_smaller_and_is_named(kind: str, tmp_path: Path) -> None:
    utterances = corpus(tmp_path)
    Path(utterances[1].audio_filepath).write_bytes(b"no audio")
    dataset = Utterances(utterances, ENCODER)
    step = PARTS[kind].collator()([dataset[(0, index)] for index in range(5)])
    assert [item.id for item in step.rejected] == ["u1"]
    assert step.num_utterances == 4
    parts = [ENCODER.padded(part) for part in step.parts]
    assert step.num_target_tokens == sum(len(part["shift_labels"]) for part in parts)
    check_supervision(ENCODER, utterances, step)


def test_the_cache_is_bounded_and_gives_the_same_features(tmp_path: Path) -> None:
    utterances = corpus(tmp_path)
    plain, cached = Utterances(utterances, ENCODER), Utterances(utterances, ENCODER, cache_mib=0.05)
    for _ in range(2):
        for index in range(5):
            ours, theirs = plain[(0, index)], cached[(0, index)]
            assert not isinstance(ours, Rejected)
            assert not isinstance(theirs, Rejected)
            assert torch.equal(ours.features, theirs.features)
    assert 0 < sum(example.features.nbytes for example in cached.cache.values()) <= 0.05 * 2**20
    assert len(cached.cache) < 5


@pytest.mark.parametrize("kind", PARTS)
def test_planted_label_bugs_are_found_before_training(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    utterances = corpus(tmp_path)
    dataset = Utterances(utterances, ENCODER)
    items = [dataset[(0, index)] for index in range(5)]
    check_supervision(ENCODER, utterances, PARTS[kind].collator()(items))

    monkeypatch.setattr(Encoder, "target_ids", lambda self, text: tuple(self.token_ids(text)))
    without_end = [Utterances(utterances, ENCODER)[(0, index)] for index in range(5)]
    with pytest.raises(RunFailed, match="labels are wrong"):
        check_supervision(ENCODER, utterances, PARTS[kind].collator()(without_end))


def test_a_supervised_prompt_is_found_before_training(tmp_path: Path) -> None:
    utterances = corpus(tmp_path)
    dataset = Utterances(utterances, ENCODER)
    step = PaddedParts(ENCODER, 5).collator()([dataset[(0, index)] for index in range(5)])
    batch = padded(step)
    batch["logits_to_keep"] = batch["attention_mask"].roll(-1, dims=1).bool()
    batch["shift_labels"] = batch["input_ids"].roll(-1, dims=1)[batch["logits_to_keep"]]
    with pytest.raises(RunFailed, match="would carry loss"):
        check_supervision(ENCODER, utterances, step)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_batch_that_is_split_is_what_smaller_batches_would_have_been(size: int) -> None:
    examples = [ENCODER.encode(*pair) for pair in zip(clips(), TEXTS, strict=True)]
    examples.sort(key=lambda example: example.features.shape[1], reverse=True)
    parts = split_padded(ENCODER.batch(examples), size, ENCODER.chunk_frames)
    expected = [ENCODER.batch(examples[first : first + size]) for first in range(0, len(examples), size)]
    assert len(parts) == len(expected)
    for part, whole in zip(parts, expected, strict=True):
        assert part.keys() == whole.keys()
        assert [name for name in whole if not torch.equal(part[name], whole[name])] == []
