"""What decides an alignment besides audio and texts, as one hash: a remembered one counts only where it is the same."""

import hashlib
from functools import cache
from importlib.metadata import version
from pathlib import Path

from caspi.config import Recipe
from caspi.model.aligners import MODEL_BACKENDS, Description
from caspi.records import dump_json, sha256_of_file

OF_THE_BACKEND = ("backend", "seed", "shift_stability", "reference_voices")
"""Settings of the audit that change what a backend answers."""
SOURCES = ("model/aligners", "speech/alignment/controls.py", "speech/alignment/vad.py", "speech/corpora/audio.py")
"""Code that an alignment goes through."""


def aligner_sha256(recipe: Recipe, model: Description) -> str:
    """Hash of weights, precision, settings and code.

    Args:
        model: what the workers loaded.
    """
    settings = recipe.audit.model_dump(mode="json", include=set(OF_THE_BACKEND))
    max_seconds = recipe.audit.quality.max_duration_seconds
    libraries = [version(name) for name in ("numpy", "scipy", "torch", "transformers")]
    parts = [settings, max_seconds, recipe.language.espeak_voice, model, libraries, code_sha256()]
    if recipe.audit.backend in MODEL_BACKENDS:
        from caspi.model.checkpoints.checkpoint import local_folder

        parts.append(folder_sha256(local_folder(model["model_id"])))
    return hashlib.sha256(dump_json(parts).encode()).hexdigest()


def folder_sha256(folder: Path) -> str:
    """Hash of the names and bytes of all files of a checkpoint."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    named = [[path.relative_to(folder).as_posix(), sha256_of_file(path)] for path in files]
    return hashlib.sha256(dump_json(named).encode()).hexdigest()


@cache
def code_sha256() -> str:
    package = Path(__file__).parents[2]
    files = [path for source in SOURCES for path in sorted((package / source).rglob("*.py")) or [package / source]]
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()
