"""A report read back so that the whole manifest can be judged exactly as its sample was."""

import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from caspi.config import Audit, Language, one_line
from caspi.files import read_object
from caspi.records import sha256_of_file
from caspi.speech.alignment.calibration import ANY_DOMAIN, NUM_FOLDS, Thresholds
from caspi.speech.alignment.learned_score import ScoreModel
from caspi.speech.alignment.logistic import Logistic

FOLD_KEY = re.compile(r"fold (\d+) (.+)", re.DOTALL)


class _View(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class ThresholdsView(_View):
    """`Thresholds.as_json`."""

    word_score: dict[str, float]
    confidence: dict[str, tuple[float, float]]
    """Slope and intercept."""
    length: dict[str, tuple[float, float] | None]


class ScoreModelView(_View):
    """`ScoreModel.as_json`."""

    word_features: tuple[str, ...]
    utterance_features: tuple[str, ...]
    words: dict[str, tuple[float, ...]]
    utterances: dict[str, tuple[float, ...]]
    word_ranges: dict[str, tuple[tuple[float, float], ...]]
    utterance_ranges: dict[str, tuple[tuple[float, float], ...]]


class ControlView(_View):
    n: int = Field(ge=0)
    flagged: float = Field(ge=0, le=1)


class CalibrationView(_View):
    alpha_word: float | None
    thresholds: ThresholdsView | None
    score_model: ScoreModelView | None
    folds_by: Literal["recording", "utterance"]
    controls: dict[str, ControlView]

    @field_validator("thresholds", mode="before")
    @classmethod
    def none_if_empty(cls, value: Any) -> Any:
        """The report has an empty object when the audit could not be calibrated."""
        return value or None


class SettingsView(_View):
    language: Language
    audit: dict[str, Any]


class ProvenanceView(_View):
    manifest_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    model_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    config_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    model_id: str
    settings: SettingsView


class ReportView(_View):
    schema_version: int = Field(ge=1, le=1)
    audit_valid: bool
    calibration: CalibrationView
    provenance: ProvenanceView


class FrozenAudit(NamedTuple):
    language: Language
    settings: Audit
    """All that decides a judgement is the report's; places are the defaults."""
    thresholds: Thresholds
    score_model: ScoreModel | None
    folds_by_recording: bool
    controls: dict[str, dict[str, Any]]
    """Pairs and share flagged by kind of made error."""
    model_id: str
    model_sha256: str
    config_sha256: str
    report_sha256: str


def read_frozen(path: Path, manifest: Path) -> FrozenAudit:
    """Read the audit of a manifest.

    Raises:
        ValueError: the report is missing, damaged, invalid, or about another manifest; the message names the way out.
    """
    try:
        view = ReportView.model_validate(read_object(path))
        settings = Audit.model_validate(view.provenance.settings.audit)
    except FileNotFoundError:
        raise ValueError(f"there is no audit report {path}; run caspi audit") from None
    except ValidationError as error:
        raise ValueError(f"audit report {path}: {one_line(error)[:300]}; run caspi audit again") from None
    if not view.audit_valid:
        raise ValueError(f"the audit in {path} is invalid: its aligner cannot judge; audit with another --backend")
    if not manifest.exists():
        raise ValueError(f"{manifest} does not exist; name the audited manifest with --manifest")
    if sha256_of_file(manifest) != view.provenance.manifest_sha256:
        raise ValueError(f"{path} is about another manifest than {manifest}; run caspi audit --manifest {manifest}")
    return FrozenAudit(
        language=view.provenance.settings.language,
        settings=settings,
        thresholds=read_thresholds(view.calibration, path),
        score_model=read_score_model(view.calibration.score_model, path),
        folds_by_recording=view.calibration.folds_by == "recording",
        controls={kind: row.model_dump() for kind, row in view.calibration.controls.items()},
        model_id=view.provenance.model_id,
        model_sha256=view.provenance.model_sha256,
        config_sha256=view.provenance.config_sha256,
        report_sha256=sha256_of_file(path),
    )


def read_thresholds(calibration: CalibrationView, path: Path) -> Thresholds:
    """
    Raises:
        ValueError: there are none, or one of a fold or domain is missing.
    """
    found = calibration.thresholds
    if found is None or calibration.alpha_word is None:
        raise ValueError(f"audit report {path} holds no thresholds; run caspi audit again")
    expected = {(fold, domain) for fold in range(NUM_FOLDS) for domain in found.length}
    word_scores = {_fold_and_domain(key): value for key, value in found.word_score.items()}
    confidence = {_fold_and_domain(key): Logistic((slope,), at) for key, (slope, at) in found.confidence.items()}
    if ANY_DOMAIN not in found.length or word_scores.keys() != expected or confidence.keys() != expected:
        raise ValueError(f"audit report {path} lacks thresholds of a domain or fold; run caspi audit again")
    return Thresholds(calibration.alpha_word, word_scores, confidence, found.length)


def read_score_model(found: ScoreModelView | None, path: Path) -> ScoreModel | None:
    """
    Raises:
        ValueError: a fold is missing, or weights and features differ in number.
    """
    if found is None:
        return None
    models = []
    for names, written, ranges in (
        (found.word_features, found.words, found.word_ranges),
        (found.utterance_features, found.utterances, found.utterance_ranges),
    ):
        folds = {f"fold {fold}": len(names) for fold in range(NUM_FOLDS)}
        sizes = {key: len(values) - 1 for key, values in written.items()}
        if folds != sizes or folds != {key: len(values) for key, values in ranges.items()}:
            raise ValueError(f"audit report {path} holds a damaged score model; run caspi audit again")
        keys = enumerate(folds)
        models.append({fold: Logistic(written[key][:-1], written[key][-1], ranges[key]) for fold, key in keys})
    return ScoreModel(found.word_features, found.utterance_features, models[0], models[1])


def _fold_and_domain(key: str) -> tuple[int, str]:
    """Of a key as `Thresholds.as_json` writes it; another key becomes one that nobody expects."""
    match = FOLD_KEY.fullmatch(key)
    return (int(match[1]), match[2]) if match else (-1, key)
