"""Planted label and audio errors, with the truth kept: what an audit must find."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import get_args

import numpy as np

from caspi.config import SyntheticSpeech
from caspi.speech.corpora.audio import SAMPLE_RATE_HZ
from caspi.speech.seeds import hash_key, seeded_generator
from caspi.speech.synthetic.synth import (
    Defect,
    SyntheticUtterance,
    UtterancePlan,
    draw_sentence,
    lexicon,
    render,
    side_of,
)

DEFECTS: tuple[Defect, ...] = get_args(Defect)
AUDIBLE_DEFECTS: tuple[Defect, ...] = tuple(defect for defect in DEFECTS if defect != "corrupt_file")
"""What survives `prepare`, which quarantines files that cannot be decoded."""

TextChange = Callable[[UtterancePlan, Sequence[str], np.random.Generator], tuple[list[str], str]]

MAX_SHARED_WORDS_FRACTION = 1 / 3
DROPPED_FRACTION = (0.3, 0.5)
EXTRA_FRACTION = (0.5, 0.8)
KEPT_AUDIO_FRACTION = (0.4, 0.7)
NUM_CANDIDATE_TEXTS = 20
CORRUPT_BYTES = 4096


def plant_defects(
    plans: Sequence[UtterancePlan], fraction: float, seed: int, kinds: Sequence[Defect] = AUDIBLE_DEFECTS
) -> list[UtterancePlan]:
    """Give exactly `round(fraction * len(plans))` plans a defect, spread over domains and kinds as evenly as possible.

    A larger fraction keeps the utterances that a smaller one spoils, so corpora of one seed differ in nothing else.
    Where words are to be dropped, sentences of one word are left alone.

    Raises:
        ValueError: the fraction is not within 0..1, there is no kind to plant, or too few sentences can have one.
    """
    if not 0 <= fraction <= 1 or not kinds or not set(kinds) <= set(DEFECTS):
        raise ValueError(f"cannot plant {fraction:g} of {list(kinds)}: expected 0 to 1 of {', '.join(DEFECTS)}")
    num_planted = round(fraction * len(plans))
    able = [plan for plan in plans if len(plan.words) > 1 or "dropped_words" not in kinds]
    if len(able) < num_planted:
        raise ValueError(f"cannot plant {num_planted} defects in {len(able)} sentences of two words or more")
    order = evenly_over_domains(able, seed)[:num_planted]
    kind_of: dict[str, Defect] = {}
    for first in range(0, len(order), len(kinds)):  # shuffled, because kinds in turn would fall in step with domains
        shuffled = seeded_generator(seed, "defect kinds", str(first)).permutation(len(kinds))
        kind_of |= {able[i].id: kinds[kind] for i, kind in zip(order[first:], shuffled, strict=False)}
    return [replace(plan, defect=kind_of.get(plan.id)) for plan in plans]


def evenly_over_domains(plans: Sequence[UtterancePlan], seed: int) -> list[int]:
    """All positions, ordered so that every beginning holds each domain in proportion, within one utterance."""
    by_domain: dict[str, list[int]] = {}
    for index in sorted(range(len(plans)), key=lambda index: hash_key(seed, "defect", plans[index].id)):
        by_domain.setdefault(plans[index].domain, []).append(index)
    places = [
        ((rank + 0.5) / len(members), domain, index)
        for domain, members in by_domain.items()
        for rank, index in enumerate(members)
    ]
    return [index for _, _, index in sorted(places)]


def render_planned(plan: UtterancePlan, settings: SyntheticSpeech) -> SyntheticUtterance:
    """Render a plan with its defect.

    Raises:
        ValueError: the sentence is too short for the defect.
    """
    if plan.defect is None:
        return render(plan, settings)
    if plan.defect == "silence":
        noise = render(plan, settings, with_speech=False)
        return replace(noise, defect="silence", words=(), word_times=(), detail="noise floor only, the text stays")
    utterance = replace(render(plan, settings), defect=plan.defect)
    if plan.defect == "corrupt_file":
        return replace(utterance, words=(), word_times=(), detail=f"{CORRUPT_BYTES} bytes that no decoder reads")
    rng = seeded_generator(plan.seed, "defect", plan.id)
    if plan.defect == "cut_audio":
        return cut_audio(utterance, rng)
    words, detail = changed_text(plan, CHANGED_TEXTS[plan.defect], utterance.words, rng)
    return replace(utterance, text=" ".join(words), detail=detail)


def changed_text(
    plan: UtterancePlan, change: TextChange, words: Sequence[str], rng: np.random.Generator
) -> tuple[list[str], str]:
    """The wrong text and what is wrong with it; one of the plan's split, unless there are too few words to find one."""
    for _ in range(NUM_CANDIDATE_TEXTS):
        text, detail = change(plan, words, rng)
        if side_of(text) == plan.split:
            break
    return text, detail


