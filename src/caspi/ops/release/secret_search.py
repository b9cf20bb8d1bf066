"""Does a file that leaves this machine hold a secret?"""

import re
from collections.abc import Iterator, Mapping
from mmap import ACCESS_READ, mmap
from pathlib import Path

SECRET_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY")
MIN_SECRET_CHARACTERS = 8
"""Shorter values of such a variable are no secrets."""
SECRET_PATTERNS = {
    "Hugging Face token": rb"\b(?:hf|api_org)_[A-Za-z0-9]{30,}",
    "W&B key": rb"\bwandb_v1_[A-Za-z0-9_]{20,}|WANDB_API_KEY\W{1,4}[0-9a-f]{40}\b",
    "OpenAI key": rb"\bsk-(?:proj-)?[A-Za-z0-9_-]{32,}",
    "GitHub token": rb"\bgh[pousr]_[A-Za-z0-9]{36,}|\bgithub_pat_[A-Za-z0-9_]{50,}",
    "AWS key": rb"\bAKIA[0-9A-Z]{16}\b",
    "private key": rb"-----BEGIN [A-Z ]*PRIVATE KEY-----",
}


def secrets_in(path: Path, environment: Mapping[str, str]) -> Iterator[str]:
    """Kinds of secrets found in a file of any size; the secrets themselves are not repeated."""
    if not path.stat().st_size:
        return
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
        for kind, pattern in SECRET_PATTERNS.items():
            if re.search(pattern, content):
                yield kind
        for name in SECRET_VARIABLES:
            value = environment.get(name, "")
            if len(value) >= MIN_SECRET_CHARACTERS and content.find(value.encode()) >= 0:
                yield f"value of {name}"
