"""Does cleaning cut between words, lose no text, and do to each utterance what its planted defect demands?

    python -m benchmarks.cleaning --output /tmp/cleaning --seed 9301

A synthetic corpus with planted defects goes through `caspi prepare`, `audit` and `clean` as a user runs them; then each
decision is held against the truth of the corpus. A run that is stopped goes on.
"""

import argparse
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from caspi.config import SyntheticSpeech
from caspi.records import CleanedUtterance, read_jsonl, read_manifest
from caspi.speech.synthetic.synth import Domain
from caspi.speech.synthetic.synth_corpus import SyntheticTruth, plan_audit_corpus, read_truth, write_corpus
from caspi.speech.text import alignment_words

DOMAIN_SHARES: dict[Domain, float] = {"kan_clean": 0.4, "whatsapp_noisy": 0.3, "long_tail": 0.3}
CORRUPT_ACTIONS = frozenset({"rescue", "review", "drop"})
"""What may become of an utterance with a defect; a good one is kept, trimmed or resegmented."""


class Arguments(NamedTuple):
    output: Path
    seed: int
    utterances: int
    defects: float
    long_snr_db: list[float]


class Judged(NamedTuple):
    """An utterance of the corpus and the lines that were made of it."""

    truth: SyntheticTruth
    text: str
    lines: list[CleanedUtterance]

    @property
    def action(self) -> str:
        return str(self.lines[0].attempted or self.lines[0].action)

    @property
    def kept(self) -> list[CleanedUtterance]:
        return [line for line in self.lines if line.tier is not None]


def main() -> None:
    arguments = parse()
    corpus = arguments.output / "corpus"
    if not (corpus / "corpus.jsonl").exists():
        low, high = arguments.long_snr_db
        speech = SyntheticSpeech(long_tail_snr_db=(low, high))
        plans = plan_audit_corpus(
            arguments.utterances,
            arguments.defects,
            arguments.seed,
            domain_shares=DOMAIN_SHARES,
            decorated_fraction=0.5,
            settings=speech,
        )
        write_corpus(corpus, plans, speech, num_processes=1)
    run_steps(arguments.output)
    data = arguments.output / "data"
    judged = read_judged(corpus, data)
    summary = json.loads((data / "cleaning_summary.json").read_text(encoding="utf-8"))
    print("\n".join([*cuts_table(judged), "", *actions_table(judged), "", *hours_table(summary)]))


def parse() -> Arguments:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=9301)
    parser.add_argument("--utterances", type=int, default=200)
    parser.add_argument("--defects", type=float, default=0.15)
    usual = SyntheticSpeech().long_tail_snr_db
    parser.add_argument("--long-snr-db", type=float, nargs=2, default=usual, help="speech to noise of long clips")
    return Arguments(**vars(parser.parse_args()))


def run_steps(folder: Path) -> None:
    """prepare, audit, clean; an audit that says STOP (1) is what cleaning is for."""
    steps: list[tuple[list[str], tuple[int, ...]]] = [
        (["prepare", "--manifest", "corpus/corpus.jsonl", "--output", "data"], (0,)),
        (["audit", "--manifest", "data/manifest.jsonl", "--backend", "tts-dtw", "--sample-rate", "1"], (0, 1)),
        (["clean"], (0,)),
    ]
    for flags, codes in steps:
        command = [sys.executable, "-m", "caspi", *flags]
        print(f"$ caspi {' '.join(flags)}", flush=True)
        if flags[0] == "audit" and (folder / "phase0_audit_results" / "alignment_report.json").exists():
            continue
        found = subprocess.run(command, cwd=folder, check=False).returncode
        if found not in codes:
            raise SystemExit(f"caspi {flags[0]} ended with exit code {found}")


def read_judged(corpus: Path, data: Path) -> list[Judged]:
    lines: dict[str, list[CleanedUtterance]] = {}
    for name in ("cleaned", "dropped", "review"):
        for line in read_jsonl(data / f"{name}.jsonl", CleanedUtterance):
            lines.setdefault(line.parent_id, []).append(line)
    truth = read_truth(corpus)
    return [
        Judged(truth[one.id], one.text, sorted(lines[one.id], key=lambda line: line.offset))
        for one in read_manifest(data / "manifest.jsonl")
    ]


