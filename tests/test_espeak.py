"""Synthetic speech: word times that the waveform confirms, and the same samples for the same words."""

import hashlib
import multiprocessing
import re
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from caspi.speech.synthetic.espeak import pronounce, speak
from caspi.speech.synthetic.synth import lexicon

espeakng_loader = pytest.importorskip("espeakng_loader")
pytestmark = pytest.mark.espeak

SENTENCE = ("ילדה", "רוצה", "לילה", "שמש", "סליחה", "מים")
"""Words that begin and end with sound: a plosive begins with silence that no energy threshold can tell from a pause."""
BREATHY, FLUTTERING = "he+f5", "he+m1"


def digest(samples: np.ndarray) -> str:
    return hashlib.sha256(samples.tobytes()).hexdigest()


def speak_digest(voice: str) -> str:
    return digest(speak(SENTENCE, voice).samples)


def silent_stretches(samples: np.ndarray, min_seconds: float) -> list[tuple[float, float]]:
    """(start, end) in seconds of stretches 45 dB below the loudest 5 ms."""
    powers = np.array([np.mean(frame**2) for frame in np.array_split(samples, len(samples) // 80)])
    quiet = np.concatenate([[0], powers < powers.max() * 10**-4.5, [0]]).astype(int)
    edges = np.flatnonzero(np.diff(quiet)).reshape(-1, 2) * len(samples) / (len(powers) * 16_000)
    return [(start, end) for start, end in edges if end - start >= min_seconds]


def edit_distance(a: Sequence[str], b: Sequence[str]) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        previous, row = row, [i]
        for j, y in enumerate(b, start=1):
            row.append(min(previous[j] + 1, row[-1] + 1, previous[j - 1] + (x != y)))
    return row[-1]


@pytest.fixture(scope="module")
def phonemes() -> dict[str, tuple[str, ...]]:
    return {word: pronounce([word])[0] for word in lexicon()}


@pytest.mark.parametrize("voice", ["he", "he+f1", "he+m1", "he+m6"])
@pytest.mark.parametrize("rate_wpm", [130, 200])
def test_word_times_agree_with_the_pauses_in_the_waveform(voice: str, rate_wpm: int) -> None:
    spoken = speak(SENTENCE, voice, rate_wpm, word_gap=25)
    pauses = [(start, end) for start, end in silent_stretches(spoken.samples, 0.15) if start > 0.2]
    assert len(pauses) == len(SENTENCE), "one pause after each word"
    ends = [end for _, end in spoken.word_times]
    starts = [start for start, _ in spoken.word_times[1:]]
    assert np.abs(np.subtract(ends, [start for start, _ in pauses])).max() < 0.03
    assert np.abs(np.subtract(starts, [end for _, end in pauses[:-1]])).max() < 0.03


def test_samples_are_speech_at_16_khz_and_words_follow_each_other() -> None:
    spoken = speak(SENTENCE, rate_wpm=160)
    assert spoken.samples.dtype == np.float32
    assert 0.2 < np.abs(spoken.samples).max() <= 1
    flat = [t for times in spoken.word_times for t in times]
    assert flat == sorted(flat)
    assert flat[-1] <= len(spoken.samples) / 16_000
    assert all(0.15 < end - start < 1 for start, end in spoken.word_times)


def test_a_higher_rate_is_faster_and_a_higher_pitch_is_higher() -> None:
    slow, fast = (len(speak(SENTENCE, rate_wpm=rate).samples) for rate in (130, 200))
    assert 1.3 < slow / fast < 1.8
    low, high = (fundamental_hz(speak(["מים"], pitch=pitch).samples) for pitch in (20, 80))
    assert high > 1.3 * low


def fundamental_hz(samples: np.ndarray) -> float:
    middle = samples[len(samples) // 4 : len(samples) // 2]
    correlation = np.correlate(middle, middle, "full")[len(middle) - 1 :]
    return 16_000 / (60 + int(np.argmax(correlation[60:320])))


@pytest.mark.parametrize("voice", ["he", BREATHY, FLUTTERING])
def test_speech_depends_on_its_arguments_only(voice: str) -> None:
    first = speak(SENTENCE, voice)
    speak(["רכבת", "ירוקה"], "he+f4", 190, 70, 8)
    time.sleep(1.1)  # the engine seeds its noise with the time of day in seconds
    again = speak(SENTENCE, voice)
    assert digest(first.samples) == digest(again.samples)
    assert first.word_times == again.word_times


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_say_the_same(method: str) -> None:
    expected = [speak_digest(voice) for voice in (BREATHY, FLUTTERING, BREATHY)]
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.map(speak_digest, [BREATHY, FLUTTERING, BREATHY]) == expected


def test_threads_do_not_disturb_each_other() -> None:
    voices = [BREATHY, FLUTTERING, "he"] * 4
    expected = [speak_digest(voice) for voice in voices]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(speak_digest, voices)) == expected


def test_long_sentences_keep_one_time_per_word() -> None:
    words = lexicon(120)
    spoken = speak(words, rate_wpm=200)
    assert len(spoken.word_times) == 120
    assert 120 * 0.2 < spoken.word_times[-1][1] < 120 * 0.6


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        pytest.param({"words": []}, "at least one word", id="no words"),
        pytest.param({"words": "שלום"}, "list", id="a string"),
        pytest.param({"words": ["שלום", "בית ספר"]}, "'בית ספר'", id="a blank"),
        pytest.param({"words": ["שלום", ""]}, "''", id="an empty word"),
        pytest.param({"words": ["שלום", "בית־ספר"]}, "word 2, 'בית־ספר'", id="maqaf"),
        pytest.param({"words": ["צה״ל", "שלום"]}, "word 1, 'צה״ל'", id="gershayim"),
        pytest.param({"words": ["שָׁלוֹם"]}, "word 1", id="niqqud is spelt"),
        pytest.param({"words": ["..."]}, "'...'", id="nothing to say"),
        pytest.param({"words": ["שלום"], "voice": "he+nobody"}, "'nobody'", id="unknown variant"),
        pytest.param({"words": ["שלום"], "voice": "xx"}, "'xx'", id="unknown language"),
        pytest.param({"words": ["שלום"], "rate_wpm": 20}, "rate_wpm is 20", id="too slow"),
        pytest.param({"words": ["שלום"], "pitch": 101}, "pitch is 101", id="too high"),
        pytest.param({"words": ["שלום"], "word_gap": -1}, "word_gap is -1", id="negative gap"),
    ],
)
def test_what_cannot_be_spoken_is_named(arguments: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=re.escape(complaint)):
        speak(**arguments)


def test_a_refused_word_leaves_the_engine_usable() -> None:
    expected = speak_digest("he")
    with pytest.raises(ValueError, match="as one word"):
        speak(["בית־ספר"])
    assert speak_digest("he") == expected


def test_without_the_engine_the_message_says_how_to_install_it(without_espeak: None) -> None:
    with pytest.raises(ValueError, match=r"uv sync --extra demo.*make setup"):
        speak(["שלום"])


def test_an_installation_deep_in_the_file_system_speaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = speak_digest("he")
    deep = tmp_path.joinpath(*["עומק" * 10] * 3)
    deep.mkdir(parents=True)
    data = shutil.copytree(espeakng_loader.get_data_path(), deep / "espeak-ng-data")
    monkeypatch.setattr(espeakng_loader, "get_data_path", lambda: str(data))
    assert speak_digest("he") == expected


def test_every_word_of_the_lexicon_is_one_hebrew_word_of_audible_length(phonemes: dict[str, tuple[str, ...]]) -> None:
    english = [word for word, sounds in phonemes.items() if any("(" in sound for sound in sounds)]
    assert english == []
    lengths = {word: speak([word]).word_times[0] for word in lexicon()}
    assert [word for word, (start, end) in lengths.items() if end - start <= 0.15] == []


def test_the_lexicon_is_plain_unvocalised_hebrew_without_repetition() -> None:
    words = lexicon()
    assert len(words) > 400
    assert len(set(words)) == len(words)
    assert [word for word in words if not re.fullmatch("[א-ת]{2,}", word)] == []
    assert {2, 3, 4, 5, 6, 7} <= {len(word) for word in words}


def test_no_two_words_of_the_lexicon_sound_the_same(phonemes: dict[str, tuple[str, ...]]) -> None:
    spoken = ["".join(sounds).replace("'", "") for sounds in phonemes.values()]
    assert len(set(spoken)) == len(spoken)


def test_the_first_forty_words_differ_in_two_sounds_at_least(phonemes: dict[str, tuple[str, ...]]) -> None:
    plain = {word: [s.strip("',;") for s in phonemes[word]] for word in lexicon(40)}
    close = [(a, b) for a, b in combinations(plain, 2) if edit_distance(plain[a], plain[b]) < 2]
    assert close == []
