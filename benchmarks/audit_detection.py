"""Does the audit's detector find what is wrong, leave alone what is right, and hold what its intervals promise?

    python -m benchmarks.audit_detection --output /tmp/detection --seeds 9101 9102 9103 9104

Good synthetic corpora are aligned once: every utterance with its own transcript, with a decoy, and with one defect of
each kind. Corpora with any share of defects are then put together from these pairs, and go through the audit's own
thresholds, judgement and estimate. What was aligned is remembered in OUTPUT/alignments.jsonl, so a run that is stopped
goes on. The intervals themselves are tried by `benchmarks.interval_coverage`, without any audio.
"""

import argparse
import hashlib
import inspect
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")  # before numpy is imported

import numpy as np
from rich.console import Console
from rich.progress import track

from benchmarks.detection_tables import audits_table, detection_table, rates_table
from benchmarks.measure import write_result
from benchmarks.planted import PLANTED_SHUFFLE, Battery, audits_of_planted, judged_defects
from caspi.config import Audit, Calibration, Recipe
from caspi.model.aligners import build_aligner, tts_dtw
from caspi.model.aligners.battery import Task, measure_group
from caspi.model.aligners.outcome_record import outcome_json, outcome_of, request_json
from caspi.ops.audit.alignment_cache import AlignmentCache, alignment_key, open_cache
from caspi.records import Utterance, read_jsonl, sha256_of_file
from caspi.speech.alignment import controls, vad
from caspi.speech.alignment.controls import DECOY, DecoyChooser, PlannedPair, Transcript, plan_pairs
from caspi.speech.alignment.quality import Outcome
from caspi.speech.alignment.study import transcript_of
from caspi.speech.corpora.audio import probe_audio
from caspi.speech.synthetic.synth import Domain
from caspi.speech.synthetic.synth_corpus import CorpusRow, plan_audit_corpus, write_corpus

DOMAIN_SHARES: dict[Domain, float] = {"kan_clean": 0.40, "whatsapp_noisy": 0.40, "long_tail": 0.20}
RATES = (0.0, 0.05, 0.12, 0.25)
TABLE_RATE = 0.12
"""Of the corpora whose thresholds the table by kind and domain is judged by."""
ALL = 10**6
CODE_SHA256 = hashlib.sha256(
    "\0".join([*map(inspect.getsource, (tts_dtw, vad, controls)), np.__version__]).encode()
).hexdigest()
"""Of what aligns: a remembered alignment counts only while this is the same."""


class Arguments(NamedTuple):
    output: Path
    seeds: tuple[int, ...]
    utterances: int
    plantings: int
    samples: int


def main() -> None:
    arguments = read_arguments()
    batteries = [align_corpus(seed, arguments) for seed in arguments.seeds]
    console = Console(stderr=True)
    rows = [
        row
        for battery in track(batteries, "judging", console=console, disable=not console.is_terminal)
        for rate in RATES
        for row in judged_defects(battery, rate, settings_of(battery.seed))
    ]
    together = Battery.joined(batteries)
    jobs = [(rate, number) for rate in RATES for number in range(arguments.plantings)]
    audits = []
    for done, (rate, number) in enumerate(jobs, start=1):
        audits.append(audits_of_planted(together, rate, number, arguments.samples, settings_of(number)))
        console.print(f"planted audit {done} of {len(jobs)}", end="\r" if console.is_terminal else "\n")
    print(detection_table([row for row in rows if row.rate == TABLE_RATE]))
    print(rates_table(rows))
    print(audits_table(audits))
    write_result(
        arguments.output / "audit_detection.json",
        {
            "seeds": list(arguments.seeds),
            "utterances_per_seed": arguments.utterances,
            "defects": [row._asdict() for row in rows],
            "audits": [audit._asdict() for audit in audits],
        },
    )


