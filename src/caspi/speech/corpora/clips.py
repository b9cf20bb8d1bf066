"""What audio files say about the clips in them, looked at in worker processes.

A decoder that crashes on a hostile file takes its process with it, and never the step: also few files are looked at
in a process of their own. The files that were under way are then looked at one by one, so that the guilty one is found
and counted, and the others are not lost. A worker has limits on memory, and on computing time per clip.
"""

import hashlib
import math
import os
import resource
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
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
"""Fewer files are looked at sooner by one process than more processes start."""
FILES_PER_TASK = 32
SECONDS_PER_PIECE = 600.0
"""Longer clips are decoded in pieces."""
MAX_WORKER_GIB = 3.0
"""What a worker may take beyond its libraries; decoding a clip takes less than a tenth of it."""
MAX_CPU_SECONDS = 300.0
"""Computing time that one clip may take; ten minutes of audio take about one second."""
BYTES_PER_GIB = 2**30
STDERR = 2


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
        with cpu_limit(MAX_CPU_SECONDS):
            info = probe_audio(job.path, job.max_file_mib)
            sha256 = job.sha256 or hash_file(job.path)
    except AudioError as error:
        return [error] * len(job.stretches)
    except MemoryError:
        return [out_of_memory(job.path)] * len(job.stretches)
    return [inspect_stretch(job, stretch, info, sha256) for stretch in job.stretches]


def inspect_stretch(job: FileJob, stretch: Stretch, info: AudioInfo, sha256: str) -> Finding:
    try:
        seconds = exact_duration(job.path, stretch, info)
        snr_db = None
        with cpu_limit(MAX_CPU_SECONDS):
            if info.encoding in FLOAT_ENCODINGS:
                decode_all(job.path, stretch.offset_seconds, seconds)
            if stretch.wants_snr:
                start = load_audio(job.path, stretch.offset_seconds, min(seconds, job.max_snr_seconds))
                snr_db = estimate_snr_db(start)
    except AudioError as error:
        return error
    except MemoryError:
        return out_of_memory(job.path)
    return ClipFacts(round(seconds, 6), snr_db, sha256)


def out_of_memory(path: Path) -> AudioError:
    return AudioError("AUDIO_OUT_OF_MEMORY", f"{str(path)!r} takes more than {MAX_WORKER_GIB:g} GiB to decode")


@contextmanager
def cpu_limit(seconds: float) -> Iterator[None]:
    """End this process by SIGPROF when the block computes for longer; a decoder's endless loop heeds nothing milder."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


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
    if len(jobs) < min_files_for_processes:
        num_processes = 1
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
    pool = ProcessPoolExecutor(num_processes, worker_context(), initializer=begin_worker)
    try:
        yield from pool.map(inspect, jobs, chunksize=FILES_PER_TASK)
    finally:
        pool.shutdown(cancel_futures=True)


def inspect_alone(job: FileJob, inspect: Callable[[FileJob], list[Finding]]) -> list[Finding]:
    """In a process of its own, whose end is told."""
    receiver, sender = worker_context().Pipe(duplex=False)
    process = worker_context().Process(target=inspect_and_send, args=(job, inspect, sender))
    process.start()
    sender.close()
    try:
        findings: list[Finding] = receiver.recv()
    except EOFError:
        process.join()
        how = how_it_ended(process.exitcode or 0)
        return [AudioError("AUDIO_CRASHED_DECODER", f"{str(job.path)!r} {how}")] * len(job.stretches)
    process.join()
    return findings


def inspect_and_send(job: FileJob, inspect: Callable[[FileJob], list[Finding]], sender: Connection) -> None:
    begin_worker()
    sender.send(inspect(job))


def how_it_ended(exit_code: int) -> str:
    if exit_code == -signal.SIGPROF:
        return f"kept the decoder busy for more than {MAX_CPU_SECONDS:g} s of computing"
    if exit_code < 0:
        return f"crashed the decoder ({signal.Signals(-exit_code).name})"
    return f"ended the decoder (exit code {exit_code})"


def worker_context() -> ForkServerContext:
    """Workers are forked from a server that has the decoders loaded and nothing else: none of this process's threads,
    locks or memory reaches them, and the second pool of a run starts in milliseconds."""
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def begin_worker() -> None:
    """Interrupts are the parent's business, memory ends before the machine's does, and decoders keep their notes.

    libmpg123 writes what it repairs to the console, without the name of the file; errors come back as findings.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(os.open(os.devnull, os.O_WRONLY), STDERR)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + int(MAX_WORKER_GIB * BYTES_PER_GIB)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
