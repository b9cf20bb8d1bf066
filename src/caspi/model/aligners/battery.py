"""Utterances through the aligner: each with its own transcript, its decoy and its controls, several at once.

Results depend on the tasks of a group alone, and groups are planned from all tasks of an audit: not on the number of
workers, and not on what an interrupted run has already done.
"""

import os
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from caspi.config import Audit, Recipe
from caspi.model.aligners import MODEL_BACKENDS, Aligner, AlignmentItem
from caspi.speech.alignment.controls import DISTORTIONS, PlannedPair
from caspi.speech.alignment.quality import Alignment, Outcome, Pair
from caspi.speech.alignment.vad import FRAME_SECONDS, estimate_snr_db, speech_mask
from caspi.speech.corpora.audio import SAMPLE_RATE_HZ, AudioError, load_audio
from caspi.speech.text import num_letters

MAX_MODEL_PROCESSES = 4
"""Each holds the 0.9 B parameters of the published aligner: 3.7 GB."""
UNBATCHED_GROUP = 4
"""Clips handed to a worker at once by backends that gain nothing from batches."""
SELF_TEST_VOICE = "+m3"
SELF_TEST_RATE_WPM = 160

Samples = NDArray[np.float32]
Mask = NDArray[np.bool_]


class Task(NamedTuple):
    id: str
    audio_filepath: str
    offset_seconds: float
    duration_seconds: float
    planned: tuple[PlannedPair, ...]
    spoken: tuple[str, ...] = ()
    """Words to synthesise instead of reading a file (self-test)."""

    @property
    def pair_seconds(self) -> float:
        """Audio to be aligned, all pairs together."""
        return self.duration_seconds * len(self.planned)


class Version(NamedTuple):
    """One version of an utterance's audio with the pairs that want it."""

    samples: Samples
    speech: Mask
    planned: tuple[PlannedPair, ...]


def plan_groups(tasks: Sequence[Task], settings: Audit) -> list[list[Task]]:
    """Tasks that go to a worker together: neighbours in length, the longest first.

    A group fills a batch of the model: `model_batch_size` clips, and padded at most `model_batch_seconds` of pairs.
    """
    if settings.backend not in MODEL_BACKENDS:
        return [list(tasks[first : first + UNBATCHED_GROUP]) for first in range(0, len(tasks), UNBATCHED_GROUP)]
    groups: list[list[Task]] = []
    num_pairs, longest = 0, 0.0
    for task in sorted(tasks, key=lambda task: (-task.duration_seconds, task.id)):
        pairs = num_pairs + len(task.planned)
        is_full = groups and (
            len(groups[-1]) == settings.model_batch_size or pairs * longest > settings.model_batch_seconds
        )
        if not groups or is_full:
            groups.append([])
            num_pairs, longest = 0, task.duration_seconds
        groups[-1].append(task)
        num_pairs += len(task.planned)
    return groups


def default_num_processes(backend: str) -> int:
    """One per core; with model weights one on a GPU, and on CPU few, because each holds the weights."""
    num_cores = len(os.sched_getaffinity(0))
    if backend not in MODEL_BACKENDS:
        return num_cores
    import torch

    return 1 if torch.cuda.is_available() else min(num_cores, MAX_MODEL_PROCESSES)


def measure_group(tasks: Sequence[Task], aligner: Aligner, recipe: Recipe) -> list[Outcome]:
    """Align all planned pairs of a group, in the order of the tasks; audio that cannot be read is an outcome."""
    outcomes: dict[str, Outcome] = {}
    readable: list[tuple[Task, Samples]] = []
    for task in tasks:
        try:
            readable.append((task, _load(task, recipe)))
        except AudioError as error:
            outcomes[task.id] = Outcome(task.id, {}, {}, audio_error=f"{error.reason}: {error}")
    outcomes |= {outcome.id: outcome for outcome in measure_samples(readable, aligner)}
    return [outcomes[task.id] for task in tasks]


def measure_samples(clips: Sequence[tuple[Task, Samples]], aligner: Aligner) -> list[Outcome]:
    """Align the pairs of all clips in one call, so that the aligner can batch them."""
    versions = [_versions(task, samples) for task, samples in clips]
    items = [AlignmentItem(v.samples, plan.words) for own in versions for v in own for plan in v.planned]
    results = iter(aligner.align(items))
    outcomes = []
    for (task, samples), own in zip(clips, versions, strict=True):
        pairs: dict[str, Pair] = {}
        failures: dict[str, str] = {}
        for version in own:
            for plan in version.planned:
                result = next(results)
                if isinstance(result, Alignment):
                    pairs[plan.control] = _pair(version, plan, result)
                else:
                    failures[plan.control] = str(result)
        speech = speech_mask(samples)
        seconds = float(speech.sum() * FRAME_SECONDS)
        outcomes.append(Outcome(task.id, pairs, failures, seconds, estimate_snr_db(samples, speech)))
    return outcomes


def _versions(task: Task, samples: Samples) -> list[Version]:
    def key(plan: PlannedPair) -> tuple[str, float]:
        return plan.distortion, plan.amount

    versions = []
    for (distortion, amount), planned in groupby(sorted(task.planned, key=key), key=key):
        changed = DISTORTIONS[distortion](samples, amount)
        versions.append(Version(changed, speech_mask(changed), tuple(planned)))
    return versions


def _pair(version: Version, plan: PlannedPair, alignment: Alignment) -> Pair:
    letters = tuple(num_letters(word) for word in plan.words)
    seconds = len(version.samples) / SAMPLE_RATE_HZ
    return Pair(letters, len(" ".join(plan.words)), seconds, version.speech, alignment)


def _load(task: Task, recipe: Recipe) -> Samples:
    if not task.spoken:
        return load_audio(task.audio_filepath, task.offset_seconds, task.duration_seconds)
    from caspi.speech.synthetic.espeak import speak

    voice = recipe.language.espeak_voice + SELF_TEST_VOICE
    return np.pad(speak(task.spoken, voice=voice, rate_wpm=SELF_TEST_RATE_WPM).samples, SAMPLE_RATE_HZ // 4)
