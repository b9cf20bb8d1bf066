"""Corpora to one manifest of utterances: exactly what audit and train both read.

Every row of every source ends in `manifest.jsonl` or, with its reason, in `quarantine.jsonl`. Audio is not copied, cut
or converted; audio that is embedded in a table is written once, under the hash of its bytes. Integer encodings are
probed, not decoded: a damaged middle of such a file shows in the audit. Floating-point ones are decoded, for NaN.
"""

import hashlib
import os
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from caspi.config import Prepare, Recipe
from caspi.ops.progress import track
from caspi.ops.provenance import commit, versions
from caspi.records import ExitCode, Rejected, SegmentTimes, Utterance, is_cleaned, write_json, write_jsonl
from caspi.speech.corpora.audio import AudioError, sniff
from caspi.speech.corpora.clips import ClipFacts, FileJob, Finding, Stretch, inspect_files
from caspi.speech.corpora.corpus import RawItem, Source, open_sources
from caspi.speech.text import alignment_words, normalize_transcript, timestamp_segments

HASH_CHARACTERS = 32
MAX_NAMED = 5
"""Unused files that are named on the console; prepare_summary.json names all."""
DAMAGED_CHARACTER = re.compile("[\ufffd\ud800-\udfff]")
"""What remains of text that was decoded with the wrong encoding."""


class Candidate(NamedTuple):
    """An item whose row and transcript are in order; its audio has not been looked at."""

    item: RawItem
    audio_path: Path
    text: str
    sha256: str | None
    """Hash of the audio file where it was embedded."""
    domain: str | None
    """None: to be measured."""
    domain_source: Literal["column", "source", "measured"]


Entry = Candidate | Rejected


def run(recipe: Recipe) -> int:
    """Write manifest.jsonl, quarantine.jsonl, prepare_summary.json and embedded audio; print the counts.

    Returns:
        0, or 2 if no row at all became an utterance (then there is no manifest).

    Raises:
        ValueError: a source is missing, empty, or not what it should be.
    """
    section = recipe.prepare
    sources = open_sources(section)
    refuse_to_overwrite(sources, section.output)
    entries = read_sources(sources, section)
    findings = inspect_audio(entries, section)
    results = [
        entry if isinstance(entry, Rejected) else judge(entry, findings[index], section)
        for index, entry in enumerate(entries)
    ]
    utterances = [result for result in results if isinstance(result, Utterance)]
    rejected = [result for result in results if isinstance(result, Rejected)]
    summary = summarize(utterances, rejected, sources, section)
    write_outputs(utterances, rejected, summary, section.output)
    print_counts(utterances, rejected, section.output)
    if utterances:
        return ExitCode.DONE
    print("error: not one row became an utterance; there is no manifest", file=sys.stderr)
    return ExitCode.BAD_REQUEST


def refuse_to_overwrite(sources: Sequence[Source], output: Path) -> None:
    for source in sources:
        if source.table is not None and source.table == (output / "manifest.jsonl").resolve():
            raise ValueError(f"{source.location} would be overwritten by its own result; give another --output")
        if source.table is not None and is_cleaned(source.table):
            raise ValueError(
                f"{source.location} was written by caspi clean: train on it as it is; a copy would not say how it was "
                "filtered"
            )


def read_sources(sources: Sequence[Source], section: Prepare) -> list[Entry]:
    """One entry per row, in order; embedded audio is on disk afterwards.

    Raises:
        ValueError: a source cannot be read or has no rows.
    """
    entries: list[Entry] = []
    seen: set[str] = set()
    for source in sources:
        num_before = len(entries)
        for item in track(source.items(), None, f"reading {source.label}"):
            entries.append(item if isinstance(item, Rejected) else admit(item, seen, section))
            seen.add(item.id)
        if len(entries) == num_before:
            raise ValueError(f"{source.location} holds no rows")
        if source.ignored_columns:
            print(f"{source.label}: columns not used: {', '.join(sorted(source.ignored_columns))}")
        if source.unused_files:
            print(f"{source.label}: neither sound nor text: {name_some(source.unused_files)}")
    return entries


def name_some(names: set[str]) -> str:
    shown = ", ".join(map(repr, sorted(names)[:MAX_NAMED]))
    return shown + (f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else "")


