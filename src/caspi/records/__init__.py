"""What passes between steps, always through files."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError

from caspi.config import one_line
from caspi.files import numbered_lines
from caspi.records.base import AnswerIsNo, ExitCode, Record, RunFailed
from caspi.records.comparison import ComparedControl, ComparedSet, ComparedWords, Criterion

__all__ = [
    "Action",
    "AnswerIsNo",
    "CleanedUtterance",
    "Clip",
    "ComparedControl",
    "ComparedSet",
    "ComparedWords",
    "Criterion",
    "ExitCode",
    "Leak",
    "Prediction",
    "Record",
    "Rejected",
    "RunFailed",
    "Score",
    "Utterance",
    "dump_json",
    "is_cleaned",
    "read_jsonl",
    "read_manifest",
    "sha256_of_file",
    "write_atomically",
    "write_json",
    "write_jsonl",
]


class SegmentTimes(Record):
    """A stretch of a transcript whose times the corpus gives, as Whisper's timestamp tokens do."""

    first_word: int = Field(ge=0)
    """Place in `speech.text.alignment_words` of the transcript."""
    num_words: int = Field(ge=1)
    start: float = Field(ge=0)
    """Seconds from the start of the utterance."""
    end: float


class Utterance(Record):
    """One line of a manifest: a stretch of audio and its transcript."""

    id: str = Field(min_length=1)
    audio_filepath: str
    """Absolute, or relative to the manifest's folder."""
    text: str
    """Transcript, normalised by `speech.text.normalize_transcript`."""
    offset: float = Field(default=0.0, ge=0)
    """Seconds from the start of the file."""
    duration: float = Field(gt=0)
    """Seconds."""
    domain: str
    domain_source: Literal["column", "source", "measured"] = "column"
    group_id: str | None = None
    """Recording or speaker."""
    source: str | None = None
    """Dataset or file the utterance came from."""
    prev_text: str | None = None
    split: str | None = None
    source_sha256: str = ""
    """Hash of the bytes of the audio file."""
    quality_score: float | None = None
    """The corpus' own score, on its own scale."""
    segments: tuple[SegmentTimes, ...] = ()
    needs_resegmentation: bool = False
    """Too long for training; kept for the audit and for `clean`."""


Action = Literal["keep", "trim", "resegment", "rescue", "review", "drop"]


class CleanedUtterance(Utterance):
    """One line of cleaned.jsonl, dropped.jsonl or review.jsonl: an utterance as it was, or a stretch of one."""

    parent_id: str
    """Utterance of the manifest that was cleaned."""
    action: Action
    """In cleaned.jsonl what was done; in the others `drop` or `review`."""
    attempted: Literal["trim", "resegment", "rescue"] | None = None
    """In dropped.jsonl and review.jsonl: how the stretch was cut, before it failed to pass."""
    alignment_coverage: float | None = None
    speech_coverage: float | None = None
    alignment_confidence: float | None = None
    reasons_before: tuple[str, ...] = ()
    """Why the utterance was low quality before it was cut."""
    reasons: tuple[str, ...] = ()
    """Why this line is not in cleaned.jsonl."""
    detail: str | None = None
    """The same in words, where the reasons do not say it."""
    tier: Literal["strong", "normal"] | None = None
    """`strong`: both coverages are high. None in dropped.jsonl and review.jsonl."""


class Rejected(Record):
    """One line of quarantine.jsonl: an item that did not become an utterance."""

    id: str
    source: str
    reason: str
    """Upper-case code, for example EMPTY_TRANSCRIPT."""
    detail: str
    """What was found and what was expected."""


class Prediction(Record):
    """One line of predictions.jsonl: raw reference and raw hypothesis, normalised only when scored."""

    id: str
    test_set: str
    reference: str
    hypothesis: str
    domain: str
    group_id: str | None
    duration: float
    finish_reason: Literal["stop", "length", "error", "unknown"]
    """`length`: cut off at the token limit; `unknown`: the server's route does not say."""
    error: str | None = None
    language_tag: str | None = None
    """Language that the model named before its text, empty if none; None where it was not left to the model."""


