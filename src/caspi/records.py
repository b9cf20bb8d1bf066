"""What passes between steps, always through files."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from enum import IntEnum
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from caspi.config import one_line
from caspi.files import numbered_lines


class ExitCode(IntEnum):
    """What a step's exit code says; 130 and 143 (interrupted after saving) come from signals."""

    DONE = 0
    NO = 1
    """The answer is no: gate closed, machine not ready, criteria missed."""
    BAD_REQUEST = 2
    """The request cannot be understood, or a needed file is missing or damaged."""
    NOT_MEASURED = 3
    """It could not be measured, or the run failed."""


class RunFailed(RuntimeError):
    """The run failed for a reason the user must know; exit code 3."""


class AnswerIsNo(RuntimeError):
    """The answer to what was asked is no, for example a closed gate; exit code 1."""


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


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
    needs_resegmentation: bool = False
    """Too long for training; kept for the audit and for `clean`."""


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


class ComparedSet(Record):
    """Round 1 against Round 2 on one test set, one duration bucket of it, the average of all sets, or all pooled."""

    test_set: str
    bucket: Literal["all", "short", "medium", "long"]
    num_utterances: int
    num_words: int
    blocks: Literal["group", "utterance"]
    """What was redrawn: recordings or speakers where there are at least two, else utterances."""
    num_blocks: int
    round1_wer: float
    round2_wer: float
    round1_cer: float
    round2_cer: float
    difference: float
    """Round 2 minus Round 1: negative is better."""
    low: float | None
    high: float | None
    """Bootstrap interval of the difference; None where it cannot be had."""
    round1_low: float | None
    round1_high: float | None
    """Bootstrap interval of Round 1's WER."""
    round2_low: float | None
    round2_high: float | None
    p_value: float
    """Two-sided, from permutations."""
    mapsswe_p_value: float | None
    """NIST's matched-pairs test; it takes utterances for independent."""
    verdict: Literal["better", "worse", "cannot tell"]
    num_utterances_needed: int | None
    """To show a difference of this size, where the verdict is `cannot tell`; None: no number would."""
    note: str
    """Why there is no verdict or what limits it; may be empty."""


class ComparedWords(Record):
    """Round 1 against Round 2 on the reference words of one class: a word is right, or it is substituted or deleted."""

    test_set: str
    word_class: Literal["number", "acronym", "foreign"]
    """Holds a digit; written with gershayim; has letters that are not Hebrew."""
    num_words: int
    num_utterances: int
    """With such a word."""
    round1_error: float
    """Share of the words that Round 1 got wrong; scoring profile `he`."""
    round2_error: float
    difference: float
    low: float | None
    high: float | None
    verdict: Literal["better", "worse", "cannot tell"]


class ComparedControl(Record):
    """A test set that Round 2 must not spoil."""

    test_set: str
    measure: Literal["WER", "invented words per clip"]
    num_utterances: int
    round1: float
    round2: float
    difference: float
    low: float | None
    high: float | None
    bound: float
    """Largest difference that is allowed."""
    outcome: Literal["met", "missed", "cannot tell"]


class Leak(Record):
    """A test clip that is also in the training manifest."""

    test_set: str
    id: str
    kind: Literal["audio", "recording", "transcript", "group"]
    """Overlapping stretches of the same file; another stretch of the same file; the same words; the same `group_id`."""
    train_id: str


class Criterion(Record):
    """One success criterion of the guide and what the evidence says about it."""

    level: Literal["must", "should", "nice"]
    name: str
    outcome: Literal["met", "missed", "cannot tell"]
    finding: str
    """What was found, with the figures."""
    evidence: str | None
    """The file it was found in; None: there is none."""


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
    """Read a manifest written by `prepare`; audio paths come back absolute.

    Raises:
        ValueError: missing, damaged or empty manifest, or an id that occurs twice.
    """
    utterances = []
    seen: set[str] = set()
    for utterance in read_jsonl(path, Utterance):
        if utterance.id in seen:
            raise ValueError(f"{path}: id {utterance.id!r} occurs twice; ids must be unique (run caspi prepare)")
        seen.add(utterance.id)
        audio = str((path.parent / utterance.audio_filepath).resolve())
        utterances.append(utterance.model_copy(update={"audio_filepath": audio}))
    if not utterances:
        raise ValueError(f"{path} holds no utterance")
    return utterances


def dump_json(value: Any, indent: int | None = None) -> str:
    """JSON that every parser reads: UTF-8, sorted keys, and an error rather than NaN."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, allow_nan=False, indent=indent)


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, dump_json(value, indent=2) + "\n")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write, flush to disk, then rename: a file that exists is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode("utf-8") if isinstance(content, str) else content
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def sha256_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
