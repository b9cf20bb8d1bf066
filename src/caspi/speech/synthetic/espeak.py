"""Hebrew speech with word times, from the espeak-ng engine that the PyPI package `espeakng_loader` carries.

The engine keeps state that outlives an utterance (flutter and wave phases, which neither seeding nor initialising
again resets), so that what it says depends on what it said before. Each call therefore loads the library afresh, seeds
it and unloads it: 5 ms that make an utterance depend on its arguments alone and leave a forked process nothing to
share.
"""

import ctypes
import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soxr

from caspi.speech.corpora.audio import SAMPLE_RATE_HZ

# espeak-ng's speak_lib.h
OUTPUT_SYNCHRONOUS = 2
INITIALIZE_PHONEME_EVENTS = 1 << 0
INITIALIZE_DONT_EXIT = 1 << 15
CHARS_UTF8 = 1
POSITION_CHARACTER = 1
EVENT_END_OF_LIST = 0
EVENT_WORD = 1
EVENT_PHONEME = 7
PARAMETER_RATE = 1
PARAMETER_PITCH = 3
PARAMETER_WORD_GAP = 7
RATES_WPM = range(80, 451)

MAX_DATA_PATH_BYTES = 120
"""The engine keeps 160 for the path of any file of its data."""
RANDOM_SEED = 1
"""Breathy voices draw noise; the engine would seed it with the time of day."""

_one_at_a_time = threading.Lock()
os.register_at_fork(
    before=_one_at_a_time.acquire, after_in_parent=_one_at_a_time.release, after_in_child=_one_at_a_time.release
)


class SpokenWords(NamedTuple):
    """samples: float32 [num_samples] at 16 kHz, within -1..1. word_times: (start, end) of each word in seconds."""

    samples: np.ndarray
    word_times: list[tuple[float, float]]


class _Event(NamedTuple):
    type: int
    text_position: int  # characters, from 1
    sample: int
    phoneme: str


class _Speech(NamedTuple):
    samples: np.ndarray  # int16
    sample_rate_hz: int
    words: list[list[_Event]]  # per word: its WORD event, then its phonemes and the pauses after it


class _EventId(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _EventStruct(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_EventStruct))


def speak(
    words: Sequence[str], voice: str = "he", rate_wpm: int = 160, pitch: int = 50, word_gap: int = 0
) -> SpokenWords:
    """Speak words as one sentence. The same arguments give the same samples, whatever was spoken before.

    Args:
        words: at least one; each must be read as exactly one word (no maqaf, niqqud, blanks or punctuation inside).
        voice: language and variant, for example `he+f3`.
        rate_wpm: words per minute, 80 to 450.
        pitch: 0 to 100, 50 is the voice's own.
        word_gap: extra pause between words, in units of 10 ms at the default rate.

    A word ends at the first pause after it, or where the next word begins.

    Raises:
        ValueError: the engine is not installed, voice or a number is not one it knows, or a word is not spoken as
            one word; the message names it.
    """
    speech = _synthesize(words, voice, rate_wpm, pitch, word_gap)
    starts = [events[0].sample for events in speech.words]
    limits = [*starts[1:], len(speech.samples)]
    ends = [_word_end(events, limit) for events, limit in zip(speech.words, limits, strict=True)]
    times = [(s / speech.sample_rate_hz, e / speech.sample_rate_hz) for s, e in zip(starts, ends, strict=True)]
    samples = soxr.resample(speech.samples.astype(np.float32) / 32768, speech.sample_rate_hz, SAMPLE_RATE_HZ)
    return SpokenWords(np.clip(samples, -1, 1).astype(np.float32), times)


def pronounce(words: Sequence[str], voice: str = "he") -> list[tuple[str, ...]]:
    """The phonemes of each word in espeak-ng's ASCII notation, pauses left out; `(en)` marks a switch to English.

    Raises:
        ValueError: as `speak`.
    """
    speech = _synthesize(words, voice, rate_wpm=160, pitch=50, word_gap=0)
    return [tuple(e.phoneme for e in events[1:] if not e.phoneme.startswith("_")) for events in speech.words]


def _word_end(events: list[_Event], limit: int) -> int:
    pauses = (event.sample for event in events[1:] if event.phoneme.startswith("_") and event.sample > events[0].sample)
    return min(next(pauses, limit), limit)


def _synthesize(words: Sequence[str], voice: str, rate_wpm: int, pitch: int, word_gap: int) -> _Speech:
    _check(words, rate_wpm, pitch, word_gap)
    text = " ".join(words)
    with _one_at_a_time, _engine() as (library, sample_rate_hz):
        _set_voice(library, voice)
        for parameter, value in ((PARAMETER_RATE, rate_wpm), (PARAMETER_PITCH, pitch), (PARAMETER_WORD_GAP, word_gap)):
            _require_ok(library.espeak_SetParameter(parameter, value, 0), f"parameter {parameter} = {value}")
        samples, events = _run(library, text)
    return _Speech(samples, sample_rate_hz, _by_word(words, events))


