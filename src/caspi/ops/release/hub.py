"""Upload of a finished folder to the Hugging Face Hub: listed files, no secrets, one commit, private unless told."""

import os
import sys
import time
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import httpx2
from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import disable_progress_bars, validate_repo_id

from caspi.ops.release.secret_search import secrets_in
from caspi.records import RunFailed

ALLOWED = ("*.safetensors", "*.json", "*.txt", "*.jinja", "README.md")
"""Files of a model that are published; in particular no pickles, logs or optimizer states."""
RETRIED_STATUS = frozenset({408, 409, 412, 429, 500, 502, 503, 504})


class PlannedFile(NamedTuple):
    name: str
    """Relative to the folder, with forward slashes."""
    num_bytes: int


class UploadFailed(RunFailed):
    """The model is complete on this machine, but not on the Hub."""


def plan_upload(folder: Path) -> list[PlannedFile]:
    """What would be uploaded.

    Raises:
        ValueError: the folder is empty or holds something that is not published, or a secret.
    """
    paths = sorted(path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())
    foreign = [path for path in paths if path.is_symlink() or not any(fnmatch(path.name, one) for one in ALLOWED)]
    if foreign:
        raise ValueError(
            f"{foreign[0]} is not uploaded: expected only regular files {', '.join(ALLOWED)}; remove it from {folder}"
        )
    if not paths:
        raise ValueError(f"{folder} holds no file to upload")
    for path in paths:
        for secret in secrets_in(path, os.environ):
            raise ValueError(
                f"{path} holds a {secret}: nothing was uploaded; remove it, and revoke it if it got around"
            )
    return [PlannedFile(path.relative_to(folder).as_posix(), path.stat().st_size) for path in paths]


def check_repo_id(name: str) -> None:
    """
    Raises:
        ValueError: not OWNER/NAME.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"hub_model_id {name!r}: {error}") from None
    if "/" not in name:
        raise ValueError(f"hub_model_id {name!r}: expected OWNER/NAME")


def upload(
    folder: Path,
    repo_id: str,
    *,
    public: bool,
    message: str,
    attempts: int,
    wait_seconds: float,
    sleep: Callable[[float], None] = time.sleep,
) -> CommitInfo:
    """Upload the planned files in one commit, so that the repository is never half a model.

    Tried again after errors of the server and of the network; weights that have arrived are recognised by their hash
    and not sent again, now or by a later call. The token comes from HF_TOKEN or `hf auth login`.

    Raises:
        ValueError: see `plan_upload`.
        UploadFailed: with the reason and what to do about it.
    """
    names = [file.name for file in plan_upload(folder)]
    api = HfApi()
    if not sys.stderr.isatty():
        disable_progress_bars()
    for attempt in range(1, attempts + 1):
        try:
            prepare_repository(api, repo_id, public)
            return api.upload_folder(
                repo_id=repo_id, folder_path=folder, allow_patterns=names, commit_message=message, repo_type="model"
            )
        except UploadFailed:
            raise
        except (HfHubHTTPError, httpx2.HTTPError, OSError, RuntimeError, ValueError) as error:  # hf_xet: RuntimeError
            reason, is_lasting = explain(error)
            if is_lasting or attempt == attempts:
                tries = f" after {attempt} attempts" if attempt > 1 else ""
                raise UploadFailed(f"upload to {repo_id} failed{tries}: {reason}") from error
            pause = wait_seconds * 2 ** (attempt - 1)
            print(f"upload to {repo_id}: {reason}; attempt {attempt + 1} of {attempts} in {pause:g} s", flush=True)
            sleep(pause)
    raise AssertionError("attempts is at least 1")


def prepare_repository(api: HfApi, repo_id: str, public: bool) -> None:
    """Create it if need be; what is meant to be private never goes to a public repository."""
    api.create_repo(repo_id, private=not public, exist_ok=True, repo_type="model")
    if not public and not api.model_info(repo_id).private:
        raise UploadFailed(f"upload to {repo_id} refused: the repository is public; --public allows that")


def explain(error: Exception) -> tuple[str, bool]:
    """One line for the user, and whether trying again is useless."""
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set; unset it where there is network", True
    if isinstance(error, LocalTokenNotFoundError):
        return "no token: hf auth login, or set HF_TOKEN", True
    if isinstance(error, HfHubHTTPError):
        return explain_status(error)
    what = "no connection" if isinstance(error, (httpx2.HTTPError, OSError)) else "the server answered strangely"
    return f"{what} ({type(error).__name__}: {one_line(str(error))})", False


def explain_status(error: HfHubHTTPError) -> tuple[str, bool]:
    status = error.response.status_code
    if status == 401 and not isinstance(error, RepositoryNotFoundError):
        return "401 Unauthorized: the token is missing or not valid; hf auth login, or set HF_TOKEN", True
    if status in (401, 403, 404):
        said = one_line(error.server_message or "")
        return f"{status}: the token may not write there ({said}); check its permissions with hf auth whoami", True
    reason = f"{status} {one_line(error.server_message or error.response.reason_phrase)}"
    return reason, status not in RETRIED_STATUS


def one_line(message: str) -> str:
    return " ".join(message.split())[:200]