class Clip(Record):
    """One line of clips.jsonl: where the audio of a prediction is, on this machine."""

    test_set: str
    id: str
    audio_filepath: str
    """Absolute."""
    offset: float
    """Seconds."""
    duration: float
    source_sha256: str
    """Hash of the bytes of the file; empty when the corpus does not say."""


class Score(Record):
    """One entry of scores.json: a test set, or one of its duration buckets, under one scoring profile."""

    test_set: str
    bucket: Literal["all", "short", "medium", "long"]
    profile: Literal["ivrit", "he"]
    num_utterances: int
    num_failed: int
    """Clips that could not be transcribed; every word of theirs is a deletion."""
    num_truncated: int
    num_loops: int
    num_empty_hypotheses: int
    num_empty_references: int
    """Left out of all that follows; there is nothing to divide by."""
    num_words_over_empty_references: int
    """Words that the model wrote where the reference has none."""
    audio_seconds: float
    num_words: int
    substitutions: int
    deletions: int
    insertions: int
    wer: float | None
    """Fraction, pooled; None without a reference word."""
    num_characters: int
    character_errors: int
    cer: float | None
    hebrew_fraction: float | None = None
    """Share of the letters of all hypotheses that are Hebrew; None without a letter."""


class Leak(Record):
    """A test clip that is also in the training manifest."""

    test_set: str
    id: str
    kind: Literal["audio", "recording", "transcript", "group"]
    """Overlapping stretches of the same file; another stretch of the same file; the same words; the same `group_id`."""
    train_id: str


RecordType = TypeVar("RecordType", bound=Record)


def read_jsonl(path: Path, record: type[RecordType]) -> Iterator[RecordType]:
    """Read one record per line.

    Raises:
        ValueError: the file is missing or a line is not such a record; the message names file, line and problem.
    """
    try:
        for number, line in numbered_lines(path):
            try:
                yield record.model_validate_json(line)
            except ValidationError as error:
                raise ValueError(f"{path} line {number}: {one_line(error)}") from None
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None


def write_jsonl(path: Path, records: Iterable[BaseModel]) -> None:
    write_atomically(path, "".join(f"{dump_json(record.model_dump(mode='json'))}\n" for record in records))


def read_manifest(path: Path) -> list[Utterance]:
    """Read a manifest written by `prepare` or `clean`; audio paths come back absolute.

    The lines of `clean` come back as `CleanedUtterance`.

    Raises:
        ValueError: missing, damaged or empty manifest, or an id that occurs twice.
    """
    utterances = []
    seen: set[str] = set()
    for utterance in read_jsonl(path, CleanedUtterance if is_cleaned(path) else Utterance):
        if utterance.id in seen:
            raise ValueError(f"{path}: id {utterance.id!r} occurs twice; ids must be unique (run caspi prepare)")
        seen.add(utterance.id)
        audio = str((path.parent / utterance.audio_filepath).resolve())
        utterances.append(utterance.model_copy(update={"audio_filepath": audio}))
    if not utterances:
        raise ValueError(f"{path} holds no utterance")
    return utterances


def is_cleaned(path: Path) -> bool:
    """Was this manifest written by `clean`? Its lines say what was done; a missing or damaged file says nothing."""
    try:
        first = json.loads(next((line for _, line in numbered_lines(path)), b"null"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(first, dict) and {"action", "parent_id", "reasons_before"} <= first.keys()


def dump_json(value: Any, indent: int | None = None) -> str:
    """JSON that every parser reads: UTF-8, sorted keys, and an error rather than NaN."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, allow_nan=False, indent=indent)


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, dump_json(value, indent=2) + "\n")


def write_atomically(path: Path, content: str | bytes, mode: int = 0o644) -> None:
    """Write, flush to disk, then rename: a file that exists is complete, and has its permissions from the start."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode("utf-8") if isinstance(content, str) else content
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def sha256_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
