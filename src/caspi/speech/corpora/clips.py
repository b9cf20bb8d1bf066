"""What audio files say about the clips in them, looked at in worker processes.

A decoder that crashes on a hostile file takes its process with it; the files that were under way are then looked at
one by one, so that the guilty one is found and counted, and the others are not lost.
"""

import hashlib
import math
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from caspi.speech.alignment.vad import estimate_snr_db
from caspi.speech.corpora.audio import (
    END_TOLERANCE_SECONDS,
    FLOAT_ENCODINGS,
    AudioError,
    AudioInfo,
    load_audio,
    probe_audio,
)

MIN_FILES_FOR_PROCESSES = 256
"""Fewer files are looked at sooner than processes start."""
FILES_PER_TASK = 32
SECONDS_PER_PIECE = 600.0
"""Longer clips are decoded in pieces."""


class Stretch(NamedTuple):
    """A clip as its corpus states it."""

    offset_seconds: float
    duration_seconds: float | None
    """None: to the end of the file."""
    wants_snr: bool


class FileJob(NamedTuple):
    path: Path
    stretches: tuple[Stretch, ...]
    sha256: str | None
    """Hash of the file where it is known already."""
    max_file_mib: float
    max_snr_seconds: float


class ClipFacts(NamedTuple):
    duration_seconds: float
    """Exact; a stated end within `END_TOLERANCE_SECONDS` of the file's end is the file's end."""
    snr_db: float | None
    """None: not asked for, or speech and background could not be told apart."""
    sha256: str


Finding = ClipFacts | AudioError


def inspect_file(job: FileJob) -> list[Finding]:
    """One finding per stretch of a file.

    Integer encodings are only probed; floating-point ones are decoded, because only that shows NaN.
    """
    try:
        info = probe_audio(job.path, job.max_file_mib)
        sha256 = job.sha256 or hash_file(job.path)
    except AudioError as error:
        return [error] * len(job.stretches)
    return [inspect_stretch(job, stretch, info, sha256) for stretch in job.stretches]


def inspect_stretch(job: FileJob, stretch: Stretch, info: AudioInfo, sha256: str) -> Finding:
    try:
        seconds = exact_duration(job.path, stretch, info)
        if info.encoding in FLOAT_ENCODINGS:
            decode_all(job.path, stretch.offset_seconds, seconds)
        snr_db = None
        if stretch.wants_snr:
            snr_db = estimate_snr_db(load_audio(job.path, stretch.offset_seconds, min(seconds, job.max_snr_seconds)))
    except AudioError as error:
        return error
    return ClipFacts(round(seconds, 6), snr_db, sha256)


def exact_duration(path: Path, stretch: Stretch, info: AudioInfo) -> float:
    """Seconds of the stretch; manifests round, so an end close to the file's end is the file's end.

    Raises:
        AudioError: AUDIO_STRETCH, the stretch is not inside the file.
    """
    rest = info.duration_seconds - stretch.offset_seconds
    seconds = rest if stretch.duration_seconds is None else stretch.duration_seconds
    if seconds <= 0 or seconds > rest + END_TOLERANCE_SECONDS:
        stated = "its end" if stretch.duration_seconds is None else f"{stretch.offset_seconds + seconds:g} s"
        found = f"has {info.duration_seconds:.3f} s, the manifest states a clip from {stretch.offset_seconds:g} s to"
        raise AudioError("AUDIO_STRETCH", f"{str(path)!r} {found} {stated}")
    return rest if abs(seconds - rest) <= END_TOLERANCE_SECONDS else seconds


def decode_all(path: Path, offset_seconds: float, seconds: float) -> None:
    """Decode a stretch of any length piece by piece, for its errors alone."""
    num_pieces = math.ceil(seconds / SECONDS_PER_PIECE)
    for piece in range(num_pieces):
        load_audio(path, offset_seconds + piece * seconds / num_pieces, seconds / num_pieces)


def hash_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise AudioError("AUDIO_UNREADABLE", f"{str(path)!r} cannot be read: {error.strerror}") from None


def inspect_files(
    jobs: Sequence[FileJob],
    num_processes: int = 0,
    inspect: Callable[[FileJob], list[Finding]] = inspect_file,
    min_files_for_processes: int = MIN_FILES_FOR_PROCESSES,
) -> Iterator[list[Finding]]:
    """Findings of `inspect_file` for each job, in order; `num_processes` 0 means one per core."""
    num_processes = num_processes or len(os.sched_getaffinity(0))
    if num_processes == 1 or len(jobs) < min_files_for_processes:
        yield from map(inspect, jobs)
        return
    num_done = 0
    while num_done < len(jobs):
        try:
            for findings in inspect_in_pool(jobs[num_done:], num_processes, inspect):
                yield findings
                num_done += 1
        except BrokenProcessPool:
            suspects = jobs[num_done : num_done + FILES_PER_TASK * num_processes]
            for job in suspects:
                yield inspect_alone(job, inspect)
                num_done += 1


def inspect_in_pool(
    jobs: Sequence[FileJob], num_processes: int, inspect: Callable[[FileJob], list[Finding]]
) -> Iterator[list[Finding]]:
    pool = ProcessPoolExecutor(num_processes, get_context("spawn"), initializer=leave_interrupts_to_parent)
    try:
        yield from pool.map(inspect, jobs, chunksize=FILES_PER_TASK)
    finally:
        pool.shutdown(cancel_futures=True)


def inspect_alone(job: FileJob, inspect: Callable[[FileJob], list[Finding]]) -> list[Finding]:
    try:
        (findings,) = inspect_in_pool([job], 1, inspect)
        return findings
    except BrokenProcessPool:
        error = AudioError("AUDIO_CRASHED_DECODER", f"{str(job.path)!r} crashed the decoder")
        return [error] * len(job.stretches)


def leave_interrupts_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
