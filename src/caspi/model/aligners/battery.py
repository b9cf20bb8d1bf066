"""One utterance through the aligner: its own transcript, its decoy and its controls, in worker processes.

Results depend on the task alone, not on the number of workers or the order: each worker computes with one thread, and
nothing passes from one task to the next.
"""

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import groupby
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from caspi.config import Recipe
from caspi.model.aligners import MODEL_BACKENDS, Aligner, AlignmentItem, build_aligner
from caspi.records import RunFailed
from caspi.speech.alignment.controls import DISTORTIONS, PlannedPair
from caspi.speech.alignment.quality import Alignment, Pair
from caspi.speech.alignment.study import Outcome
from caspi.speech.alignment.vad import FRAME_SECONDS, estimate_snr_db, speech_mask
from caspi.speech.corpora.audio import SAMPLE_RATE_HZ, AudioError, load_audio
from caspi.speech.text import num_letters

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
MAX_MODEL_PROCESSES = 4
"""Each holds the 0.9 B parameters of the published aligner: 3.7 GB."""
SELF_TEST_VOICE = "+m3"
SELF_TEST_RATE_WPM = 160


class Task(NamedTuple):
    id: str
    audio_filepath: str
    offset_seconds: float
    duration_seconds: float
    planned: tuple[PlannedPair, ...]
    spoken: tuple[str, ...] = ()
    """Words to synthesise instead of reading a file (self-test)."""


def run_tasks(tasks: Sequence[Task], recipe: Recipe) -> Iterator[Outcome]:
    """Yield the outcome of each task, in order.

    Raises:
        ValueError: the backend cannot be loaded.
        RunFailed: a worker process died.
    """
    num_processes = recipe.audit.num_processes or default_num_processes(recipe.audit.backend)
    with (
        _environment(dict.fromkeys(ONE_THREAD, "1")),
        ProcessPoolExecutor(num_processes, get_context("spawn"), _start_worker, (recipe,)) as pool,
    ):
        try:
            yield from pool.map(_measure_in_worker, tasks, chunksize=4)
        except BrokenProcessPool:
            raise RunFailed(
                f"a worker of backend {recipe.audit.backend} died (out of memory?); "
                f"try fewer with --num-processes, now {num_processes}"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def default_num_processes(backend: str) -> int:
    """One per core; with model weights one on a GPU, and on CPU few, because each holds the weights."""
    num_cores = len(os.sched_getaffinity(0))
    if backend not in MODEL_BACKENDS:
        return num_cores
    import torch

    return 1 if torch.cuda.is_available() else min(num_cores, MAX_MODEL_PROCESSES)


def measure_task(task: Task, aligner: Aligner, recipe: Recipe) -> Outcome:
    """Align all planned pairs of one utterance."""
    try:
        samples = _load(task, recipe)
    except AudioError as error:
        return Outcome(task.id, {}, {}, audio_error=f"{error.reason}: {error}")
    mask = speech_mask(samples)
    pairs: dict[str, Pair] = {}
    failures: dict[str, str] = {}
    for (distortion, amount), planned in groupby(
        sorted(task.planned, key=lambda p: (p.distortion, p.amount)), key=lambda p: (p.distortion, p.amount)
    ):
        version = DISTORTIONS[distortion](samples, amount)
        version_mask = mask if version is samples else speech_mask(version)
        _align_version(list(planned), version, version_mask, aligner, pairs, failures)
    return Outcome(task.id, pairs, failures, float(mask.sum() * FRAME_SECONDS), estimate_snr_db(samples, mask))


def _align_version(
    planned: list[PlannedPair],
    samples: NDArray[np.float32],
    mask: NDArray[np.bool_],
    aligner: Aligner,
    pairs: dict[str, Pair],
    failures: dict[str, str],
) -> None:
    aligned = aligner.align([AlignmentItem(samples, plan.words) for plan in planned])
    for plan, result in zip(planned, aligned, strict=True):
        if not isinstance(result, Alignment):
            failures[plan.control] = str(result)
            continue
        letters = tuple(num_letters(word) for word in plan.words)
        seconds = len(samples) / SAMPLE_RATE_HZ
        pairs[plan.control] = Pair(letters, len(" ".join(plan.words)), seconds, mask, result)


def _load(task: Task, recipe: Recipe) -> NDArray[np.float32]:
    if not task.spoken:
        return load_audio(task.audio_filepath, task.offset_seconds, task.duration_seconds)
    from caspi.speech.synthetic.espeak import speak

    voice = recipe.language.espeak_voice + SELF_TEST_VOICE
    return np.pad(speak(task.spoken, voice=voice, rate_wpm=SELF_TEST_RATE_WPM).samples, SAMPLE_RATE_HZ // 4)


_worker: tuple[Aligner, Recipe] | None = None


def _start_worker(recipe: Recipe) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _worker = build_aligner(recipe), recipe


def _measure_in_worker(task: Task) -> Outcome:
    assert _worker is not None
    return measure_task(task, *_worker)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for the children that start inside the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
