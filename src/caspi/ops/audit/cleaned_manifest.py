"""What a cleaned manifest says about itself, so that the filter that made it is not asked how well it filtered."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from caspi.config import one_line
from caspi.files import read_object
from caspi.records import is_cleaned, sha256_of_file

CLEANED, DROPPED, REVIEW, SUMMARY = "cleaned.jsonl", "dropped.jsonl", "review.jsonl", "cleaning_summary.json"

LEVEL = 0.90
"""Of the two-sided interval whose upper end is the residual's one-sided 95 % bound."""
Percent = Field(ge=0, le=100)


class _View(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class ResidualView(_View):
    """`speech.alignment.residual.Residual`."""

    point_pct: float = Percent
    upper_pct: float = Percent
    worst_kind: str
    worst_kind_pct: float = Percent
    detection: float = Field(ge=0, le=1)
    num_controls: int = Field(ge=1)


class FilterView(_View):
    cleaned_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    report_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    backend: str
    model_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class SummaryView(_View):
    schema_version: int = Field(ge=1, le=1)
    residual: ResidualView | None
    provenance: FilterView

    def as_estimate(self) -> dict[str, Any]:
        """`estimate.residual` of a report about the cleaned manifest; without made errors anything may be left."""
        known = self.residual
        return {
            "point": known.point_pct if known else 100.0,
            "lower": 0.0,
            "upper": known.upper_pct if known else 100.0,
            "level": LEVEL,
            "worst_kind": known.worst_kind if known else None,
            "worst_kind_pct": known.worst_kind_pct if known else 100.0,
            "num_controls": known.num_controls if known else 0,
            "detection": known.detection if known else None,
            "filter": {"backend": self.provenance.backend, "report_sha256": self.provenance.report_sha256},
        }


def read_cleaning(manifest: Path) -> SummaryView | None:
    """How a manifest was cleaned; None: it was not.

    Raises:
        ValueError: it was, but the summary beside it is missing, damaged or of another cleaning.
    """
    if not is_cleaned(manifest):
        return None
    path = manifest.parent / SUMMARY
    way_out = f"keep {SUMMARY} beside the manifest, or run caspi clean again"
    try:
        view = SummaryView.model_validate(read_object(path))
    except FileNotFoundError:
        raise ValueError(f"{manifest} was written by caspi clean, but {path} is not there: {way_out}") from None
    except ValidationError as error:
        raise ValueError(f"{path} is damaged: {one_line(error)[:300]}; {way_out}") from None
    if view.provenance.cleaned_sha256 != sha256_of_file(manifest):
        raise ValueError(f"{path} is about another cleaned manifest than {manifest}: {way_out}")
    return view
