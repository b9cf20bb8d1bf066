"""Wrong pairs made on purpose (AUDIT section 4): what an audit must notice, and harmless changes it must not.

Every choice comes from a hash of seed, control and utterance, so a control is the same in every run and sample.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import soxr
from numpy.typing import NDArray

from caspi.config import Calibration
from caspi.speech.corpora.audio import SAMPLE_RATE_HZ
from caspi.speech.seeds import hash_key, seeded_generator

ORIGINAL = "original"
DECOY = "K1_shuffle_similar"
DEFECTS = ("K2_truncated", "K3_dropped", "K4_extra", "K5_order", "K6_subst50")
REVERSED = "K7_reversed"
DOSE = "K8_dose"
HARMLESS = ("P1_gain", "P1_band", "P1_slower", "P1_faster", "P1_silence")

GAIN_FACTOR = 10 ** (-14 / 20)
SPEED_CHANGE = 0.05
SILENCE_SECONDS = 0.48
NARROW_RATE_HZ = 8_000

Words = tuple[str, ...]


class Transcript(NamedTuple):
    id: str
    domain: str
    source: str | None
    words: Words
    num_letters: int


class PlannedPair(NamedTuple):
    """A pair to align: which words with which version of the utterance's audio."""

    control: str
    words: Words
    distortion: str = ""
    """Key of `DISTORTIONS`; empty: the audio as it is."""
    amount: float = 0.0


class DecoyChooser:
    """Finds for a transcript another one of the same domain and length with other words."""

    def __init__(self, transcripts: Sequence[Transcript], settings: Calibration, seed: int) -> None:
        self.settings = settings
        self.seed = seed
        usable = sorted((t for t in transcripts if t.words), key=lambda t: (t.num_letters, t.id))
        self._everywhere = usable
        self._domains: dict[str, list[Transcript]] = {}
        for transcript in usable:
            self._domains.setdefault(transcript.domain, []).append(transcript)

    def choose(self, transcript: Transcript) -> Transcript | None:
        """Similar length counts first, then the same source; None if no transcript has other words."""
        for candidates in (self._domains.get(transcript.domain, []), self._everywhere):
            decoy = self._nearest(transcript, candidates)
            if decoy is not None:
                return decoy
        return None

    def _nearest(self, transcript: Transcript, candidates: list[Transcript]) -> Transcript | None:
        """Search a window around the same length, widening it until it holds an admissible transcript."""
        centre = bisect_left(candidates, transcript.num_letters, key=lambda t: t.num_letters)
        reach = 32
        while True:
            window = candidates[max(0, centre - reach) : centre + reach]
            admissible = [c for c in window if self._differs(transcript, c)]
            if admissible:
                return min(admissible, key=lambda c: self._distance(transcript, c))
            if len(window) == len(candidates):
                return None
            reach *= 4

    def _differs(self, transcript: Transcript, other: Transcript) -> bool:
        if other.id == transcript.id:
            return False
        own = set(transcript.words)
        return len(own & set(other.words)) <= self.settings.max_decoy_word_overlap * len(own)

    def _distance(self, transcript: Transcript, other: Transcript) -> tuple[bool, bool, int, str]:
        difference = abs(other.num_letters - transcript.num_letters)
        too_far = difference > self.settings.max_decoy_length_difference * transcript.num_letters
        key = hash_key(self.seed, DECOY, f"{transcript.id}\0{other.id}")
        return too_far, other.source != transcript.source, difference, key


