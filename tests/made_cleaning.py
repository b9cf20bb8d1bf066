"""A synthetic corpus in which every action of `caspi clean` is planted, with the truth about every word."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from caspi.config import SyntheticSpeech
from caspi.records import Utterance, sha256_of_file, write_jsonl
from caspi.speech.augment import noise_floor
from caspi.speech.corpora.audio import SAMPLE_RATE_HZ, write_audio
from caspi.speech.seeds import seeded_generator
from caspi.speech.synthetic.defects import render_planned
from caspi.speech.synthetic.synth import Domain, SyntheticUtterance, lexicon
from caspi.speech.synthetic.synth_corpus import plan_audit_corpus
from caspi.speech.text import normalize_transcript

LONG_SECONDS = 15.0


class Spoken(NamedTuple):
    """What can be heard in a clip."""

    words: tuple[str, ...]
    times: tuple[tuple[float, float], ...]


class Planted(NamedTuple):
    manifest: Path
    spoken: dict[str, Spoken]
    expected: dict[str, str]
    """Action by id, where one is planted."""


def planted_corpus(folder: Path, num_good: int, num_long: int, seed: int, num_each: int = 1) -> Planted:
    """`num_good` utterances that nothing is wrong with, `num_long` of 20 to 30 s, and `num_each` of every defect."""
    rng = np.random.default_rng(seed)
    good = rendered(num_good, seed, (5, 9), "kan_clean")
    long = rendered(num_long, seed + 1, (5, 9), "long_tail")
    spoilt = iter(rendered(num_each * len(DEFECTS), seed + 2, (24, 26), "kan_clean"))
    clips = [(one.id, one.samples, one.text, Spoken(one.words, one.word_times), "keep") for one in good]
    clips += [
        (f"long-{n}", one.samples, one.text, Spoken(one.words, one.word_times), "resegment")
        for n, one in enumerate(long)
    ]
    for name, (action, spoil) in DEFECTS.items():
        for number in range(num_each):
            one = next(spoilt)
            samples, text, shift = spoil(one, rng)
            times = tuple((start + shift, end + shift) for start, end in one.word_times)
            clips.append((f"{name}-{number}", samples, text, Spoken(one.words, times), action))
    utterances = []
    for id_, samples, text, _, _ in clips:
        path = folder / f"{id_}.flac"
        write_audio(path, samples)
        seconds = len(samples) / SAMPLE_RATE_HZ
        utterances.append(
            Utterance(
                id=id_,
                audio_filepath=path.name,
                text=normalize_transcript(text),
                duration=seconds,
                domain="kan_clean",
                source_sha256=sha256_of_file(path),
                needs_resegmentation=seconds > LONG_SECONDS,
            )
        )
    write_jsonl(folder / "manifest.jsonl", utterances)
    return Planted(folder / "manifest.jsonl", {c[0]: c[3] for c in clips}, {c[0]: c[4] for c in clips})


def rendered(count: int, seed: int, num_words: tuple[int, int], domain: Domain) -> list[SyntheticUtterance]:
    settings = SyntheticSpeech()
    plans = (
        plan_audit_corpus(count, 0.0, seed, domain_shares={domain: 1.0}, num_words=num_words, decorated_fraction=0.5)
        if count
        else []
    )
    return [render_planned(plan, settings) for plan in plans]


Spoilt = tuple[np.ndarray, str, float]
"""Samples, text, and by how much the words moved in seconds."""


def padded(one: SyntheticUtterance, before: float, after: float) -> np.ndarray:
    """The utterance with more of its noise floor around it."""
    room = np.pad(one.samples, [round(seconds * SAMPLE_RATE_HZ) for seconds in (before, after)])
    return room + noise_floor(room, 35.0, seeded_generator(0, "room", one.id))


def silence_around(one: SyntheticUtterance, rng: np.random.Generator) -> Spoilt:
    return padded(one, 1.6, 1.3), one.text, 1.6


def wrong_from_the_middle(one: SyntheticUtterance, rng: np.random.Generator) -> Spoilt:
    kept = 12 * len(one.words) // 25
    return one.samples, " ".join((*one.words[:kept], *foreign(one, len(one.words) - kept, rng))), 0.0


def three_of_five_words_wrong(one: SyntheticUtterance, rng: np.random.Generator) -> Spoilt:
    others = iter(foreign(one, len(one.words), rng))
    words = [next(others) if place % 5 in (1, 2, 4) else word for place, word in enumerate(one.words)]
    return one.samples, " ".join(words), 0.0


def wrong_text(one: SyntheticUtterance, rng: np.random.Generator) -> Spoilt:
    return one.samples, " ".join(foreign(one, len(one.words), rng)), 0.0


def only_noise(one: SyntheticUtterance, rng: np.random.Generator) -> Spoilt:
    return noise_floor(one.samples, 35.0, seeded_generator(0, "room", one.id)), one.text, 0.0


def no_text(one: SyntheticUtterance, rng: np.random.Generator) -> Spoilt:
    return one.samples, "", 0.0


DEFECTS: dict[str, tuple[str, Callable[[SyntheticUtterance, np.random.Generator], Spoilt]]] = {
    "silence": ("trim", silence_around),
    "middle": ("rescue", wrong_from_the_middle),
    "scattered": ("review", three_of_five_words_wrong),
    "wrong": ("drop", wrong_text),
    "noise": ("drop", only_noise),
    "empty": ("drop", no_text),
}


def foreign(one: SyntheticUtterance, count: int, rng: np.random.Generator) -> Sequence[str]:
    others = [word for word in lexicon() if word not in one.words]
    return [str(word) for word in rng.choice(others, count, replace=False)]


def depth_inside_a_word(seconds: float, spoken: Spoken) -> float:
    """How far inside a word a cut lies, in seconds; 0 between words."""
    return max((min(seconds - start, end - seconds) for start, end in spoken.times if start < seconds < end), default=0)
