"""What all records share, and how a step ends."""

from enum import IntEnum

from pydantic import BaseModel, ConfigDict


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
