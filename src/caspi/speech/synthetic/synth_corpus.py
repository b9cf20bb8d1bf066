"""Synthetic corpora on disk: audio, a manifest for `prepare`, and the truth about every utterance.

FOLDER/audio/ID.flac, FOLDER/corpus.jsonl (columns of a user's manifest) and FOLDER/truth.jsonl (what was really said).
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import get_args

from caspi.config import Language, SyntheticSpeech
from caspi.records import Record, read_jsonl, write_atomically, write_jsonl
from caspi.speech.corpora.audio import SAMPLE_RATE_HZ, write_audio
from caspi.speech.synthetic.defects import AUDIBLE_DEFECTS, corrupt_bytes, plant_defects, render_planned
from caspi.speech.synthetic.synth import (
    Defect,
    Domain,
    Split,
    SyntheticUtterance,
    UtterancePlan,
    draw_speakers,
    plan_utterances,
)

DOMAINS: tuple[Domain, ...] = get_args(Domain)
HEBREW, DEFAULTS = Language(), SyntheticSpeech()
MANIFEST_NAME = "corpus.jsonl"
TRUTH_NAME = "truth.jsonl"
MIN_UTTERANCES_PER_PROCESS = 24
"""A process costs about as much as so many utterances."""
CHUNK_UTTERANCES = 4
AUDIT_WORDS = (4, 10)
TEST_WORDS = (2, 5)
"""Words of a test sentence: single words are vocabulary, which training and tests share."""


class CorpusRow(Record):
    """One line of corpus.jsonl."""

    id: str
    audio_filepath: str
    text: str
    domain: str
    group_id: str
    split: str
    source: str


class SyntheticTruth(Record):
    """One line of truth.jsonl: the words that can be heard, in order, with (start, end) in seconds."""

    id: str
    words: tuple[str, ...]
    word_times: tuple[tuple[float, float], ...]
    duration_seconds: float
    defect: Defect | None
    detail: str


def plan_audit_corpus(
    num_utterances: int,
    defect_fraction: float,
    seed: int,
    *,
    domain_shares: Mapping[Domain, float],
    vocabulary_size: int | None = None,
    num_words: tuple[int, int] = AUDIT_WORDS,
    kinds: Sequence[Defect] = AUDIBLE_DEFECTS,
    decorated_fraction: float = 0.0,
    language: Language = HEBREW,
    settings: SyntheticSpeech = DEFAULTS,
) -> list[UtterancePlan]:
    """A corpus as it is before anybody looked at it: all domains, many words, planted defects."""
    speakers = draw_speakers("audit", settings.speaker_voices(language), settings.speakers_per_voice, settings, seed)
    plans = plan_utterances(
        "synthetic-audit",
        apportion(num_utterances, domain_shares),
        speakers,
        num_words,
        vocabulary_size=vocabulary_size,
        split="train",
        seed=seed,
        settings=settings,
        decorated_fraction=decorated_fraction,
    )
    return plant_defects(plans, defect_fraction, seed, kinds)


def plan_training_corpus(
    num_utterances: int,
    num_validation: int,
    seed: int,
    *,
    vocabulary_size: int,
    num_words: tuple[int, int],
    domain_shares: Mapping[Domain, float],
    language: Language = HEBREW,
    settings: SyntheticSpeech = DEFAULTS,
) -> list[UtterancePlan]:
    """Short utterances of a small vocabulary; validation sentences and speakers are not in the training split."""
    voices = settings.speaker_voices(language)
    sizes: dict[Split, int] = {"train": num_utterances, "validation": num_validation}
    plans = []
    for split, num in sizes.items():
        plans += plan_utterances(
            f"synthetic-{split}",
            apportion(num, domain_shares),
            draw_speakers(split, voices, settings.speakers_per_voice, settings, seed),
            num_words if split == "train" else (max(num_words[0], TEST_WORDS[0]), num_words[1]),
            vocabulary_size=vocabulary_size,
            split=split,
            seed=seed,
            settings=settings,
        )
    return plans


def plan_test_sets(
    num_utterances: int,
    seed: int,
    *,
    vocabulary_size: int,
    num_words: tuple[int, int] = TEST_WORDS,
    language: Language = HEBREW,
    settings: SyntheticSpeech = DEFAULTS,
) -> dict[str, list[UtterancePlan]]:
    """The guide's four test sets; none shares a sentence or a speaker with training.

    eval-d1: clean, voices that no corpus uses. eval-whatsapp: noisy. hebrew-speech-kan: clean, the corpus's voices.
    saspeech: clean, one speaker.
    """
    corpus, held_out = settings.speaker_voices(language), settings.speaker_voices(language, held_out=True)
    sets: dict[str, tuple[Domain, tuple[str, ...], int]] = {
        "eval-d1": ("kan_clean", held_out, settings.speakers_per_voice),
        "eval-whatsapp": ("whatsapp_noisy", corpus, settings.speakers_per_voice),
        "hebrew-speech-kan": ("kan_clean", corpus, settings.speakers_per_voice),
        "saspeech": ("kan_clean", (language.espeak_voice,), 1),
    }
    return {
        name: plan_utterances(
            name,
            {domain: num_utterances},
            draw_speakers(name, voices, per_voice, settings, seed),
            num_words,
            vocabulary_size=vocabulary_size,
            split="test",
            seed=seed,
            settings=settings,
        )
        for name, (domain, voices, per_voice) in sets.items()
    }


def apportion(total: int, shares: Mapping[Domain, float]) -> dict[Domain, int]:
    """Whole numbers that add up to `total`, each within one of its share (largest remainders).

    Raises:
        ValueError: an unknown domain, a negative share, or nothing to share.
    """
    if set(shares) - set(DOMAINS) or any(share < 0 for share in shares.values()) or not sum(shares.values()):
        raise ValueError(f"domain shares {dict(shares)}: expected shares above 0 of {', '.join(DOMAINS)}")
    exact = {domain: total * share / sum(shares.values()) for domain, share in shares.items()}
    numbers = {domain: int(value) for domain, value in exact.items()}
    by_remainder = sorted(exact, key=lambda domain: (numbers[domain] - exact[domain], domain))
    for domain in by_remainder[: total - sum(numbers.values())]:
        numbers[domain] += 1
    return numbers


def write_corpus(
    folder: Path,
    plans: Sequence[UtterancePlan],
    settings: SyntheticSpeech = DEFAULTS,
    num_processes: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Render plans to a folder and return its corpus.jsonl, which appears last, when everything else is there.

    Args:
        num_processes: at most this many; 0: one per core. Scripts that ask for more than one must guard `__main__`.
        progress: called with (number done, number of all) after each utterance.

    The same plans and settings give the same bytes, for any number of processes.

    Raises:
        ValueError: no plans, two with the same id, the engine is missing, or a plan cannot be rendered.
    """
    if not plans or len({plan.id for plan in plans}) < len(plans):
        raise ValueError(f"{folder}: expected at least one utterance and no id twice, found {len(plans)} utterances")
    for name in (MANIFEST_NAME, TRUTH_NAME):
        (folder / name).unlink(missing_ok=True)
    work = partial(write_utterance, folder, settings=settings)
    wanted = min(num_processes or os.cpu_count() or 1, len(plans) // MIN_UTTERANCES_PER_PROCESS)
    written = []
    for truth_and_row in in_order(work, plans, wanted):
        written.append(truth_and_row)
        if progress:
            progress(len(written), len(plans))
    write_jsonl(folder / TRUTH_NAME, (truth for truth, _ in written))
    write_jsonl(folder / MANIFEST_NAME, (row for _, row in written))
    return folder / MANIFEST_NAME


def in_order(
    work: Callable[[UtterancePlan], tuple[SyntheticTruth, CorpusRow]],
    plans: Sequence[UtterancePlan],
    num_processes: int,
) -> Iterator[tuple[SyntheticTruth, CorpusRow]]:
    """Results in the order of the plans. Processes are spawned, because torch's threads in the caller do not fork."""
    if num_processes < 2:
        yield from map(work, plans)
        return
    with ProcessPoolExecutor(num_processes, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(work, plans, chunksize=CHUNK_UTTERANCES)


def write_utterance(folder: Path, plan: UtterancePlan, settings: SyntheticSpeech) -> tuple[SyntheticTruth, CorpusRow]:
    utterance = render_planned(plan, settings)
    path = folder / "audio" / f"{plan.id}.flac"
    if plan.defect == "corrupt_file":
        write_atomically(path, corrupt_bytes(plan))
    else:
        write_audio(path, utterance.samples)
    return truth_of(utterance), CorpusRow(
        id=utterance.id,
        audio_filepath=path.relative_to(folder).as_posix(),
        text=utterance.text,
        domain=utterance.domain,
        group_id=utterance.group_id,
        split=utterance.split,
        source=utterance.source,
    )


def truth_of(utterance: SyntheticUtterance) -> SyntheticTruth:
    return SyntheticTruth(
        id=utterance.id,
        words=utterance.words,
        word_times=utterance.word_times,
        duration_seconds=len(utterance.samples) / SAMPLE_RATE_HZ,
        defect=utterance.defect,
        detail=utterance.detail,
    )


def read_truth(folder: Path) -> dict[str, SyntheticTruth]:
    """The truth about a corpus by utterance id.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    return {truth.id: truth for truth in read_jsonl(folder / TRUTH_NAME, SyntheticTruth)}
