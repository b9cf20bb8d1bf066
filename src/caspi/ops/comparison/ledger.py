"""Where each number of a comparison comes from: a claim without a file and its hash is printed as unverified."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from caspi.records import ComparedControl, ComparedSet, ComparedWords, Criterion, Record, sha256_of_file

BOTH = ("round1", "round2")


class Claim(NamedTuple):
    name: str
    """What the value is of, for example `eval-d1/all round2_wer`."""
    value: float | int | str
    files: tuple[str, ...]
    """Keys of the files it was computed from; none: unverified."""


def build_ledger(files: Mapping[str, Path], claims: Iterable[Claim]) -> dict[str, Any]:
    """Files with their hashes and claims with their files; only files that claims name are kept."""
    claims = list(claims)
    used = {key for claim in claims for key in claim.files}
    return {
        "files": {
            key: {"path": str(path), "sha256": sha256_of_file(path)} for key, path in files.items() if key in used
        },
        "claims": [claim._asdict() for claim in claims],
        "unverified": [claim.name for claim in claims if not claim.files],
    }


def claims_of(
    rows: Sequence[ComparedSet], words: Sequence[ComparedWords], controls: Sequence[ComparedControl]
) -> Iterator[Claim]:
    """Every number of the comparison itself."""
    for row in rows:
        yield from numbers_of(f"{row.test_set}/{row.bucket}", row)
    for word in words:
        yield from numbers_of(f"{word.test_set}/{word.word_class} words", word)
    for control in controls:
        yield from numbers_of(f"control {control.test_set} {control.measure}", control)


def numbers_of(name: str, record: Record) -> Iterator[Claim]:
    for field, value in record.model_dump().items():
        if isinstance(value, int | float):
            side = tuple(one for one in BOTH if field.startswith(one)) or BOTH
            yield Claim(f"{name} {field}", value, side)


def criterion_claims(
    criteria: Sequence[Criterion], evidence_keys: Mapping[str, tuple[str, ...]]
) -> tuple[dict[str, Path], list[Claim]]:
    """Files besides the predictions that criteria rest on, and the criteria as claims.

    `evidence_keys`: what stands for evidence that is computed from predictions. A folder cannot be hashed, so what was
    found in one is unverified.
    """
    files: dict[str, Path] = {}
    claims = []
    for one in criteria:
        keys: tuple[str, ...] = ()
        if one.evidence and one.evidence in evidence_keys:
            keys = evidence_keys[one.evidence]
        elif one.evidence and Path(one.evidence).is_file():
            files[one.evidence] = Path(one.evidence)
            keys = (one.evidence,)
        if one.outcome != "cannot tell" or keys:
            claims.append(Claim(f"criterion: {one.name}", one.finding, keys))
    return files, claims
