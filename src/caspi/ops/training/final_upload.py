"""Upload of a run's final model when the run ends; a failure leaves the run done and the model where it is."""

import logging
import os
import shlex
import tempfile
from pathlib import Path
from typing import Any

from caspi.ops.release import hub
from caspi.ops.training.run_folder import MODEL_FILES

ATTEMPTS = 4
WAIT_SECONDS = 5.0
"""Before the second attempt; doubles with each."""

log = logging.getLogger(__name__)


def upload_final(folder: Path, repo_id: str) -> dict[str, Any]:
    """Upload the model files of a run's folder, privately; returns what happened, for run.json."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".uploading-") as name:
        for path in {path for pattern in MODEL_FILES for path in folder.glob(pattern)}:
            os.link(path, Path(name) / path.name)
        try:
            commit = hub.upload(
                Path(name),
                repo_id,
                public=False,
                message="Trained by caspi",
                attempts=ATTEMPTS,
                wait_seconds=WAIT_SECONDS,
            )
        except (hub.UploadFailed, ValueError) as error:
            log.warning("WARNING: %s. The model is kept in %s; to upload it: %s", error, folder, again(folder, repo_id))
            return {"hub_url": None, "hub_error": str(error)}
    url = commit.repo_url.url
    log.info("✓ Model pushed to: %s", url)
    return {"hub_url": url, "hub_commit": commit.oid, "hub_error": None}


def again(folder: Path, repo_id: str) -> str:
    words = ["caspi", "export", "--run-dir", str(folder), "--checkpoint", "final", "--push-to-hub"]
    return shlex.join([*words, "--hub-model-id", repo_id])