def admit(item: RawItem, seen: set[str], section: Prepare) -> Entry:
    """Check everything about an item but its audio."""

    def reject(reason: str, detail: str) -> Rejected:
        return Rejected(id=item.id, source=item.source, reason=reason, detail=detail)

    if item.id in seen:
        return reject("DUPLICATE_ID", f"an earlier row has the id {item.id!r} already")
    if DAMAGED_CHARACTER.search(item.text):
        return reject("INVALID_TEXT", "the transcript holds characters of a wrong encoding (U+FFFD or surrogates)")
    text = normalize_transcript(item.text)
    if not text:
        return reject("EMPTY_TRANSCRIPT", f"the transcript is {item.text[:80]!r}")
    if not alignment_words(text):
        return reject("NO_LETTERS", f"the transcript {text[:80]!r} holds no letter or digit")
    sha256 = None
    if item.audio_bytes is not None:
        try:
            audio_path, sha256 = store_audio(item.audio_bytes, item.id, section)
        except AudioError as error:
            return reject(error.reason, str(error))
        item = item._replace(audio_bytes=None)
    else:
        assert item.audio_path is not None, "an item has a path or bytes"
        audio_path = item.audio_path
    if item.domain is not None:
        return Candidate(item, audio_path, text, sha256, item.domain, "column")
    return Candidate(item, audio_path, text, sha256, domain_of_source(item.source, section), "source")


def store_audio(data: bytes, item_id: str, section: Prepare) -> tuple[Path, str]:
    """Write embedded audio under the hash of its bytes, unless it is there already.

    Raises:
        AudioError: empty, too large, or no audio format that we read.
    """
    if not data:
        raise AudioError("AUDIO_EMPTY", f"{item_id}: the embedded audio has 0 bytes")
    if len(data) > section.max_file_mib * 2**20:
        found = f"{len(data) / 2**20:.1f} MiB, expected at most {section.max_file_mib:g} MiB"
        raise AudioError("AUDIO_TOO_LARGE", f"{item_id}: the embedded audio has {found}")
    container = sniff(data[:64], Path(item_id))
    sha256 = hashlib.sha256(data).hexdigest()
    path = section.output.resolve() / "audio" / f"{sha256[:HASH_CHARACTERS]}.{container}"
    if not path.is_file() or path.read_bytes() != data:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_bytes(data)
        os.replace(temporary, path)
    return path, sha256


def domain_of_source(source: str, section: Prepare) -> str | None:
    """The domain of the first word that the name of the source holds; None if it tells nothing."""
    for word, domain in section.domain_of_source.items():
        if re.search(rf"(?<![a-z]){re.escape(word.lower())}(?![a-z])", source.lower()):
            return domain
    return None


def inspect_audio(entries: Sequence[Entry], section: Prepare) -> dict[int, Finding]:
    """What the audio says about each candidate, by its index; a file with many clips is opened once."""
    stretches: dict[Path, list[tuple[int, Stretch]]] = defaultdict(list)
    hashes: dict[Path, str | None] = {}
    for index, entry in enumerate(entries):
        if isinstance(entry, Candidate):
            stretch = Stretch(entry.item.offset, entry.item.duration, wants_snr=entry.domain is None)
            stretches[entry.audio_path].append((index, stretch))
            hashes[entry.audio_path] = entry.sha256
    jobs = [
        FileJob(path, tuple(part for _, part in parts), hashes[path], section.max_file_mib, section.max_snr_seconds)
        for path, parts in stretches.items()
    ]
    reports = track(inspect_files(jobs, section.num_processes), len(jobs), "looking at audio files")
    return {
        index: finding
        for parts, findings in zip(stretches.values(), reports, strict=True)
        for (index, _), finding in zip(parts, findings, strict=True)
    }


def judge(candidate: Candidate, finding: Finding, section: Prepare) -> Utterance | Rejected:
    item = candidate.item
    if isinstance(finding, AudioError):
        return Rejected(id=item.id, source=item.source, reason=finding.reason, detail=str(finding))
    if finding.duration_seconds < section.min_duration_seconds:
        detail = f"{finding.duration_seconds:g} s, expected at least {section.min_duration_seconds:g} s"
        return Rejected(id=item.id, source=item.source, reason="TOO_SHORT", detail=detail)
    return Utterance(
        id=item.id,
        audio_filepath=manifest_path(candidate.audio_path, section.output.resolve()),
        text=candidate.text,
        offset=item.offset,
        duration=finding.duration_seconds,
        domain=candidate.domain or measured_domain(finding, section),
        domain_source=candidate.domain_source if candidate.domain else "measured",
        group_id=item.group_id,
        source=item.source,
        prev_text=normalize_transcript(item.prev_text) if item.prev_text else None,
        split=item.split,
        source_sha256=finding.sha256,
        quality_score=item.quality_score,
        segments=segment_times(item.text),
        needs_resegmentation=finding.duration_seconds > section.max_duration_seconds,
    )