def plan_defects(transcript: Transcript, foreign: Words, seed: int) -> list[PlannedPair]:
    """K2 to K7 and one harmless change. A control that the transcript is too short for is left out.

    Args:
        foreign: words of other transcripts, at least as many as the transcript has.
    """
    words, count = transcript.words, len(transcript.words)

    def generator(control: str) -> np.random.Generator:
        return seeded_generator(seed, control, transcript.id)

    planned = [
        PlannedPair("K2_truncated", words, "truncated", float(generator("K2_truncated").uniform(0.4, 0.7))),
        PlannedPair("K4_extra", _insert(words, foreign, generator("K4_extra"))),
        PlannedPair(REVERSED, words, "reversed"),
    ]
    if count >= 2:
        planned.append(PlannedPair("K3_dropped", _drop(words, generator("K3_dropped"))))
        planned.append(PlannedPair("K6_subst50", substitute(words, foreign, 0.5, generator("K6_subst50"))))
    if count >= 4:
        start = int(generator("K5_order").integers(count // 3, 2 * count // 3 + 1))
        planned.append(PlannedPair("K5_order", words[start:] + words[:start]))
    harmless = HARMLESS[int(generator("P1").integers(len(HARMLESS)))]
    planned.append(PlannedPair(harmless, words, harmless.removeprefix("P1_")))
    return sorted(planned)


def plan_doses(transcript: Transcript, foreign: Words, levels: Sequence[float], seed: int) -> list[PlannedPair]:
    """K8: growing shares of foreign words, each level containing the changes of the one before."""
    order = seeded_generator(seed, DOSE, transcript.id).permutation(len(transcript.words))
    planned = []
    for level in levels:
        words = list(transcript.words)
        for index in order[: round(level * len(words))]:
            words[index] = foreign[index]
        planned.append(PlannedPair(dose_control(level), tuple(words)))
    return planned


def dose_control(level: float) -> str:
    return f"{DOSE}_{level:.2f}"


def foreign_words(transcript: Transcript, others: Sequence[Transcript], num_words: int, seed: int) -> Words:
    """Words of seeded random other transcripts; none that the transcript contains if any other exists."""
    generator = seeded_generator(seed, "foreign words", transcript.id)
    own = set(transcript.words)
    found: list[str] = []
    for _ in range(20):
        if len(found) >= num_words:
            break
        drawn = [others[int(index)] for index in generator.integers(len(others), size=num_words)]
        found += [word for other in drawn for word in other.words if word not in own]
    return tuple(generator.permutation(np.array(found, dtype=object))[:num_words])


def _drop(words: Words, generator: np.random.Generator) -> Words:
    count = min(len(words) - 1, max(1, int(np.ceil(len(words) * generator.uniform(0.3, 0.5)))))
    start = int(generator.integers(len(words) - count + 1))
    return words[:start] + words[start + count :]


def _insert(words: Words, foreign: Words, generator: np.random.Generator) -> Words:
    count = int(np.ceil(len(words) * generator.uniform(0.5, 0.8)))
    start = int(generator.integers(len(words) + 1))
    return words[:start] + foreign[:count] + words[start:]


def substitute(words: Words, foreign: Words, fraction: float, generator: np.random.Generator) -> Words:
    """Replace a contiguous share of the words."""
    count = max(1, int(np.ceil(fraction * len(words))))
    start = int(generator.integers(len(words) - count + 1))
    return words[:start] + foreign[:count] + words[start + count :]


def _resampled(samples: NDArray[np.float32], from_hz: float, to_hz: float) -> NDArray[np.float32]:
    return np.asarray(soxr.resample(samples, from_hz, to_hz), dtype=np.float32)


def _with_speed(samples: NDArray[np.float32], speed: float) -> NDArray[np.float32]:
    return _resampled(samples, SAMPLE_RATE_HZ * speed, SAMPLE_RATE_HZ)


DISTORTIONS: dict[str, Callable[[NDArray[np.float32], float], NDArray[np.float32]]] = {
    "": lambda samples, amount: samples,
    "truncated": lambda samples, amount: samples[: max(1, int(amount * len(samples)))],
    "reversed": lambda samples, amount: samples[::-1].copy(),
    "gain": lambda samples, amount: samples * np.float32(GAIN_FACTOR),
    "band": lambda samples, amount: _resampled(
        _resampled(samples, SAMPLE_RATE_HZ, NARROW_RATE_HZ), NARROW_RATE_HZ, SAMPLE_RATE_HZ
    ),
    "slower": lambda samples, amount: _with_speed(samples, 1 - SPEED_CHANGE),
    "faster": lambda samples, amount: _with_speed(samples, 1 + SPEED_CHANGE),
    "silence": lambda samples, amount: np.pad(samples, (round(SILENCE_SECONDS * SAMPLE_RATE_HZ), 0)),
}
"""Version of the audio by name; each takes samples [num_samples] and an amount that most ignore."""


def plan_pairs(
    audited: Sequence[Transcript], everything: Sequence[Transcript], settings: Calibration, seed: int
) -> dict[str, tuple[PlannedPair, ...]]:
    """All pairs to align, by utterance: the original, its decoy, and on a seeded part of them the other controls.

    Args:
        audited: transcripts with at least one word.
        everything: transcripts of the whole manifest; decoys and foreign words come from it.
    """
    chooser = DecoyChooser(everything, settings, seed)
    others = [transcript for transcript in everything if transcript.words]
    controlled = _spread(audited, settings.num_control_utterances, "controls", seed)
    dosed = _spread(audited, settings.num_dose_utterances, DOSE, seed)
    planned = {}
    for transcript in audited:
        pairs = [PlannedPair(ORIGINAL, transcript.words)]
        decoy = chooser.choose(transcript)
        if decoy is not None:
            pairs.append(PlannedPair(DECOY, decoy.words))
        if transcript.id in controlled | dosed:
            foreign = foreign_words(transcript, others, len(transcript.words), seed)
            enough = len(foreign) == len(transcript.words)
            if enough and transcript.id in controlled:
                pairs += plan_defects(transcript, foreign, seed)
            if enough and transcript.id in dosed:
                pairs += plan_doses(transcript, foreign, settings.dose_levels, seed)
        planned[transcript.id] = tuple(pairs)
    return planned


def _spread(transcripts: Sequence[Transcript], num: int, purpose: str, seed: int) -> set[str]:
    """Ids of about `num` transcripts, the same number of each domain where there are enough."""
    by_domain: dict[str, list[str]] = {}
    for transcript in transcripts:
        by_domain.setdefault(transcript.domain, []).append(transcript.id)
    quota = -(-num // max(1, len(by_domain)))
    return {id_ for ids in by_domain.values() for id_ in sorted(ids, key=lambda i: hash_key(seed, purpose, i))[:quota]}
