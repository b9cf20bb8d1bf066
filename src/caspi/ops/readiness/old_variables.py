"""Variables of the deployment guide under the names that libraries read today."""

import os
from collections.abc import Iterator, MutableMapping

from caspi.ops.readiness.finding import Finding

OLD_VARIABLES = {
    "HF_HUB_ENABLE_HF_TRANSFER": "HF_XET_HIGH_PERFORMANCE",
    "HF_DATASETS_DOWNLOAD_TIMEOUT": "HF_HUB_DOWNLOAD_TIMEOUT",
}
"""Of the deployment guide, which libraries no longer read; and what they read today."""


def old_variables() -> Iterator[Finding]:
    for old, new in OLD_VARIABLES.items():
        if os.environ.get(old):
            yield Finding(old, "warn", f"no longer read; {new} is set from it here", f"export {new} instead")


def translate(environment: MutableMapping[str, str]) -> None:
    """Give the old variables their effect, unless the new ones are set; before huggingface_hub is imported."""
    for old, new in OLD_VARIABLES.items():
        if environment.get(old):
            environment.setdefault(new, environment[old])