def segment_times(text: str) -> tuple[SegmentTimes, ...]:
    """Times of the transcript's stretches, where it carries Whisper's timestamp tokens."""
    return tuple(
        SegmentTimes(
            first_word=segment.first_word,
            num_words=num_words,
            start=segment.start_seconds,
            end=segment.end_seconds,
        )
        for segment in timestamp_segments(text)
        if (num_words := len(alignment_words(segment.text)))
    )


def manifest_path(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)


def measured_domain(facts: ClipFacts, section: Prepare) -> str:
    """By noise, then by length; a clip whose noise cannot be told from its speech counts as not noisy."""
    if facts.snr_db is not None and facts.snr_db < section.noisy_below_snr_db:
        return "whatsapp_noisy"
    return "long_tail" if facts.duration_seconds > section.long_tail_above_seconds else "kan_clean"


def summarize(
    utterances: Sequence[Utterance], rejected: Sequence[Rejected], sources: Sequence[Source], section: Prepare
) -> dict[str, Any]:
    """What goes into prepare_summary.json."""
    return {
        "num_rows": len(utterances) + len(rejected),
        "num_utterances": len(utterances),
        "num_rejected": len(rejected),
        "num_needs_resegmentation": sum(utterance.needs_resegmentation for utterance in utterances),
        "hours": hours(utterances),
        "domains": totals((utterance.domain, utterance) for utterance in utterances),
        "sources": totals((str(utterance.source), utterance) for utterance in utterances),
        "domain_sources": dict(Counter(utterance.domain_source for utterance in utterances)),
        "rejected_by_reason": dict(Counter(item.reason for item in rejected)),
        "inputs": [
            {
                "label": source.label,
                "location": source.location,
                "fingerprint": source.fingerprint,
                "unused_columns": sorted(source.ignored_columns),
                "unused_files": sorted(source.unused_files),
            }
            for source in sources
        ],
        "recipe": section.model_dump(mode="json"),
        "versions": versions(),
        "commit": commit(),
    }


def totals(pairs: Iterator[tuple[str, Utterance]]) -> dict[str, dict[str, float]]:
    groups: dict[str, list[Utterance]] = defaultdict(list)
    for name, utterance in pairs:
        groups[name].append(utterance)
    return {name: {"num_utterances": len(group), "hours": hours(group)} for name, group in sorted(groups.items())}


def hours(utterances: Sequence[Utterance]) -> float:
    return round(sum(utterance.duration for utterance in utterances) / 3600, 6)


def write_outputs(
    utterances: Sequence[Utterance], rejected: Sequence[Rejected], summary: dict[str, Any], output: Path
) -> None:
    """The manifest last: whoever finds it finds the rest. Without an utterance, an earlier manifest goes too.

    Embedded audio reaches the disk here, all at once: waiting for each of 74,000 files would take ten minutes.
    """
    os.sync()
    write_jsonl(output / "quarantine.jsonl", rejected)
    write_json(output / "prepare_summary.json", summary)
    if utterances:
        write_jsonl(output / "manifest.jsonl", utterances)
    else:
        (output / "manifest.jsonl").unlink(missing_ok=True)


def print_counts(utterances: Sequence[Utterance], rejected: Sequence[Rejected], output: Path) -> None:
    num_long = sum(utterance.needs_resegmentation for utterance in utterances)
    print(f"{'':24}{'utterances':>12}{'hours':>10}")
    for domain, total in totals((utterance.domain, utterance) for utterance in utterances).items():
        print(f"{domain:24}{total['num_utterances']:>12}{total['hours']:>10.2f}")
    print(f"{'all':24}{len(utterances):>12}{hours(utterances):>10.2f}")
    print(f"{'  to be resegmented':24}{num_long:>12}")
    print(f"{'quarantined':24}{len(rejected):>12}")
    examples = {item.reason: item for item in reversed(rejected)}
    for reason, count in Counter(item.reason for item in rejected).most_common():
        print(f"  {reason:22}{count:>12}  e.g. {examples[reason].id}: {examples[reason].detail}")
    print(f"written: {output / 'manifest.jsonl' if utterances else output / 'quarantine.jsonl'}")
