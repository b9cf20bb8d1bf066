"""What a server's answers must hold; what they hold besides is not looked at."""

from typing import Literal

from pydantic import BaseModel, Field


class Message(BaseModel):
    content: str


class Choice(BaseModel):
    message: Message
    finish_reason: Literal["stop", "length"]


class Usage(BaseModel):
    prompt_tokens: int


class Answer(BaseModel):
    """A chat completion."""

    choices: list[Choice] = Field(min_length=1)
    """Best first, where there are beams."""
    usage: Usage | None = None
    prompt_token_ids: list[int] | None = None
    """vLLM, when asked."""


class TranscriptionAnswer(BaseModel):
    """Of /v1/audio/transcriptions."""

    text: str
