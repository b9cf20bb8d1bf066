"""Valid files, mutated by a seeded hand: each is decoded to exactly what it claims, or refused with a reason.

Decoders run where `caspi prepare` runs them: in worker processes with limits. `pytest -m slow tests/test_fuzz_audio.py`
tries 20,000 files; SEED picks others.
"""

import io
import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from caspi.speech.corpora.audio import SAMPLE_RATE_HZ, AudioError, load_audio, probe_audio
from caspi.speech.corpora.clips import ClipFacts, FileJob, Finding, Stretch, cpu_limit, inspect_files

SEED = int(os.environ.get("SEED", "0"))
ENCODINGS = [
    ("WAV", "PCM_16", 16_000), ("WAV", "FLOAT", 16_000), ("WAV", "ULAW", 8_000), ("AIFF", "PCM_16", 44_100),
    ("FLAC", "PCM_16", 16_000), ("FLAC", "PCM_24", 48_000), ("MP3", "MPEG_LAYER_III", 16_000),
    ("MP3", "MPEG_LAYER_III", 44_100), ("OGG", "VORBIS", 16_000), ("OGG", "OPUS", 48_000),
]  # fmt: skip
NUMBERS = (0, 1, 2**31 - 1, 2**31, 2**32 - 1)
EXTREMES = [number.to_bytes(4, order) for number in NUMBERS for order in ("little", "big")]
HEADER_BYTES = 256
"""Where half of the mutations fall: what a decoder believes stands there."""
MAX_CPU_SECONDS = 20.0
TOLERANCE_SECONDS = 0.1
"""MP3 decoders begin and end within a frame or two."""


def seeds() -> list[bytes]:
    rng = np.random.default_rng(SEED)
    files = []
    for container, subtype, rate_hz in ENCODINGS:
        buffer = io.BytesIO()
        samples = 0.1 * rng.standard_normal(rate_hz // 2)
        soundfile.write(buffer, samples, rate_hz, format=container, subtype=subtype)
        files.append(buffer.getvalue())
    return files


def mutate(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    mutant = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        limit = min(len(mutant), HEADER_BYTES) if rng.random() < 0.5 else len(mutant)
        place = rng.randrange(max(1, limit))
        length = rng.choice((1, 2, 4, 16, 64, 512))
        kind = rng.randrange(8)
        if kind == 0:
            mutant[place : place + 1] = bytes([mutant[place] ^ 1 << rng.randrange(8)]) if mutant else b""
        elif kind == 1:
            mutant[place : place + 4] = rng.choice(EXTREMES)
        elif kind == 2:
            mutant[place : place + length] = rng.randbytes(length)
        elif kind == 3:
            del mutant[place : place + length]
        elif kind == 4:
            mutant[place:place] = mutant[place : place + length]
        elif kind == 5:
            del mutant[place:]
        elif kind == 6:
            other = rng.choice(others)
            start = rng.randrange(len(other))
            mutant[place:place] = other[start : start + length]
        else:
            mutant[place : place + length] = bytes(length)
    return bytes(mutant)


def mutants(number: int) -> Iterator[bytes]:
    rng = random.Random(SEED)
    files = seeds()
    for index in range(number):
        yield mutate(files[index % len(files)], files, rng)


def decode(job: FileJob) -> list[Finding]:
    """Everything that later steps do with a file: probe it, load all of it and a stretch of it."""
    try:
        with cpu_limit(MAX_CPU_SECONDS):
            info = probe_audio(job.path, job.max_file_mib)
            samples = load_audio(job.path)
            load_audio(job.path, info.duration_seconds / 2, info.duration_seconds / 4)
    except AudioError as error:
        return [error]
    assert samples.dtype == np.float32
    assert np.isfinite(samples).all()
    assert abs(len(samples) / SAMPLE_RATE_HZ - info.duration_seconds) < TOLERANCE_SECONDS, (job.path, info)
    return [ClipFacts(info.duration_seconds, None, "")]


def fuzz(number: int, folder: Path) -> Counter[str]:
    jobs = []
    for index, data in enumerate(mutants(number)):
        path = folder / f"{index}.bin"
        path.write_bytes(data)
        jobs.append(FileJob(path, (Stretch(0.0, None, wants_snr=False),), None, 16.0, 10.0))
    outcomes: Counter[str] = Counter()
    for job, findings in zip(jobs, inspect_files(jobs, 0, decode), strict=True):
        (finding,) = findings
        if isinstance(finding, AudioError):
            assert job.path.name in str(finding)
            assert "\n" not in str(finding)
        outcomes[finding.reason if isinstance(finding, AudioError) else "GOOD"] += 1
    return outcomes


def test_the_seeds_themselves_are_good(tmp_path: Path) -> None:
    for index, data in enumerate(seeds()):
        (tmp_path / str(index)).write_bytes(data)
        job = FileJob(tmp_path / str(index), (Stretch(0.0, None, wants_snr=False),), None, 16.0, 10.0)
        assert isinstance(decode(job)[0], ClipFacts), ENCODINGS[index]


@pytest.mark.parametrize(
    "number", [400, pytest.param(20_000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])], ids=str
)
def test_a_mutated_file_is_decoded_as_it_claims_or_refused_with_a_reason(number: int, tmp_path: Path) -> None:
    outcomes = fuzz(number, tmp_path)
    print(outcomes)
    assert outcomes.total() == number
    assert outcomes["GOOD"] > number / 10, "mutations that break every file test nothing but the first bytes"
    assert outcomes["GOOD"] < number
    assert len(outcomes) > 5
    assert outcomes["AUDIO_CRASHED_DECODER"] == 0, "counted, but a decoder that dies is worth a look"
