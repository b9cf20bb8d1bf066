"""Models and datasets beforehand; a later try continues where an earlier one stopped."""

import sys
import time
from collections.abc import Iterator, Sequence

from caspi.config import Check
from caspi.ops.readiness.finding import Finding

AGAIN = "HF_HUB_DOWNLOAD_TIMEOUT=300 caspi check --fetch continues it"


def fetch_all(check: Check, models: Sequence[str], datasets: Sequence[str], answered: bool) -> Iterator[Finding]:
    """`answered`: whether any server has; if none has, nothing is tried."""
    for kind, names in (("model", models), ("dataset", datasets)):
        for number, name in enumerate(names, start=1):
            if not answered:
                yield Finding(f"Fetched {name}", "fail", "not tried: no server has answered", AGAIN)
                continue
            print(f"{kind} {number} of {len(names)}: {name}", file=sys.stderr)
            yield fetch(name, kind, check)


def fetch(name: str, kind: str, check: Check) -> Finding:
    from httpx2 import HTTPError
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    problem = ""
    for attempt in range(check.fetch_attempts):
        try:
            return Finding(f"Fetched {name}", "ok", snapshot_download(name, repo_type=kind))
        except (HfHubHTTPError, HTTPError, OSError) as error:
            problem = str(error).splitlines()[0]
            print(f"{name}: try {attempt + 1} of {check.fetch_attempts} failed: {problem}", file=sys.stderr)
            if attempt + 1 < check.fetch_attempts:
                time.sleep(2**attempt)
    return Finding(f"Fetched {name}", "fail", problem, AGAIN)