def cut_audio(utterance: SyntheticUtterance, rng: np.random.Generator) -> SyntheticUtterance:
    """Keep the first 40 to 70 % of the audio; a word that began before the cut stays, with its end there."""
    kept = round(rng.uniform(*KEPT_AUDIO_FRACTION) * len(utterance.samples))
    cut = kept / SAMPLE_RATE_HZ
    heard = [(start, min(end, cut)) for start, end in utterance.word_times if start < cut]
    whole = len(utterance.samples) / SAMPLE_RATE_HZ
    detail = f"{cut:.2f} of {whole:.2f} s kept, {len(heard)} of {len(utterance.words)} words"
    return replace(
        utterance,
        samples=utterance.samples[:kept],
        words=utterance.words[: len(heard)],
        word_times=tuple(heard),
        detail=detail,
    )


def wrong_transcript(plan: UtterancePlan, words: Sequence[str], rng: np.random.Generator) -> tuple[list[str], str]:
    """A sentence of as many words and about as many letters that shares at most a third of them."""
    vocabulary = lexicon(plan.vocabulary_size)
    texts = [draw_sentence(rng, vocabulary, len(words), plan.split) for _ in range(NUM_CANDIDATE_TEXTS)]
    texts = [text for text in texts if len(set(text) & set(words)) <= MAX_SHARED_WORDS_FRACTION * len(words)]
    if not texts:
        raise ValueError(f"{plan.id}: no wrong transcript of {len(words)} words among {len(vocabulary)} words")
    num_letters = len("".join(words))
    return list(min(texts, key=lambda text: abs(len("".join(text)) - num_letters))), "text of another sentence"


def dropped_words(plan: UtterancePlan, words: Sequence[str], rng: np.random.Generator) -> tuple[list[str], str]:
    """The text lacks 30 to 50 % of the words, in one stretch."""
    if len(words) < 2:
        raise ValueError(f"{plan.id}: cannot drop a word of a sentence that has {len(words)}")
    num_dropped = min(int(np.ceil(len(words) * rng.uniform(*DROPPED_FRACTION))), len(words) - 1)
    first = int(rng.integers(len(words) - num_dropped + 1))
    dropped = words[first : first + num_dropped]
    return [*words[:first], *words[first + num_dropped :]], f"text lacks {num_dropped} words: {' '.join(dropped)}"


def extra_words(plan: UtterancePlan, words: Sequence[str], rng: np.random.Generator) -> tuple[list[str], str]:
    """The text has 50 to 80 % more words than are spoken, in one stretch."""
    num_extra = int(np.ceil(len(words) * rng.uniform(*EXTRA_FRACTION)))
    foreign = [word for word in lexicon(plan.vocabulary_size) if word not in words]
    if not foreign:
        raise ValueError(
            f"{plan.id}: the sentence holds all {len(lexicon(plan.vocabulary_size))} words; none is foreign"
        )
    extra = [str(word) for word in rng.choice(foreign, num_extra)]
    place = int(rng.integers(len(words) + 1))
    return [*words[:place], *extra, *words[place:]], f"text has {num_extra} words too many: {' '.join(extra)}"


CHANGED_TEXTS: dict[Defect, TextChange] = {
    "wrong_transcript": wrong_transcript,
    "dropped_words": dropped_words,
    "extra_words": extra_words,
}


def corrupt_bytes(plan: UtterancePlan) -> bytes:
    """A FLAC marker and noise."""
    return b"fLaC" + seeded_generator(plan.seed, "corrupt", plan.id).bytes(CORRUPT_BYTES - 4)
