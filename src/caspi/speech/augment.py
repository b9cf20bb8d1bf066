"""What a channel does to speech: telephone band, background noise, a lossy codec. Pure functions on 16 kHz samples.

Every function takes and gives float32 [num_samples], the same number of them, and shifts nothing in time, so that word
times stay true.
"""

import io
from typing import Literal

import numpy as np
import soundfile

from caspi.records import RunFailed
from caspi.speech.corpora.audio import SAMPLE_RATE_HZ

TELEPHONE_BAND_HZ = (300.0, 3400.0)
FULL_BAND_HZ = (20.0, SAMPLE_RATE_HZ / 2)

Codec = Literal["opus", "mp3"]

# Container, encoding and libsndfile compression level: about 20 kbit/s for Opus (a voice message), 25 for MP3.
CODECS: dict[Codec, tuple[str, str, float]] = {
    "opus": ("OGG", "OPUS", 0.95),
    "mp3": ("MP3", "MPEG_LAYER_III", 0.9),
}

FILTER_ORDER = 8
FILTER_TAIL_SAMPLES = 1600
"""Silence appended so that the end does not ring into the beginning."""

ACTIVE_FRAME_SAMPLES = 320
ACTIVE_BELOW_PEAK_DB = 35.0


def telephone_band(samples: np.ndarray) -> np.ndarray:
    """Keep 300 to 3400 Hz: a Butterworth band forwards and backwards, -6 dB at both edges, no delay."""
    num_padded = power_of_two_from(len(samples) + FILTER_TAIL_SAMPLES)
    hz = np.fft.rfftfreq(num_padded, 1 / SAMPLE_RATE_HZ)[1:]
    low_hz, high_hz = TELEPHONE_BAND_HZ
    detuning = (hz**2 - low_hz * high_hz) / (hz * (high_hz - low_hz))
    gain = np.concatenate([[0.0], 1 / (1 + detuning ** (2 * FILTER_ORDER))])
    return np.fft.irfft(np.fft.rfft(samples, num_padded) * gain, num_padded)[: len(samples)].astype(np.float32)


def power_of_two_from(num_samples: int) -> int:
    """The power of two that is not smaller: transforms of other lengths can be very slow."""
    return 1 << max(num_samples - 1, 1).bit_length()


def active_power(samples: np.ndarray) -> float:
    """Mean power of the frames of 20 ms that are at most 35 dB below the loudest one, so that pauses do not count.

    Raises:
        ValueError: there is no sound at all.
    """
    frames = np.pad(samples.astype(np.float64), (0, -len(samples) % ACTIVE_FRAME_SAMPLES))
    powers = np.mean(frames.reshape(-1, ACTIVE_FRAME_SAMPLES) ** 2, axis=1)
    if not powers.size or powers.max() == 0:
        raise ValueError(f"{len(samples)} samples hold no sound: a level relative to speech cannot be set")
    return float(powers[powers >= powers.max() * 10 ** (-ACTIVE_BELOW_PEAK_DB / 10)].mean())


def noise_floor(
    speech: np.ndarray, snr_db: float, rng: np.random.Generator, band_hz: tuple[float, float] = FULL_BAND_HZ
) -> np.ndarray:
    """Pink noise inside a band, `snr_db` below the active speech.

    Raises:
        ValueError: there is no sound in `speech`, or it is shorter than one period of the band.
    """
    power = active_power(speech) / 10 ** (snr_db / 10)
    num_samples = power_of_two_from(len(speech))
    frequencies = np.fft.rfftfreq(num_samples, 1 / SAMPLE_RATE_HZ)
    inside = (frequencies >= band_hz[0]) & (frequencies <= band_hz[1])
    if not inside.any():
        raise ValueError(f"{len(speech)} samples are too short for noise between {band_hz[0]} and {band_hz[1]} Hz")
    spectrum = np.fft.rfft(rng.standard_normal(num_samples))
    spectrum[inside] /= np.sqrt(frequencies[inside])
    spectrum[~inside] = 0
    noise = np.fft.irfft(spectrum, num_samples)[: len(speech)]
    return (noise * np.sqrt(power / np.mean(noise**2))).astype(np.float32)


def add_noise(
    samples: np.ndarray, snr_db: float, rng: np.random.Generator, band_hz: tuple[float, float] = FULL_BAND_HZ
) -> np.ndarray:
    """Add pink noise; the ratio is that of active speech (pauses left out) to noise, both inside the band.

    Raises:
        ValueError: there is no sound to set the ratio against.
    """
    return samples + noise_floor(samples, snr_db, rng, band_hz)


def codec_round_trip(samples: np.ndarray, codec: Codec) -> np.ndarray:
    """Encode at a low bit rate and decode. libsndfile removes the codecs' delay and padding itself (tested).

    Raises:
        RunFailed: the installed libsndfile gave back another number of samples or another rate.
    """
    container, encoding, level = CODECS[codec]
    if not len(samples):
        return samples.copy()
    file = io.BytesIO()
    soundfile.write(file, samples, SAMPLE_RATE_HZ, format=container, subtype=encoding, compression_level=level)
    file.seek(0)
    decoded, rate_hz = soundfile.read(file, dtype="float32")
    if (len(decoded), rate_hz) != (len(samples), SAMPLE_RATE_HZ):
        raise RunFailed(
            f"{codec} round trip gave {len(decoded)} samples at {rate_hz} Hz for {len(samples)} samples: "
            f"libsndfile {soundfile.__libsndfile_version__} differs from the tested 1.2.2"
        )
    return decoded
