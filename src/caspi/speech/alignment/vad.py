"""Where is speech: a voice activity detector in numpy, without weights (AUDIT section 3).

Each spectral bin is compared with its own noise floor over the utterance, so steady noise, even when it is as loud as
a quiet voice, does not count as speech.
"""

import numpy as np
from numpy.typing import NDArray

from caspi.speech.corpora.audio import SAMPLE_RATE_HZ

FRAME_SECONDS = 0.01
"""Step of the speech mask."""

_HOP_SAMPLES = round(FRAME_SECONDS * SAMPLE_RATE_HZ)
_WINDOW_SAMPLES = 512
_BAND_HZ = (250.0, 3800.0)
_FLOOR_PERCENTILE = 10
_SMOOTHING_FRAMES = 5
_MIN_RISE_DB = 1.2
_RISE_FRACTION = 0.12
_MAX_GAP_FRAMES = 12
_MIN_BURST_FRAMES = 6
_PAD_BEFORE_FRAMES = 3
_PAD_AFTER_FRAMES = 4
_BLOCK_FRAMES = 6000
_MIN_POWER = 1e-10
_SILENCE_POWER = 1e-7
"""Mean power per bin of rounding noise at 16 bits, which is about 3e-8 with this window."""


def speech_mask(samples: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Mark the 10 ms frames that hold speech.

    Args:
        samples: mono audio at 16 kHz, [num_samples].

    Returns:
        [num_frames], frame i covers the time from 10 ms * i to 10 ms * (i + 1); empty for empty audio.
    """
    if len(samples) == 0:
        return np.zeros(0, dtype=bool)
    level_db, sounding = levels_above_floor_db(samples)
    low, high = np.percentile(level_db[sounding], (5, 95)) if sounding.any() else (0.0, 0.0)
    speech = sounding & (level_db > low + max(_MIN_RISE_DB, _RISE_FRACTION * (high - low)))
    for start, end in runs(~speech):
        if end - start < _MAX_GAP_FRAMES:
            speech[start:end] = True
    padded = np.zeros_like(speech)
    for start, end in runs(speech):
        if end - start >= _MIN_BURST_FRAMES:
            padded[max(0, start - _PAD_BEFORE_FRAMES) : end + _PAD_AFTER_FRAMES] = True
    return padded


def estimate_snr_db(samples: NDArray[np.float32], speech: NDArray[np.bool_] | None = None) -> float | None:
    """Mean power on speech frames over mean power off speech, in dB; None if either kind of frame is missing."""
    if len(samples) == 0:
        return None
    mask = speech_mask(samples) if speech is None else speech
    frames = np.zeros(len(mask) * _HOP_SAMPLES, dtype=np.float64)
    frames[: min(len(samples), len(frames))] = samples[: len(frames)]
    power = np.square(frames).reshape(-1, _HOP_SAMPLES).mean(axis=1)
    if mask.all() or not mask.any():
        return None
    noise = max(float(power[~mask].mean()), _MIN_POWER)
    return float(10 * np.log10(max(float(power[mask].mean()), _MIN_POWER) / noise))


def levels_above_floor_db(samples: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Mean over spectral bins of the level above that bin's noise floor, smoothed, and which frames hold any sound.

    Digital silence, as editors insert it, says nothing about the noise of the recording and is left out of the floor.

    Returns:
        [num_frames] dB and [num_frames].
    """
    power = _band_power(samples)
    sounding = power.mean(axis=1) > _SILENCE_POWER
    floor = np.percentile(power[sounding] if sounding.any() else power, _FLOOR_PERCENTILE, axis=0) + _SILENCE_POWER
    level_db = 10 * np.log10(np.maximum(power / floor, 1e-3)).mean(axis=1)
    kernel = np.ones(min(_SMOOTHING_FRAMES, len(level_db)))
    weight = np.convolve(np.ones(len(level_db)), kernel, "same")
    return np.convolve(level_db, kernel, "same") / weight, sounding


def runs(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Maximal stretches of True as half-open index ranges."""
    edges = np.diff(np.concatenate(([0], mask.astype(np.int8), [0])))
    return list(zip(np.flatnonzero(edges == 1).tolist(), np.flatnonzero(edges == -1).tolist(), strict=True))


def _band_power(samples: NDArray[np.float32]) -> NDArray[np.float64]:
    """Power spectrogram inside the voice band, [num_frames, num_bins]; window of frame i is centred on the frame."""
    num_frames = -(-len(samples) // _HOP_SAMPLES)
    before = (_WINDOW_SAMPLES - _HOP_SAMPLES) // 2
    padded = np.pad(
        samples.astype(np.float64),
        (before, _WINDOW_SAMPLES + _HOP_SAMPLES),
        mode="reflect" if len(samples) > _WINDOW_SAMPLES + _HOP_SAMPLES else "constant",
    )
    windows = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW_SAMPLES)[::_HOP_SAMPLES][:num_frames]
    frequency = np.fft.rfftfreq(_WINDOW_SAMPLES, 1 / SAMPLE_RATE_HZ)
    band = (frequency >= _BAND_HZ[0]) & (frequency <= _BAND_HZ[1])
    shape = np.hanning(_WINDOW_SAMPLES)
    blocks = [
        np.square(np.abs(np.fft.rfft(windows[start : start + _BLOCK_FRAMES] * shape, axis=1)[:, band]))
        for start in range(0, num_frames, _BLOCK_FRAMES)
    ]
    return np.concatenate(blocks)
