"""Blind review of audited clips: which clips are heard, and reading the labels that come back (AUDIT section 6)."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from caspi.config import Review, one_line
from caspi.files import read_text
from caspi.records import Record
from caspi.speech.alignment.findings import Finding
from caspi.speech.alignment.sampling import largest_remainder
from caspi.speech.seeds import hash_key

INAUDIBLE = frozenset({"AUDIO_ERROR", "EMPTY_TRANSCRIPT", "TOO_LONG"})
"""Nothing to compare, or too much to hear: bad without review, because training could not use them either."""
TAGS = ("wrong text", "missing words", "extra words", "cut audio", "noise", "other language")
REVIEW_FORMAT = "caspi-review-labels/1"
GOLD_FORMAT = "caspi-gold-labels/1"


class Label(Record):
    id: str
    verdict: Literal["good", "bad", "unsure"]
    tags: tuple[Literal[TAGS], ...] = ()  # type: ignore[valid-type]


class LabelFile(Record):
    """What the audit page exports; hashes bind it to one audit."""

    format: Literal["caspi-review-labels/1", "caspi-gold-labels/1"]
    manifest_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    samples_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Hash of samples.jsonl: the very utterances and flags that were reviewed."""
    labels: tuple[Label, ...] = Field(min_length=1)
    labels_sha256: str
    """`seal` of the labels: an edited file does not pass for an exported one by accident."""


def needs_hearing(finding: Finding) -> bool:
    return not INAUDIBLE & set(finding.reasons)


def review_plan(
    findings: Sequence[Finding], population: Mapping[str, int], settings: Review, seed: int
) -> dict[str, int]:
    """Clips to hear, in the order in which they are heard; id to its place.

    A seeded random sample of flagged and of unflagged clips, by domain in proportion to what they stand for in the
    manifest, so that pooled rates need no weights. The order is a hash that knows nothing of the flags, so any prefix
    is itself a random sample, and a reviewer cannot guess.
    """
    heard = [finding for finding in findings if needs_hearing(finding)]
    flagged = [finding for finding in heard if finding.low_quality]
    unflagged = [finding for finding in heard if not finding.low_quality]
    num_flagged = min(len(flagged), round(settings.flagged_fraction * settings.num_clips))
    num_unflagged = min(len(unflagged), settings.num_clips - num_flagged)
    num_flagged = min(len(flagged), settings.num_clips - num_unflagged)
    chosen = _draw(flagged, num_flagged, seed) + _draw(unflagged, num_unflagged, seed)
    ordered = sorted(chosen, key=lambda id_: hash_key(seed, "review order", id_))
    return {id_: place for place, id_ in enumerate(ordered)}


def _draw(findings: Sequence[Finding], num: int, seed: int) -> list[str]:
    by_domain: dict[str, list[Finding]] = {}
    for finding in findings:
        by_domain.setdefault(finding.domain, []).append(finding)
    rest = {domain: sum(f.weight for f in own) for domain, own in sorted(by_domain.items())}
    quota = dict.fromkeys(rest, 0)
    while (missing := num - sum(quota.values())) > 0:
        room = {d: weight for d, weight in rest.items() if quota[d] < len(by_domain[d])}
        for domain, part in largest_remainder(missing, room).items():
            quota[domain] = min(len(by_domain[domain]), quota[domain] + part)
    return [
        id_
        for domain, own in by_domain.items()
        for id_ in sorted((f.sample_id for f in own), key=lambda i: hash_key(seed, "review", i))[: quota[domain]]
    ]


def seal(labels: Sequence[Label]) -> str:
    """SHA-256 over the labels as compact JSON, which is also what a browser's JSON.stringify gives."""
    rows = [[label.id, label.verdict, list(label.tags)] for label in labels]
    return hashlib.sha256(json.dumps(rows, ensure_ascii=False, separators=(",", ":")).encode("utf-8")).hexdigest()


def read_labels(path: Path, label_format: str, manifest_sha256: str, samples_sha256: str) -> tuple[Label, ...]:
    """Read labels of one audit.

    Raises:
        ValueError: not a label file, edited since it was exported, about another audit, or naming a clip twice.
    """
    try:
        file = LabelFile.model_validate_json(read_text(path))
    except FileNotFoundError:
        raise ValueError(f"there is no label file {path}; export one from audit.html") from None
    except ValidationError as error:
        raise ValueError(f"{path} is not a label file of caspi: {one_line(error)[:300]}; export it again") from None
    except ValueError as error:
        raise ValueError(f"label file {error}; export it again") from None
    if file.format != label_format:
        raise ValueError(f"{path} holds {file.format}, expected {label_format}")
    if file.labels_sha256 != seal(file.labels):
        raise ValueError(f"{path} was changed after its export: its labels do not match labels_sha256; export it again")
    for name, found, expected in (
        ("manifest", file.manifest_sha256, manifest_sha256),
        ("samples.jsonl", file.samples_sha256, samples_sha256),
    ):
        if found != expected:
            raise ValueError(
                f"{path} is about another audit: its {name} hash is {found[:12]}, this audit's is {expected[:12]}; "
                "review the audit.html beside this report"
            )
    (id_, count), *_ = Counter(label.id for label in file.labels).most_common(1)
    if count > 1:
        raise ValueError(f"{path} labels clip {id_!r} {count} times; expected once: export it again")
    return file.labels


def require_known(path: Path, labels: Sequence[Label], known: Mapping[str, object], what: str) -> None:
    """Refuse labels of clips that are not among the known ones.

    Raises:
        ValueError: names the first foreign clip and how many there are.
    """
    foreign = [label.id for label in labels if label.id not in known]
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise ValueError(f"{path} labels clip {foreign[0]!r}{more}, which is not {what}; use this audit's own labels")