def read_arguments() -> Arguments:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", required=True, help="one corpus each")
    parser.add_argument("--utterances", type=int, default=300, help="per corpus")
    parser.add_argument("--plantings", type=int, default=25, help="audits for each share of defects")
    parser.add_argument("--samples", type=int, default=300, help="utterances drawn by each of these audits")
    found = parser.parse_args()
    return Arguments(found.output, tuple(found.seeds), found.utterances, found.plantings, found.samples)


def settings_of(seed: int) -> Audit:
    """The defaults of the audit; every utterance gets every control."""
    calibration = Calibration(num_control_utterances=ALL, num_dose_utterances=0, num_self_test_sentences=0)
    return Audit(backend="tts-dtw", calibration=calibration, seed=seed, num_processes=1)


def align_corpus(seed: int, arguments: Arguments) -> Battery:
    """A good corpus with everything aligned; from the cache what is there."""
    utterances = write_good_corpus(arguments.output / f"corpus-{seed}", seed, arguments.utterances)
    transcripts = {utterance.id: transcript_of(utterance) for utterance in utterances}
    tasks = [
        Task(u.id, u.audio_filepath, 0.0, u.duration, planned)
        for u, planned in zip(utterances, plan(list(transcripts.values()), settings_of(seed)), strict=True)
    ]
    console = Console(stderr=True)
    outcomes = {}
    with open_cache(arguments.output / "alignments.jsonl") as cache:
        for outcome in track(
            align(tasks, cache, Recipe(audit=settings_of(seed))),
            f"aligning corpus {seed}",
            len(tasks),
            console=console,
            disable=not console.is_terminal,
        ):
            outcomes[outcome.id] = outcome
            if not console.is_terminal and len(outcomes) % 50 == 0:
                console.print(f"corpus {seed}: {len(outcomes)} of {len(tasks)} utterances aligned")
    texts = {task.id: {pair.control: " ".join(pair.words) for pair in task.planned} for task in tasks}
    return Battery(seed, utterances, transcripts, outcomes, texts)


def write_good_corpus(folder: Path, seed: int, num_utterances: int) -> list[Utterance]:
    manifest = folder / "corpus.jsonl"
    if not manifest.exists():
        write_corpus(folder, plan_audit_corpus(num_utterances, 0.0, seed, domain_shares=DOMAIN_SHARES), num_processes=1)
    return [
        Utterance(
            id=row.id,
            audio_filepath=str(folder / row.audio_filepath),
            text=row.text,
            duration=probe_audio(folder / row.audio_filepath).duration_seconds,
            domain=row.domain,
            group_id=row.group_id,
        )
        for row in read_jsonl(manifest, CorpusRow)
    ]


def plan(transcripts: Sequence[Transcript], settings: Audit) -> Iterator[tuple[PlannedPair, ...]]:
    """The audit's own pairs, and a wrong transcript that is not the decoy it will be compared with."""
    planned = plan_pairs(transcripts, transcripts, settings.calibration, settings.seed)
    for transcript in transcripts:
        decoy = next(pair.words for pair in planned[transcript.id] if pair.control == DECOY)
        others = [other for other in transcripts if other.words != decoy]
        wrong = DecoyChooser(others, settings.calibration, settings.seed + 1).choose(transcript)
        assert wrong is not None, f"{transcript.id}: no other transcript of this corpus differs enough"
        yield (*planned[transcript.id], PlannedPair(PLANTED_SHUFFLE, wrong.words))


def align(tasks: Sequence[Task], cache: AlignmentCache, recipe: Recipe) -> Iterator[Outcome]:
    aligner = build_aligner(recipe)
    for task in tasks:
        key = alignment_key(sha256_of_file(Path(task.audio_filepath)), request_json(task), CODE_SHA256)
        if key not in cache:
            cache.add(key, outcome_json(measure_group([task], aligner, recipe)[0]))
        yield outcome_of(task.id, cache[key])


if __name__ == "__main__":
    main()
