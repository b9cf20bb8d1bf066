"""Takes secrets out of text that leaves the machine. Rather too much than too little: any 40 hex digits go as well."""

import re
from collections.abc import Mapping
from typing import Any

REDACTED = "[redacted]"
SECRET_VARIABLE = re.compile(r"(?i)(token|secret|password|passwd|api_?key|access_?key|credential)")
MIN_SECRET_LENGTH = 8
"""Shorter values of secret variables are words such as `true`."""

PATTERNS = (
    (re.compile(r"(?i)((?:proxy-)?authorization[\"']?\s*[:=]\s*)[^\r\n]+"), rf"\1{REDACTED}"),
    (re.compile(r"(?i)\b((?:set-)?cookie[\"']?\s*:\s*)[^\r\n]+"), rf"\1{REDACTED}"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[a-z0-9._~+/=-]{8,}"), rf"\1 {REDACTED}"),
    (re.compile(r"\bhf_[A-Za-z0-9]{6,}"), REDACTED),
    (re.compile(r"\b(?:local-)?wandb_v\d+_[A-Za-z0-9_-]+"), REDACTED),
    (re.compile(r"(?<![0-9A-Fa-f])[0-9A-Fa-f]{40}(?![0-9A-Fa-f])"), REDACTED),
    (re.compile(r"\bsk-[A-Za-z0-9_-]{16,}"), REDACTED),
    (re.compile(r"\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_[A-Za-z0-9_]{20,}"), REDACTED),
    (re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"), REDACTED),
    (re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://)[^\s/@:]*:[^\s/@]+@"), rf"\1{REDACTED}@"),
    (
        re.compile(
            r"(?i)\b([a-z0-9_-]*(?:api[_-]?key|access[_-]?key|token|secret|password|passwd)\\?[\"']?\s*[:=]\s*\\?[\"']?)"
            r"[^\s\"'\\,;}&]+"
        ),
        rf"\1{REDACTED}",
    ),
)
"""Headers; keys of Hugging Face, W&B (40 hex digits, or wandb_v1_...), OpenAI, GitHub and AWS; addresses with a
password; `name: value` where the name says that it is a secret."""


def redact(text: str, environment: Mapping[str, str]) -> str:
    """Without anything that looks like a secret, and without the values of secret variables of the environment."""
    values = {value for name, value in environment.items() if SECRET_VARIABLE.search(name)}
    for value in sorted((value for value in values if len(value) >= MIN_SECRET_LENGTH), key=len, reverse=True):
        text = text.replace(value, REDACTED)
    for pattern, replacement in PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def redact_json(value: Any, environment: Mapping[str, str]) -> Any:
    """The same for every text in a JSON value, which stays valid JSON; under a secret's name any text goes."""
    if isinstance(value, str):
        return redact(value, environment)
    if isinstance(value, list):
        return [redact_json(one, environment) for one in value]
    if isinstance(value, dict):
        return {
            redact(key, environment): REDACTED
            if isinstance(one, str) and one and SECRET_VARIABLE.search(key)
            else redact_json(one, environment)
            for key, one in value.items()
        }
    return value
