"""Augmentation depends on seed, epoch and utterance, and on nothing else; mixtures keep their shares."""

from collections import Counter

import numpy as np
import pytest
import torch

from caspi.config import Augmentation
from caspi.model.tiny import build_tiny_asr
from caspi.model.training.augmentation import Augmenter, change_speed, last_words
from caspi.model.training.batch import Encoder, Example, Utterances, check_supervision
from caspi.model.training.parts import PaddedParts
from caspi.model.training.sampler import Plan, make_pools
from caspi.records import Utterance
from caspi.speech.corpora.audio import write_audio

ENCODER = Encoder(build_tiny_asr()[1], "Hebrew")
EVERYTHING = Augmentation(
    speed_probability=0.5,
    noise_probability=0.5,
    telephone_probability=0.5,
    codec_probability=0.5,
    num_time_masks=2,
    num_mel_masks=2,
    context_probability=0.5,
)
NUM_CLIPS = 6


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[Utterance]:
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    rows = []
    for index in range(NUM_CLIPS):
        samples = (rng.standard_normal(16_000) * 0.1).astype(np.float32)
        path = folder / f"{index}.wav"
        write_audio(path, samples)
        rows.append(
            Utterance(
                id=f"u{index}",
                audio_filepath=str(path),
                text="שלום עולם",
                duration=1.0,
                domain="kan_clean",
                prev_text="מה שלומך היום",
            )
        )
    return rows


def examples(
    corpus: list[Utterance], config: Augmentation, epoch: int, order: list[int], seed: int = 1
) -> list[Example]:
    dataset = Utterances(corpus, ENCODER, cache_mib=100, augmenter=Augmenter(config, seed))
    found = {index: dataset[(epoch, index)] for index in order}
    items = [found[index] for index in range(NUM_CLIPS)]
    assert all(isinstance(item, Example) for item in items)
    return items  # type: ignore[return-value]


def same(left: list[Example], right: list[Example]) -> list[bool]:
    pairs = zip(left, right, strict=True)
    return [a.features.shape == b.features.shape and torch.equal(a.features, b.features) for a, b in pairs]


def test_an_utterance_sounds_the_same_in_an_epoch_whatever_was_read_before(corpus: list[Utterance]) -> None:
    forwards = examples(corpus, EVERYTHING, 3, [0, 1, 2, 3, 4, 5])
    backwards = examples(corpus, EVERYTHING, 3, [5, 3, 4, 0, 2, 1])
    assert all(same(forwards, backwards))
    assert [one.context for one in forwards] == [one.context for one in backwards]


def test_epochs_and_seeds_differ(corpus: list[Utterance]) -> None:
    order = list(range(NUM_CLIPS))
    first = examples(corpus, EVERYTHING, 0, order)
    assert not any(same(first, examples(corpus, EVERYTHING, 1, order)))
    assert not any(same(first, examples(corpus, EVERYTHING, 0, order, seed=2)))


def test_without_augmentation_nothing_changes_and_clips_are_decoded_once(corpus: list[Utterance]) -> None:
    plain = [Utterances(corpus, ENCODER)[(0, index)] for index in range(NUM_CLIPS)]
    order = list(range(NUM_CLIPS))
    assert all(same(plain, examples(corpus, Augmentation(), 0, order)))  # type: ignore[arg-type]
    dataset = Utterances(corpus, ENCODER, 100, augmenter=Augmenter(Augmentation(context_probability=1.0), 1))
    assert all(dataset[(epoch, 0)] for epoch in range(2))
    assert list(dataset.cache) == [0]
    noisy = Utterances(corpus, ENCODER, 100, augmenter=Augmenter(Augmentation(noise_probability=1.0), 1))
    assert noisy[(0, 0)]
    assert not noisy.cache


def test_switching_one_change_on_leaves_the_others_as_they_were(corpus: list[Utterance]) -> None:
    codec = Augmentation(codec_probability=0.5)
    augmenters = Augmenter(codec, 1), Augmenter(codec.model_copy(update={"speed_probability": 0.0001}), 1)
    for item in corpus:
        samples = np.ones(4000, dtype=np.float32) * 0.1
        ours, theirs = (one.samples(samples, item, 0) for one in augmenters)
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_speed_changes_length_and_pitch_together(factor: float) -> None:
    time = np.arange(16_000) / 16_000
    changed = change_speed(np.sin(2 * np.pi * 440 * time).astype(np.float32), factor)
    assert len(changed) == pytest.approx(16_000 / factor, abs=2)
    peak = np.argmax(np.abs(np.fft.rfft(changed))) * 16_000 / len(changed)
    assert peak == pytest.approx(440 * factor, abs=2)


