"""C6: clips per second that one loader worker prepares, from audio file to tensors of a step.

    OMP_NUM_THREADS=1 python -m benchmarks.loader

Baseline: the official script's collator, which runs the processor twice.
"""

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.clip_files import Clip, write_clips
from benchmarks.measure import Timing, alternate, markdown_table, ratios, write_result
from benchmarks.models import SMALL, config_of
from benchmarks.official_collator import OfficialCollator
from benchmarks.processors import known_words, processor_with
from benchmarks.step_speed import LANGUAGE, UNLIMITED_TOKENS, utterance_of
from benchmarks.workload import clip_seconds
from caspi.model.packed.batch import Packer
from caspi.model.training.batch import Encoder, Utterances
from caspi.model.training.parts import PackedParts

NUM_CLIPS = 32
MEAN_SECONDS = 5.7
NUM_ROUNDS = 5
OFFICIAL_MICRO_BATCH = 2
SUFFIXES = ("wav", "flac")
OURS, OFFICIAL = "ours", "official script"
RESULT = Path("docs/results/benchmarks/loader.json")


def official(collate: OfficialCollator, clips: Sequence[Clip]) -> None:
    for first in range(0, len(clips), OFFICIAL_MICRO_BATCH):
        collate(clips[first : first + OFFICIAL_MICRO_BATCH])


def ours(parts: PackedParts, utterances: Utterances) -> None:
    parts.collator()([utterances[(0, index)] for index in range(len(utterances))])


def measure(folder: Path, suffix: str, num_rounds: int) -> dict[str, Timing]:
    processor = processor_with(SMALL.mel_bins)
    clips = write_clips(folder / suffix, clip_seconds(NUM_CLIPS, MEAN_SECONDS, 3).tolist(), known_words(), 3, suffix)
    encoder = Encoder(processor, LANGUAGE)
    parts = PackedParts(encoder, Packer(config_of(SMALL), encoder.pad_id), UNLIMITED_TOKENS)
    subjects: dict[str, Callable[[], object]] = {
        OFFICIAL: partial(official, OfficialCollator(processor, LANGUAGE), clips),
        OURS: partial(ours, parts, Utterances([utterance_of(clip) for clip in clips], encoder)),
    }
    return alternate(subjects, num_rounds)


def run(num_rounds: int = NUM_ROUNDS) -> dict[str, Any]:
    result: dict[str, Any] = {}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for suffix in SUFFIXES:
            timings = measure(Path(folder), suffix, num_rounds)
            faster = ratios(timings, OURS)[OFFICIAL]
            result[suffix] = {"seconds": {n: t.seconds for n, t in timings.items()}, "ours_is_faster_by": faster}
            rows += [
                (suffix, name, f"{NUM_CLIPS / timing.median:.1f}", f"{timing.spread_fraction:.0%}",
                 f"{faster if name == OFFICIAL else 1.0:.2f}")
                for name, timing in timings.items()
            ]  # fmt: skip
    print(markdown_table(("files", "data path", "clips/s and worker", "spread", "ours is faster by"), rows))
    return result


if __name__ == "__main__":
    write_result(RESULT, run())
