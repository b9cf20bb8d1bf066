"""What all sections share."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Fraction = Annotated[float, Field(ge=0, le=1)]
Percent = Annotated[float, Field(ge=0, le=100)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class Language(Section):
    """What is Hebrew about a run; another language is another recipe."""

    name: str = "Hebrew"
    """Language name as Qwen3-ASR writes it in `language NAME<asr_text>`."""
    iso_code: str = "he"
    """ISO 639-1 code, as transcription routes of servers want it."""
    espeak_voice: str = "he"
    """espeak-ng voice that renders reference speech for `tts-dtw` and the synthetic corpus."""


def one_line(error: ValidationError) -> str:
    """All problems of a validation error as `section.key: what is wrong`."""
    return "; ".join(f"{'.'.join(map(str, item['loc'])) or 'value'}: {item['msg']}" for item in error.errors())
