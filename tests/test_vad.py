"""The speech detector against speech whose word times are known."""

import numpy as np
import pytest
from numpy.typing import NDArray

from caspi.speech.alignment.vad import estimate_snr_db, runs, speech_mask
from caspi.speech.augment import add_noise, telephone_band
from caspi.speech.synthetic.espeak import speak

pytest.importorskip("espeakng_loader", reason="needs the espeak engine (extra demo)")

SAMPLE_RATE_HZ = 16_000
EDGE_SECONDS = 0.6
COLLAR_FRAMES = 10
SENTENCES = [
    (["שלום", "לבן", "ילדה", "רוצה", "מיץ"], "he+f2", 150),
    (["הילדים", "הלכו", "לבית", "הספר", "בבוקר"], "he+m3", 180),
    (["אתמול", "ירד", "גשם", "חזק"], "he+m1", 135),
    (["המורה", "כתבה", "על", "הלוח"], "he+f4", 165),
]


def recordings(noisy: bool) -> list[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
    """Samples and the frames that hold words, silence at both ends."""
    made = []
    for number, (words, voice, rate) in enumerate(SENTENCES):
        spoken = speak(words, voice=voice, rate_wpm=rate)
        end = round(spoken.word_times[-1][1] * SAMPLE_RATE_HZ)
        samples = np.pad(spoken.samples[:end], round(EDGE_SECONDS * SAMPLE_RATE_HZ))
        rng = np.random.default_rng(number)
        samples = add_noise(telephone_band(samples), 10.0, rng) if noisy else add_noise(samples, 35.0, rng)
        truth = np.zeros(-(-len(samples) // 160), dtype=bool)
        for start, stop in spoken.word_times:
            truth[round((EDGE_SECONDS + start) * 100) : round((EDGE_SECONDS + stop) * 100)] = True
        made.append((samples.astype(np.float32), truth))
    return made


@pytest.mark.parametrize(("noisy", "least_recall"), [(False, 0.98), (True, 0.88)], ids=["clean", "noisy"])
def test_speech_is_found_and_silence_is_left_alone(noisy: bool, least_recall: float) -> None:
    found = spoken = false_alarms = silent = 0
    for samples, truth in recordings(noisy):
        mask = speech_mask(samples)
        assert len(mask) == len(truth)
        found += int((mask & truth).sum())
        spoken += int(truth.sum())
        first, last = np.flatnonzero(truth)[[0, -1]]
        edges = np.concatenate([mask[: first - COLLAR_FRAMES], mask[last + COLLAR_FRAMES :]])
        false_alarms += int(edges.sum())
        silent += len(edges)
    assert found / spoken >= least_recall
    assert false_alarms / silent <= 0.05


def test_loudness_does_not_change_what_is_speech() -> None:
    samples, _ = recordings(noisy=True)[0]
    assert (speech_mask(samples) == speech_mask(samples * np.float32(0.2))).mean() > 0.99


def test_inserted_digital_silence_does_not_turn_noise_into_speech() -> None:
    samples, _ = recordings(noisy=True)[0]
    gap = round(0.48 * SAMPLE_RATE_HZ)
    padded = speech_mask(np.pad(samples, (gap, 0)))
    assert not padded[:45].any()
    assert abs(int(padded.sum()) - int(speech_mask(samples).sum())) <= 12


def test_the_noise_ratio_tells_noisy_from_clean_recordings() -> None:
    noisy = [estimate_snr_db(samples) for samples, _ in recordings(noisy=True)]
    clean = [estimate_snr_db(samples) for samples, _ in recordings(noisy=False)]
    assert all(value is not None and 5 < value < 15 for value in noisy)
    assert all(value is not None and value > 25 for value in clean)


@pytest.mark.parametrize("num_samples", [0, 1, 159, 160, 161, 5000])
def test_short_audio_gives_one_value_per_started_frame(num_samples: int) -> None:
    samples = np.random.default_rng(0).normal(0, 0.1, num_samples).astype(np.float32)
    assert len(speech_mask(samples)) == -(-num_samples // 160)


def test_silence_is_not_speech() -> None:
    assert not speech_mask(np.zeros(16_000, dtype=np.float32)).any()
    assert estimate_snr_db(np.zeros(16_000, dtype=np.float32)) is None


def test_runs_are_half_open() -> None:
    assert runs(np.array([True, True, False, True])) == [(0, 2), (3, 4)]
    assert runs(np.zeros(3, dtype=bool)) == []
