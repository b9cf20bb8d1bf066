"""What an audit left in its folder, read again and checked to belong together."""

import gzip
import json
import zlib
from pathlib import Path
from typing import Any, NamedTuple

from caspi.records import Utterance, read_jsonl, read_manifest, sha256_of_file
from caspi.speech.alignment.findings import Finding

REPORT, SAMPLES, WORDS = "alignment_report.json", "samples.jsonl", "word_spans.jsonl.gz"
MAX_WORD_SPANS_BYTES = 2**30
"""A larger file is not one of ours: 73,579 utterances give about 100 MiB."""


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


def read_word_spans(folder: Path, wanted: set[str]) -> dict[str, list[dict[str, Any]]]:
    """Words of some utterances by id.

    Raises:
        ValueError: the file is missing or damaged.
    """
    path = folder / WORDS
    found = {}
    try:
        with gzip.open(path) as lines:
            text = lines.read(MAX_WORD_SPANS_BYTES + 1)
        if len(text) > MAX_WORD_SPANS_BYTES:
            raise ValueError(f"{path} is larger than {MAX_WORD_SPANS_BYTES} bytes; run caspi audit again")
        for line in text.splitlines():
            row = json.loads(line)
            if row["id"] in wanted:
                found[row["id"]] = row["words"]
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; run caspi audit again") from None
    except (OSError, EOFError, zlib.error, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); run caspi audit again") from None
    return found


def _read_report(path: Path) -> dict[str, Any]:
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        needed = {"detailed_metrics", "provenance", "sampling", "estimate", "domain_statistics", "calibration"}
        missing = needed - set(report)
    except FileNotFoundError:
        raise ValueError(f"there is no audit report {path}; run caspi audit") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"audit report {path} is damaged ({error}); run caspi audit again") from None
    if missing:
        raise ValueError(f"audit report {path} lacks {', '.join(sorted(missing))}; run caspi audit again")
    return dict(report)