def cuts_table(judged: Sequence[Judged]) -> list[str]:
    """Places where audio was cut, each once, and how deep inside a true word they lie."""
    cut = [one for one in judged if one.action in ("trim", "resegment", "rescue")]
    depths = []
    for one in cut:
        inner = [line.offset for line in one.kept] + [line.offset + line.duration for line in one.kept]
        depths += [depth_ms(second, one.truth) for second in sorted({round(second, 3) for second in inner})]
    inside = [depth for depth in depths if depth > 0]
    whole = sum(" ".join(line.text for line in one.lines) == one.text for one in judged)
    said = [is_what_was_said(line, one.truth) for one in judged for line in one.kept]
    return [
        "| figure | value |",
        "|---|---|",
        f"| utterances cut | {len(cut)} |",
        f"| places where audio was cut | {len(depths)} |",
        f"| inside a true word | {len(inside)} |",
        f"| more than 40 ms, 80 ms inside | {sum(d > 40 for d in depths)}, {sum(d > 80 for d in depths)} |",
        f"| deepest | {max(depths, default=0):.0f} ms |",
        f"| utterances whose lines together are the original text | {whole} of {len(judged)} |",
        f"| kept lines whose words are exactly what is spoken there | {sum(said)} of {len(said)} |",
    ]


def depth_ms(second: float, truth: SyntheticTruth) -> float:
    inside = [min(second - start, end - second) for start, end in truth.word_times if start < second < end]
    return 1000 * max(inside, default=0.0)


def is_what_was_said(line: CleanedUtterance, truth: SyntheticTruth) -> bool:
    """Are its letters those of the words whose middle lies inside?"""
    heard = [
        word
        for word, (start, end) in zip(truth.words, truth.word_times, strict=True)
        if line.offset <= (start + end) / 2 < line.offset + line.duration
    ]
    return letters_of(line.text) == letters_of(" ".join(heard))


def letters_of(text: str) -> str:
    """Without spaces, because a maqaf makes two spoken words one written one."""
    return "".join(word.text for word in alignment_words(text))


def actions_table(judged: Sequence[Judged]) -> list[str]:
    """Actions by planted defect, and how well `not kept as it is` finds what is bad."""
    kinds = sorted({one.truth.defect or "none" for one in judged}, key=lambda kind: (kind != "none", kind))
    counts = Counter((one.truth.defect or "none", one.action) for one in judged)
    actions = ("keep", "trim", "resegment", "rescue", "review", "drop")
    rows = ["| planted | " + " | ".join(actions) + " |", "|---|" + "---|" * len(actions)]
    rows += [f"| {kind} | " + " | ".join(str(counts[kind, action]) for action in actions) + " |" for kind in kinds]
    lost: dict[bool, list[bool]] = {True: [], False: []}
    for one in judged:
        lost[one.truth.defect is not None].append(not all(line.tier is not None for line in one.lines))
    found, alarms = sum(lost[True]), sum(lost[False])
    precision, recall = found / max(1, found + alarms), found / max(1, len(lost[True]))
    kept = [(line, is_what_was_said(line, one.truth)) for one in judged for line in one.kept]
    bad = sum(not right for _, right in kept)
    return [
        *rows,
        "",
        f"Left out, wholly or in part: {found} of {len(lost[True])} utterances with a defect (recall {recall:.2f}), "
        f"{alarms} of {len(lost[False])} good ones (precision {precision:.2f}).",
        f"Of {len(kept)} kept lines {bad} ({100 * bad / max(1, len(kept)):.1f} %) have other words than are spoken.",
    ]


def hours_table(summary: Mapping[str, Any]) -> list[str]:
    fates = ("in", "kept", "trimmed", "dropped", "review")
    rows = ["| action | utterances | " + " | ".join(f"hours {fate}" for fate in fates) + " |"]
    rows.append("|---|---|" + "---|" * len(fates))
    for name, row in [*summary["by_action"].items(), ("all", summary)]:
        hours = " | ".join(f"{row['hours'][fate]:.3f}" for fate in fates)
        rows.append(f"| {name} | {row['num_utterances']} | {hours} |")
    residual = summary["residual"]
    return [
        *rows,
        "",
        f"Residual estimate: {residual['point_pct']:.1f} %, at most {residual['upper_pct']:.1f} %; if all errors were "
        f"like {residual['worst_kind']}: {residual['worst_kind_pct']:.1f} %.",
    ]


if __name__ == "__main__":
    main()