def test_masks_are_as_wide_as_allowed_and_set_to_the_mean(corpus: list[Utterance]) -> None:
    config = Augmentation(num_time_masks=1, max_time_mask_fraction=0.1, num_mel_masks=1, max_mel_mask_fraction=0.25)
    features = torch.randn(40, 200, generator=torch.Generator().manual_seed(0))
    widths = []
    for epoch in range(200):
        masked = Augmenter(config, 1).features(features, corpus[0], epoch)
        hit = masked == features.mean()
        frames, bins = hit.all(dim=0).sum(), hit.all(dim=1).sum()
        assert torch.equal(masked[~hit], features[~hit])
        widths.append((int(frames), int(bins)))
    assert max(width for width, _ in widths) == 20
    assert max(width for _, width in widths) == 10
    assert min(widths) == (0, 0) or min(width for width, _ in widths) == 0


def test_the_previous_transcript_is_the_system_prompt_and_carries_no_loss(corpus: list[Utterance]) -> None:
    dataset = Utterances(corpus, ENCODER, augmenter=Augmenter(Augmentation(context_probability=1.0), 1))
    items = [dataset[(0, index)] for index in range(NUM_CLIPS)]
    step = PaddedParts(ENCODER, 3).collator()(items)
    check_supervision(ENCODER, corpus, step)
    text = ENCODER.tokenizer.decode(ENCODER.padded(step.parts[0])["input_ids"][0])
    assert text.startswith("<|im_start|>system\nמה שלומך היום<|im_end|>\n<|im_start|>user\n")


def test_a_context_probability_of_a_third_gives_a_third() -> None:
    config = Augmentation(context_probability=0.33)
    item = Utterance(id="x", audio_filepath="x", text="x", duration=1, domain="d", prev_text="לפני כן")
    given = [Augmenter(config, 1).context(item, epoch) for epoch in range(600)]
    assert Counter(map(bool, given))[True] == pytest.approx(198, abs=40)
    alone = item.model_copy(update={"prev_text": None})
    assert Augmenter(Augmentation(context_probability=1.0), 1).context(alone, 0) == ""


def test_a_long_context_keeps_its_last_whole_words() -> None:
    assert last_words("אחת שתיים שלוש", 9) == "שלוש"
    assert last_words("אחת שתיים שלוש", 10) == "שתיים שלוש"
    assert last_words("שלוש", 4) == "שלוש"


SOURCES = ["radio"] * 60 + ["whatsapp"] * 30 + ["books"] * 10


def drawn(plan: Plan, epoch: int) -> list[int]:
    return [index for step in range(plan.steps_per_epoch) for index in plan.step(epoch, step)]


def test_a_mixture_has_the_shares_of_its_weights_in_every_epoch() -> None:
    pools = make_pools(SOURCES, {"radio": 1, "whatsapp": 2, "books": 1})
    for epoch in range(5):
        indices = drawn(Plan(100, 7, 3, pools), epoch)
        assert Counter(SOURCES[index] for index in indices) == {"radio": 25, "whatsapp": 50, "books": 25}


def test_no_utterance_of_a_source_comes_twice_before_all_came_once() -> None:
    plan = Plan(100, 7, 3, make_pools(SOURCES, {"radio": 1, "whatsapp": 2, "books": 1}))
    seen: Counter[int] = Counter(index for epoch in range(12) for index in drawn(plan, epoch))
    assert Counter(seen[index] for index in range(60)) == {5: 60}
    assert Counter(seen[index] for index in range(60, 90)) == {20: 30}
    assert Counter(seen[index] for index in range(90, 100)) == {30: 10}


def test_a_mixture_is_shuffled_and_does_not_depend_on_what_was_drawn_before() -> None:
    pools = make_pools(SOURCES, {"radio": 3, "whatsapp": 2, "books": 1})
    one, other = Plan(100, 7, 3, pools), Plan(100, 7, 3, pools)
    drawn(one, 0)
    assert drawn(one, 4) == drawn(other, 4)
    assert drawn(one, 4) != sorted(drawn(one, 4))
    assert drawn(one, 4) != drawn(one, 3)
    assert drawn(one, 4) != drawn(Plan(100, 7, 4, pools), 4)


@pytest.mark.parametrize("weights", [{"radio": 1.0}, {"radio": 1, "whatsapp": 1, "books": 1, "tv": 1}])
def test_weights_must_be_for_exactly_the_sources_that_there_are(weights: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"every source of the manifest and no other"):
        make_pools(SOURCES, weights)


def test_silence_gets_no_noise_because_there_is_no_speech_to_measure_it_by() -> None:
    silent = Utterance(id="s", audio_filepath="s", text="x", duration=1, domain="d")
    samples = np.zeros(1600, dtype=np.float32)
    assert not Augmenter(Augmentation(noise_probability=1.0), 1).samples(samples, silent, 0).any()
