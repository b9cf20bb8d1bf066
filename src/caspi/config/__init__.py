"""Every number of a run, by step. The defaults are Round 2 of the deployment guide.

Precedence: these defaults, then the recipe (TOML), then the flags of the running step. A recipe has one table per
section below; unknown keys are refused. Shared sections change only through a recipe, which is then part of the record.
"""

import tomllib
from pathlib import Path

from pydantic import ValidationError

from caspi.config.audit import Audit, AuditPage, Calibration, Estimation, Gate, QualityThresholds, Review, Validity
from caspi.config.base import Count, Fraction, Language, Percent, Positive, Section, one_line
from caspi.config.clean import Clean, Cuts
from caspi.config.data import Prepare
from caspi.config.evaluate import Compare, CriteriaThresholds, Evaluate, Requests
from caspi.config.operations import Check, Env, Launch, Plan, Report, Watch
from caspi.config.prices import PRICES, Price
from caspi.config.release import Export, Rollback
from caspi.config.synthetic import (
    AlignerStage,
    Demo,
    PlantedAudit,
    SplicedClips,
    SyntheticSpeech,
    TinyAligner,
    TinyBase,
    TinyTraining,
)
from caspi.config.train import STRATEGY_A, STRATEGY_B, Augmentation, Health, Mirroring, Stage, Train
from caspi.files import read_text

__all__ = [
    "PRICES",
    "STRATEGY_A",
    "STRATEGY_B",
    "AlignerStage",
    "Audit",
    "AuditPage",
    "Augmentation",
    "Calibration",
    "Check",
    "Clean",
    "Compare",
    "Count",
    "CriteriaThresholds",
    "Cuts",
    "Demo",
    "Env",
    "Estimation",
    "Evaluate",
    "Export",
    "Fraction",
    "Gate",
    "Health",
    "Language",
    "Launch",
    "Mirroring",
    "Percent",
    "Plan",
    "PlantedAudit",
    "Positive",
    "Prepare",
    "Price",
    "QualityThresholds",
    "Recipe",
    "Report",
    "Requests",
    "Review",
    "Rollback",
    "Section",
    "SplicedClips",
    "Stage",
    "SyntheticSpeech",
    "TinyAligner",
    "TinyBase",
    "TinyTraining",
    "Train",
    "Validity",
    "Watch",
    "load_recipe",
    "one_line",
]


MAX_RECIPE_MIB = 1.0


class Recipe(Section):
    language: Language = Language()
    check: Check = Check()
    env: Env = Env()
    plan: Plan = Plan()
    prepare: Prepare = Prepare()
    audit: Audit = Audit()
    gate: Gate = Gate()
    clean: Clean = Clean()
    launch: Launch = Launch()
    train: Train = Train()
    watch: Watch = Watch()
    evaluate: Evaluate = Evaluate()
    compare: Compare = Compare()
    export: Export = Export()
    rollback: Rollback = Rollback()
    report: Report = Report()
    demo: Demo = Demo()


def load_recipe(path: Path | None) -> Recipe:
    """Read a TOML recipe over the defaults.

    Raises:
        ValueError: the file is missing or not TOML, or a key is unknown or out of range; the message names it.
    """
    if path is None:
        return Recipe()
    try:
        values = tomllib.loads(read_text(path, MAX_RECIPE_MIB))
    except FileNotFoundError:
        raise ValueError(f"recipe {path} does not exist") from None
    except RecursionError:
        raise ValueError(f"recipe {path} cannot be read as TOML: it is nested too deeply") from None
    except ValueError as error:  # also for numbers of thousands of digits
        raise ValueError(f"recipe {path} cannot be read as TOML: {error}") from None
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"recipe {path}: {one_line(error)}") from None
