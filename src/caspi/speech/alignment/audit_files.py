"""What an audit left in its folder, read again and checked to belong together."""

import gzip
import zlib
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from caspi.config import one_line
from caspi.files import open_file, read_object
from caspi.records import Record, Utterance, read_jsonl, read_manifest, sha256_of_file
from caspi.speech.alignment.findings import Finding

REPORT, SAMPLES, WORDS = "alignment_report.json", "samples.jsonl", "word_spans.jsonl.gz"
PAGE = "audit.html"
MAX_WORD_SPANS_BYTES = 2**29
"""A larger file is not one of ours: 73,579 utterances give about 100 MiB."""


class WordSpan(Record):
    """One word of a transcript and where the aligner put it."""

    w: str
    char: tuple[int, int]
    """Offsets in the transcript."""
    s: float | None
    """Seconds from the start of the clip, as is `e`; None: no place was found."""
    e: float | None
    score: float
    aligned: bool


class WordLine(Record):
    """One line of word_spans.jsonl.gz."""

    id: str
    words: tuple[WordSpan, ...]


class AuditFiles(NamedTuple):
    report: dict[str, Any]
    findings: list[Finding]
    samples_sha256: str

    @property
    def population(self) -> dict[str, int]:
        """Utterances of the manifest by domain."""
        return {domain: stratum["population"] for domain, stratum in self.report["sampling"]["strata"].items()}


def read_audit(folder: Path, manifest: Path) -> AuditFiles:
    """Read report and samples of an audit of this manifest.

    Raises:
        ValueError: a file is missing or damaged, or they are not of one audit; the message names the way out.
    """
    report = _read_report(folder / REPORT)
    findings = list(read_jsonl(folder / SAMPLES, Finding))
    if [finding.model_dump(mode="json") for finding in findings] != report["detailed_metrics"]:
        raise ValueError(f"{folder / SAMPLES} and {folder / REPORT} are not of one audit; run caspi audit again")
    if not manifest.exists():
        raise ValueError(f"{manifest} does not exist; name the audited manifest with --manifest")
    expected = report["provenance"]["manifest_sha256"]
    found = sha256_of_file(manifest)
    if found != expected:
        raise ValueError(
            f"{folder / REPORT} is about another manifest than {manifest} (hash {expected[:12]}, found {found[:12]}); "
            "name the audited one with --manifest, or run caspi audit again"
        )
    return AuditFiles(report, findings, sha256_of_file(folder / SAMPLES))


def read_utterances(manifest: Path, files: AuditFiles) -> dict[str, Utterance]:
    """Every utterance of the manifest by id.

    Raises:
        ValueError: an audited utterance is not in it.
    """
    utterances = {utterance.id: utterance for utterance in read_manifest(manifest)}
    missing = [finding.sample_id for finding in files.findings if finding.sample_id not in utterances]
    if missing:
        raise ValueError(f"{manifest} does not hold the audited utterance {missing[0]!r}; run caspi audit again")
    return utterances


def read_word_spans(folder: Path, wanted: set[str]) -> dict[str, tuple[WordSpan, ...]]:
    """Words of some utterances by id.

    Raises:
        ValueError: the file is missing or damaged.
    """
    path = folder / WORDS
    try:
        with open_file(path) as packed, gzip.open(packed) as lines:
            text = lines.read(MAX_WORD_SPANS_BYTES + 1)
        if len(text) > MAX_WORD_SPANS_BYTES:
            raise ValueError(f"it has more than {MAX_WORD_SPANS_BYTES} bytes")
        rows = [WordLine.model_validate_json(line) for line in text.splitlines()]
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; run caspi audit again") from None
    except ValidationError as error:
        raise ValueError(f"{path} is damaged ({one_line(error)[:200]}); run caspi audit again") from None
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); run caspi audit again") from None
    return {row.id: row.words for row in rows if row.id in wanted}


def _read_report(path: Path) -> dict[str, Any]:
    try:
        report = read_object(path)
    except FileNotFoundError:
        raise ValueError(f"there is no audit report {path}; run caspi audit") from None
    except ValueError as error:
        raise ValueError(f"audit report {error}; run caspi audit again") from None
    needed = {"detailed_metrics", "provenance", "sampling", "estimate", "domain_statistics", "calibration"}
    missing = needed - set(report)
    if missing:
        raise ValueError(f"audit report {path} lacks {', '.join(sorted(missing))}; run caspi audit again")
    return report