def _check(words: Sequence[str], rate_wpm: int, pitch: int, word_gap: int) -> None:
    if isinstance(words, str) or not words:
        raise ValueError(f"speak needs a list of at least one word, got {words!r}")
    for word in words:
        if word.split() != [word]:
            raise ValueError(f"cannot speak {word!r} as one word: it is empty or holds blanks")
    if rate_wpm not in RATES_WPM:
        raise ValueError(f"rate_wpm is {rate_wpm}, expected a whole number from {RATES_WPM[0]} to {RATES_WPM[-1]}")
    if not 0 <= pitch <= 100:
        raise ValueError(f"pitch is {pitch}, expected 0 to 100")
    if word_gap < 0:
        raise ValueError(f"word_gap is {word_gap}, expected 0 or more")


@contextmanager
def _engine() -> Iterator[tuple[ctypes.CDLL, int]]:
    """A freshly loaded engine and its sample rate; unloaded afterwards."""
    import _ctypes

    try:
        import espeakng_loader
    except ImportError:
        raise ValueError(
            "synthetic speech needs the espeak-ng engine, which is not installed: "
            "run `uv sync --extra demo` or `make setup`"
        ) from None
    path = espeakng_loader.get_library_path()
    if _is_loaded(path):
        raise ValueError(f"{path} was loaded by other code in this process: speech would depend on what that code said")
    library = ctypes.CDLL(path)
    try:
        with _short_path(espeakng_loader.get_data_path()) as data:
            sample_rate_hz = library.espeak_Initialize(
                OUTPUT_SYNCHRONOUS, 0, os.fsencode(data), INITIALIZE_PHONEME_EVENTS | INITIALIZE_DONT_EXIT
            )
            if sample_rate_hz <= 0:
                raise ValueError(f"espeak-ng cannot read its data in {data} (error {sample_rate_hz})")
            library.espeak_ng_SetRandSeed(ctypes.c_long(RANDOM_SEED))
            yield library, sample_rate_hz
            library.espeak_Terminate()
    finally:
        _ctypes.dlclose(library._handle)


@contextmanager
def _short_path(path: str) -> Iterator[str]:
    """The path itself, or a link to it where the engine would cut it off."""
    if len(os.fsencode(path)) <= MAX_DATA_PATH_BYTES:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / "data"
        link.symlink_to(path)
        yield str(link)


def _is_loaded(path: str) -> bool:
    import _ctypes

    try:
        handle = _ctypes.dlopen(path, os.RTLD_NOLOAD | os.RTLD_LAZY)
    except OSError:
        return False
    _ctypes.dlclose(handle)
    return True


def _set_voice(library: ctypes.CDLL, voice: str) -> None:
    import espeakng_loader

    variant = voice.partition("+")[2]
    if "+" in voice and not (Path(espeakng_loader.get_data_path()) / "voices" / "!v" / variant).is_file():
        raise ValueError(f"espeak-ng has no voice variant {variant!r} (of {voice!r}); known are for example f1, m3")
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        raise ValueError(f"espeak-ng has no voice {voice!r}; Hebrew is `he`, its variants are for example `he+f1`")


def _run(library: ctypes.CDLL, text: str) -> tuple[np.ndarray, list[_Event]]:
    """Speak a text: int16 samples and all events."""
    chunks: list[np.ndarray] = []
    events: list[_Event] = []

    def collect(wave: Any, num_samples: int, event_list: Any) -> int:
        if wave and num_samples > 0:
            chunks.append(np.ctypeslib.as_array(wave, shape=(num_samples,)).copy())
        index = 0
        while event_list[index].type != EVENT_END_OF_LIST:
            event = event_list[index]
            phoneme = event.id.string.decode("utf-8", "replace") if event.type == EVENT_PHONEME else ""
            events.append(_Event(event.type, event.text_position, event.sample, phoneme))
            index += 1
        return 0

    callback = _Callback(collect)
    library.espeak_SetSynthCallback(callback)
    encoded = text.encode("utf-8")
    size = ctypes.c_size_t(len(encoded) + 1)
    _require_ok(library.espeak_Synth(encoded, size, 0, POSITION_CHARACTER, 0, CHARS_UTF8, None, None), f"text {text!r}")
    _require_ok(library.espeak_Synchronize(), f"text {text!r}")
    return np.concatenate(chunks) if chunks else np.zeros(0, np.int16), events


def _require_ok(code: int, what: str) -> None:
    if code != 0:
        raise ValueError(f"espeak-ng refused {what} (error {code})")


def _by_word(words: Sequence[str], events: list[_Event]) -> list[list[_Event]]:
    """Group the events by word; each word must have exactly one WORD event.

    Raises:
        ValueError: a word is skipped, spelt or split.
    """
    spoken: list[list[_Event]] = []
    for event in events:
        if event.type == EVENT_WORD:
            spoken.append([event])
        elif event.type == EVENT_PHONEME and spoken:
            spoken[-1].append(event)
    position = 1
    for index, word in enumerate(words):
        inside = sum(position <= group[0].text_position < position + len(word) for group in spoken)
        if inside != 1:
            raise ValueError(f"espeak-ng does not speak word {index + 1}, {word!r}, as one word but as {inside}")
        position += len(word) + 1
    if len(spoken) != len(words):
        raise ValueError(f"espeak-ng spoke {len(spoken)} words of {' '.join(words)!r}, expected {len(words)}")
    return spoken
