"""Clips from which a forced aligner cannot learn to guess: words with exact times, and transcripts of some of them.

Good times can be had without listening to a word: letters so far times a rate, or the k-th stretch of sound. So pauses
and speeds are random from word to word, clips begin with any amount of silence, words are spoken that the transcript
lacks, and transcripts hold words that are not spoken, which have no time.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from caspi.config import SplicedClips
from caspi.speech.corpora.audio import SAMPLE_RATE_HZ
from caspi.speech.synthetic.synth import SyntheticUtterance

FADE_SAMPLES = 80
NOISE_PERCENTILE = 50
GAUSSIAN_MEDIAN = 0.6745
"""Median of |x| over the standard deviation of normal noise."""

Samples = NDArray[np.float32]
Times = tuple[float, float]


class SplicedClip(NamedTuple):
    samples: Samples
    """[num_samples] at 16 kHz."""
    words: tuple[str, ...]
    """The transcript."""
    times: tuple[Times | None, ...]
    """Start and end of each word of the transcript in seconds; None: it is not spoken."""
    spoken: tuple[str, ...]
    """All words that can be heard, in order."""


class Speech(NamedTuple):
    samples: Samples
    words: tuple[str, ...]
    times: tuple[Times, ...]


class WordBank:
    """Spoken sentences of several speakers, and clips made from them."""

    def __init__(
        self, sentences: Sequence[SyntheticUtterance], vocabulary: Sequence[str], settings: SplicedClips
    ) -> None:
        self.sentences = sentences
        self.vocabulary = vocabulary
        self.settings = settings
        self._by_speaker: dict[str, list[SyntheticUtterance]] = {}
        for sentence in sentences:
            self._by_speaker.setdefault(sentence.group_id, []).append(sentence)

    def draw(self, num_spoken: int, complete_fraction: float, rng: np.random.Generator) -> SplicedClip:
        """A clip of `num_spoken` words.

        Args:
            complete_fraction: probability that the transcript holds every spoken word; else only some of them.
        """
        settings = self.settings
        sentence = self.sentences[int(rng.integers(len(self.sentences)))]
        if rng.random() < settings.sentence_fraction:
            speech = self._stretch_of(sentence, num_spoken, rng)
        else:
            speech = self._spliced(sentence, num_spoken, rng)
        lead = self._silence(settings.lead_fraction, settings.max_lead_seconds, sentence.samples, rng)
        tail = self._silence(1.0, settings.max_tail_seconds, sentence.samples, rng)
        gain = 10 ** (rng.uniform(-settings.level_spread_db, settings.level_spread_db) / 20)
        samples = np.concatenate([lead, speech.samples, tail]) * np.float32(gain)
        shift = len(lead) / SAMPLE_RATE_HZ
        times = tuple((start + shift, end + shift) for start, end in speech.times)
        kept = range(num_spoken) if rng.random() < complete_fraction else _some(num_spoken, rng)
        transcript: list[tuple[str, Times | None]] = [(speech.words[index], times[index]) for index in kept]
        if rng.random() < settings.foreign_fraction:
            self._insert_foreign(transcript, speech.words, rng)
        return SplicedClip(
            samples, tuple(word for word, _ in transcript), tuple(time for _, time in transcript), speech.words
        )

    def _stretch_of(self, sentence: SyntheticUtterance, num_words: int, rng: np.random.Generator) -> Speech:
        """Successive words as they were spoken, faster or slower."""
        first = int(rng.integers(len(sentence.words) - num_words + 1))
        times = sentence.word_times[first : first + num_words]
        begin = times[0][0]
        speed = rng.uniform(*self.settings.sentence_speeds)
        samples = with_speed(_cut(sentence.samples, begin, times[-1][1]), speed)
        moved = tuple(((start - begin) / speed, (end - begin) / speed) for start, end in times)
        return Speech(samples, sentence.words[first : first + num_words], moved)

    def _spliced(self, sentence: SyntheticUtterance, num_words: int, rng: np.random.Generator) -> Speech:
        """Single words of one speaker, each with its own speed, with pauses or without."""
        own = self._by_speaker[sentence.group_id]
        settings = self.settings
        has_pauses = rng.random() < settings.pause_fraction
        parts: list[Samples] = []
        words, times, place = [], [], 0
        for _ in range(num_words):
            source = own[int(rng.integers(len(own)))]
            index = int(rng.integers(len(source.words)))
            word = _faded(
                with_speed(_cut(source.samples, *source.word_times[index]), rng.uniform(*settings.word_speeds))
            )
            words.append(source.words[index])
            times.append((place / SAMPLE_RATE_HZ, (place + len(word)) / SAMPLE_RATE_HZ))
            pause = self._silence(float(has_pauses), settings.max_pause_seconds, sentence.samples, rng)
            parts += [word, pause]
            place += len(word) + len(pause)
        return Speech(np.concatenate(parts), tuple(words), tuple(times))

    def _silence(self, fraction: float, max_seconds: float, like: Samples, rng: np.random.Generator) -> Samples:
        """Nothing, or noise as loud as a clip is before its first word."""
        if rng.random() >= fraction:
            return np.zeros(0, dtype=np.float32)
        edge = np.abs(like[: round(self.settings.noise_seconds * SAMPLE_RATE_HZ)])
        level = np.percentile(edge, NOISE_PERCENTILE) / GAUSSIAN_MEDIAN
        return (level * rng.standard_normal(round(rng.uniform(0, max_seconds) * SAMPLE_RATE_HZ))).astype(np.float32)

    def _insert_foreign(
        self, transcript: list[tuple[str, Times | None]], spoken: Sequence[str], rng: np.random.Generator
    ) -> None:
        foreign = [word for word in self.vocabulary if word not in spoken]
        for _ in range(int(rng.integers(1, max(2, len(transcript))))):
            word = foreign[int(rng.integers(len(foreign)))]
            transcript.insert(int(rng.integers(len(transcript) + 1)), (word, None))


def with_speed(samples: Samples, speed: float) -> Samples:
    """Faster or slower, the pitch with it, by linear interpolation."""
    places = np.linspace(0, len(samples) - 1, max(2, round(len(samples) / speed)))
    return np.interp(places, np.arange(len(samples)), samples).astype(np.float32)


def _some(num_words: int, rng: np.random.Generator) -> list[int]:
    """An ordered part of the words: often at most half of them, so that most of what is heard has no text."""
    most = num_words if rng.random() < 0.5 else max(1, num_words // 2)
    count = int(rng.integers(1, most + 1))
    return sorted(rng.choice(num_words, count, replace=False).tolist())


def _cut(samples: Samples, start_seconds: float, end_seconds: float) -> Samples:
    return samples[round(start_seconds * SAMPLE_RATE_HZ) : round(end_seconds * SAMPLE_RATE_HZ)]


def _faded(samples: Samples) -> Samples:
    """Without the click of a cut."""
    count = min(FADE_SAMPLES, len(samples) // 2)
    shape = np.ones(len(samples), dtype=np.float32)
    shape[:count] = np.linspace(0, 1, count)
    shape[len(samples) - count :] = np.linspace(1, 0, count)
    return samples * shape
