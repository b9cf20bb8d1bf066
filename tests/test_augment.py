"""Channels: band, noise level and codec measured with other tools than those that made them; nothing moves in time."""

import numpy as np
import pytest
from scipy.signal import correlate, welch

from caspi.speech.augment import CODECS, Codec, active_power, add_noise, codec_round_trip, noise_floor, telephone_band

RATE_HZ = 16_000


def talk(seconds: float = 3.0, seed: int = 0) -> np.ndarray:
    """White bursts of 0.3 s with pauses of 0.3 s: RMS 0.1 while active."""
    samples = np.random.default_rng(seed).standard_normal(int(seconds * RATE_HZ)) * 0.1
    active = (np.arange(len(samples)) // (0.3 * RATE_HZ)) % 2 == 0
    return (samples * active).astype(np.float32)


def band_db(samples: np.ndarray, low_hz: float, high_hz: float) -> float:
    frequencies, power = welch(samples, RATE_HZ, nperseg=2048)
    return float(10 * np.log10(power[(frequencies >= low_hz) & (frequencies <= high_hz)].mean()))


def lag_samples(late: np.ndarray, early: np.ndarray) -> int:
    return int(np.argmax(correlate(late.astype(np.float64), early.astype(np.float64), "full"))) - (len(early) - 1)


@pytest.mark.parametrize(
    ("low_hz", "high_hz", "least_db", "most_db"),
    [(20, 150, -200, -35), (500, 3000, -0.5, 0.5), (4200, 8000, -200, -35)],
    ids=["rumble goes", "speech stays", "hiss goes"],
)
def test_a_telephone_passes_300_to_3400_hz(low_hz: float, high_hz: float, least_db: float, most_db: float) -> None:
    noise = (np.random.default_rng(1).standard_normal(10 * RATE_HZ) * 0.1).astype(np.float32)
    change_db = band_db(telephone_band(noise), low_hz, high_hz) - band_db(noise, low_hz, high_hz)
    assert least_db < change_db < most_db


def test_a_telephone_delays_nothing() -> None:
    assert lag_samples(telephone_band(talk()), talk()) == 0


@pytest.mark.parametrize("num_samples", [0, 1, 7, 500])
def test_short_signals_keep_their_length(num_samples: int) -> None:
    samples = talk()[:num_samples]
    assert telephone_band(samples).shape == samples.shape
    assert all(codec_round_trip(samples, codec).shape == samples.shape for codec in CODECS)


@pytest.mark.parametrize("snr_db", [0.0, 8.0, 15.0, 35.0])
def test_noise_has_the_asked_level_below_active_speech(snr_db: float) -> None:
    """The bursts have a power of 0.01 by construction, whatever the pauses."""
    noise = add_noise(talk(), snr_db, np.random.default_rng(2)) - talk()
    assert 10 * np.log10(0.01 / np.mean(noise.astype(np.float64) ** 2)) == pytest.approx(snr_db, abs=0.2)


def test_pauses_do_not_lower_the_measured_speech_level() -> None:
    sparse = np.concatenate([talk(), np.zeros(9 * RATE_HZ, np.float32)])
    assert active_power(sparse) == pytest.approx(active_power(talk()), rel=0.02)
    assert np.mean(sparse**2) < 0.3 * active_power(sparse)


def test_noise_is_pink_and_stays_in_its_band() -> None:
    long = talk(20)
    pink = noise_floor(long, 10, np.random.default_rng(3))
    octaves = [band_db(pink, low, 2 * low) for low in (100, 200, 400, 800, 1600, 3200)]
    assert np.diff(octaves) == pytest.approx([-3.01] * 5, abs=0.6)
    narrow = noise_floor(long, 10, np.random.default_rng(3), (300, 3400))
    assert band_db(narrow, 20, 200) < band_db(narrow, 500, 1000) - 40
    assert np.mean(narrow**2) == pytest.approx(np.mean(pink**2), rel=0.01)


def test_noise_depends_on_its_generator_only() -> None:
    first, again, other = (add_noise(talk(), 10, np.random.default_rng(seed)) for seed in (4, 4, 5))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_noise_relative_to_silence_is_refused() -> None:
    for silence in (np.zeros(0, np.float32), np.zeros(1000, np.float32)):
        with pytest.raises(ValueError, match="no sound"):
            add_noise(silence, 10, np.random.default_rng(0))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("num_samples", [4001, 16_000, 47_999])
def test_a_codec_keeps_length_and_time(codec: Codec, num_samples: int) -> None:
    samples = telephone_band(talk())[:num_samples]
    decoded = codec_round_trip(samples, codec)
    assert decoded.dtype == np.float32
    assert len(decoded) == num_samples
    assert lag_samples(decoded, samples) == 0


@pytest.mark.parametrize("codec", CODECS)
def test_a_codec_loses_something_but_not_the_signal(codec: Codec) -> None:
    samples = telephone_band(talk())
    error = codec_round_trip(samples, codec) - samples
    ratio_db = 10 * np.log10(np.mean(samples**2) / np.mean(error**2))
    assert 2 < ratio_db < 30
    assert np.array_equal(codec_round_trip(samples, codec), codec_round_trip(samples, codec))


def test_inputs_are_left_as_they_are() -> None:
    samples, before = talk(), talk()
    telephone_band(samples)
    add_noise(samples, 10, np.random.default_rng(0))
    codec_round_trip(samples, "opus")
    assert np.array_equal(samples, before)
