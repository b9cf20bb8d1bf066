"""Synthetic Hebrew utterances whose words and word times are known: what is said, by whom, through which channel.

A plan is cheap and made in order; rendering it depends on the plan alone, whose randomness is seeded by (seed, purpose,
id), so that utterances can be rendered in any order and in any process with the same result.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal, NamedTuple, get_args

import numpy as np

from caspi.config import SyntheticSpeech
from caspi.records import RunFailed
from caspi.speech.augment import (
    CODECS,
    active_power,
    codec_round_trip,
    noise_floor,
    telephone_band,
)
from caspi.speech.corpora.audio import SAMPLE_RATE_HZ
from caspi.speech.seeds import seeded_generator
from caspi.speech.synthetic.espeak import SpokenWords, speak

Domain = Literal["kan_clean", "whatsapp_noisy", "long_tail"]
Split = Literal["train", "validation", "test"]
Defect = Literal["wrong_transcript", "dropped_words", "extra_words", "cut_audio", "silence", "corrupt_file"]

SIDES: tuple[Split, ...] = ("train",) * 7 + ("validation",) + ("test",) * 2
"""Every sentence belongs to one split for good, by its hash: 70, 10 and 20 %."""
MAX_DRAWS = 1000
LONG_TAIL_WORDS_PER_SECOND = 4
"""More than the fastest voice speaks; what does not fit is left unspoken."""
POINTS = "\u05b7\u05b8\u05b4\u05b6\u05b5\u05b9"


class Speaker(NamedTuple):
    id: str
    voice: str
    pitch: int
    rate_wpm: int


@dataclass(frozen=True)
class UtterancePlan:
    """What will be said; `long_tail` plans hold more words than will be spoken."""

    id: str
    words: tuple[str, ...]
    domain: Domain
    speaker: Speaker
    split: Split
    source: str
    seed: int
    vocabulary_size: int | None
    decorated: bool = False
    """Write the text with punctuation, quotes, maqaf or niqqud, which normalisation must deal with."""
    defect: Defect | None = None


@dataclass(frozen=True)
class SyntheticUtterance:
    """Samples are float32 [num_samples] at 16 kHz; words and their times in seconds are what can be heard."""

    id: str
    words: tuple[str, ...]
    text: str
    samples: np.ndarray
    word_times: tuple[tuple[float, float], ...]
    domain: Domain
    group_id: str
    """The speaker."""
    split: Split
    source: str
    defect: Defect | None = None
    detail: str = ""


@cache
def lexicon(num_words: int | None = None) -> tuple[str, ...]:
    """The first words of the lexicon that ships: unvocalised Hebrew, no two sound the same, the first ones least alike.

    Raises:
        ValueError: more words are asked for than there are.
    """
    file = resources.files("caspi.speech.synthetic").joinpath("lexicon_he.txt")
    words = tuple(file.read_text(encoding="utf-8").split())
    if num_words is not None and not 1 <= num_words <= len(words):
        raise ValueError(f"a vocabulary of {num_words} words was asked for; the lexicon has {len(words)}")
    return words[:num_words]


def draw_speakers(
    group: str, voices: Sequence[str], per_voice: int, settings: SyntheticSpeech, seed: int
) -> list[Speaker]:
    """Speakers of a group; ids of different groups differ, so that no speaker is in two of them."""
    speakers = []
    for voice in voices:
        for number in range(per_voice):
            speaker_id = f"{group}-{voice.partition('+')[2] or voice}-{number}"
            rng = seeded_generator(seed, "speaker", speaker_id)
            pitch, rate = (int(rng.integers(low, high + 1)) for low, high in (settings.pitch, settings.rate_wpm))
            speakers.append(Speaker(speaker_id, voice, pitch, rate))
    return speakers


def side_of(words: Sequence[str]) -> Split:
    """The split a sentence belongs to; a single word is vocabulary and belongs to training."""
    if len(words) == 1:
        return "train"
    return SIDES[int(hashlib.sha256(" ".join(words).encode()).hexdigest()[:8], 16) % len(SIDES)]


def draw_sentence(rng: np.random.Generator, vocabulary: Sequence[str], num_words: int, split: Split) -> tuple[str, ...]:
    """Random words, none twice in a row, that together belong to a split.

    Raises:
        ValueError: no such sentence was found; single words are for training only.
    """
    for _ in range(MAX_DRAWS):
        words: list[str] = []
        while len(words) < num_words:
            word = str(vocabulary[int(rng.integers(len(vocabulary)))])
            if len(vocabulary) == 1 or word != (words[-1] if words else None):
                words.append(word)
        if side_of(words) == split:
            return tuple(words)
    raise ValueError(f"no {split} sentence of {num_words} words among {len(vocabulary)} words")


def plan_utterances(
    source: str,
    num_by_domain: Mapping[Domain, int],
    speakers: Sequence[Speaker],
    num_words: tuple[int, int],
    *,
    vocabulary_size: int | None,
    split: Split,
    seed: int,
    settings: SyntheticSpeech,
    decorated_fraction: float = 0.0,
) -> list[UtterancePlan]:
    """Plan utterances with ids `SOURCE-00000` on, domains mixed, sentences of `num_words` (both ends included)."""
    domains = [domain for domain in get_args(Domain) for _ in range(num_by_domain.get(domain, 0))]
    order = seeded_generator(seed, "domains", source).permutation(len(domains))
    plans = []
    for number, position in enumerate(order):
        utterance_id = f"{source}-{number:05d}"
        domain = domains[position]
        rng = seeded_generator(seed, "sentence", utterance_id)
        speaker = speakers[int(rng.integers(len(speakers)))]
        length = int(rng.integers(num_words[0], num_words[1] + 1))
        if domain == "long_tail":
            length = int(settings.long_tail_seconds[1] * LONG_TAIL_WORDS_PER_SECOND)
        words = draw_sentence(rng, lexicon(vocabulary_size), length, split)
        decorated = bool(rng.random() < decorated_fraction)
        plans.append(
            UtterancePlan(utterance_id, words, domain, speaker, split, source, seed, vocabulary_size, decorated)
        )
    return plans


def render(plan: UtterancePlan, settings: SyntheticSpeech, with_speech: bool = True) -> SyntheticUtterance:
    """Speak a plan and send it through its domain's channel, without its defect.

    Without speech only the noise of the same recording is left.
    """
    rng = seeded_generator(plan.seed, "voice", plan.id)
    lead, tail = (round(rng.uniform(*settings.edge_silence_seconds) * SAMPLE_RATE_HZ) for _ in range(2))
    level_dbfs = rng.uniform(*settings.level_dbfs)
    words, spoken = speak_plan(plan, settings, rng, (lead + tail) / SAMPLE_RATE_HZ)
    end = round(spoken.word_times[-1][1] * SAMPLE_RATE_HZ)
    speech = np.zeros(lead + end + tail, np.float32)
    heard = spoken.samples[: end + tail]
    speech[lead : lead + len(heard)] = heard
    speech *= 10 ** (level_dbfs / 20) / np.sqrt(active_power(speech))
    offset = lead / SAMPLE_RATE_HZ
    return SyntheticUtterance(
        id=plan.id,
        words=words,
        text=decorate(words, seeded_generator(plan.seed, "text", plan.id)) if plan.decorated else " ".join(words),
        samples=through_channel(speech, plan, settings, with_speech),
        word_times=tuple((round(start + offset, 6), round(stop + offset, 6)) for start, stop in spoken.word_times),
        domain=plan.domain,
        group_id=plan.speaker.id,
        split=plan.split,
        source=plan.source,
    )


def speak_plan(
    plan: UtterancePlan, settings: SyntheticSpeech, rng: np.random.Generator, silence_seconds: float
) -> tuple[tuple[str, ...], SpokenWords]:
    """The words that are spoken, and how. A long_tail plan is cut after the word that comes nearest to its duration."""
    spread = settings.rate_spread_wpm
    rate_wpm = int(np.clip(plan.speaker.rate_wpm + rng.integers(-spread, spread + 1), *settings.rate_wpm))
    word_gap = int(rng.choice(settings.word_gaps))
    voice, pitch = plan.speaker.voice, plan.speaker.pitch
    spoken = speak(plan.words, voice, rate_wpm, pitch, word_gap)
    if plan.domain != "long_tail":
        return plan.words, spoken
    target = rng.uniform(*settings.long_tail_seconds) - silence_seconds
    if spoken.word_times[-1][1] < target:
        raise RunFailed(
            f"{plan.id}: {len(plan.words)} words last {spoken.word_times[-1][1]:.1f} s, less than {target:.1f} s"
        )
    counts = [n for n in range(2, len(plan.words)) if side_of(plan.words[:n]) == plan.split]
    words = plan.words[: min(counts, key=lambda n: abs(spoken.word_times[n - 1][1] - target))]
    return words, speak(words, voice, rate_wpm, pitch, word_gap)


def through_channel(
    speech: np.ndarray, plan: UtterancePlan, settings: SyntheticSpeech, with_speech: bool
) -> np.ndarray:
    """Band, noise and codec of a domain."""
    rng = seeded_generator(plan.seed, "channel", plan.id)
    snr_db = rng.uniform(
        *{
            "kan_clean": settings.clean_snr_db,
            "whatsapp_noisy": settings.noisy_snr_db,
            "long_tail": settings.long_tail_snr_db,
        }[plan.domain]
    )
    noisy = plan.domain == "whatsapp_noisy"
    if noisy:
        speech = telephone_band(speech)
    samples = noise_floor(speech, snr_db, rng)
    if with_speech:
        samples = samples + speech
    return codec_round_trip(samples, sorted(CODECS)[int(rng.integers(len(CODECS)))]) if noisy else samples


def decorate(words: Sequence[str], rng: np.random.Generator) -> str:
    """The words as an editor writes them: one with niqqud, one in quotes, a maqaf or comma, a full stop."""
    written = list(words)
    pointed, quoted, joined = (int(rng.integers(len(words))) for _ in range(3))
    written[pointed] = "".join(letter + POINTS[int(rng.integers(len(POINTS)))] for letter in written[pointed])
    written[quoted] = f'"{written[quoted]}"'
    text = (
        " ".join(written[: joined + 1]) + ("\u05be" if rng.random() < 0.5 else ", ") + " ".join(written[joined + 1 :])
    )
    return text.rstrip("\u05be, ") + "."
