"""Which checkpoint a run goes on from: the newest that is complete and its own, here or in the mirror."""

import logging
from typing import Any

from caspi.config import Train
from caspi.ops.mirroring.mirror import restore_newer
from caspi.ops.training.artifacts import Checkpoint, newest_checkpoint, set_aside
from caspi.ops.training.training_record import check_same_recipe

log = logging.getLogger(__name__)


def checkpoint_to_resume(config: Train, wanted: dict[str, Any], data_hash: str) -> Checkpoint | None:
    """None: training starts anew. What is here and cannot be used is moved aside.

    Raises:
        RunFailed: the mirror cannot be used.
        ValueError: the checkpoint was made with another recipe or other data, and that was not asked for.
    """

    def check(checkpoint: Checkpoint) -> None:
        check_same_recipe(checkpoint, wanted, data_hash, config.overwrite_recipe)

    found, torn = newest_checkpoint(config.output_dir)
    set_aside(torn)
    if config.mirror:
        found = restore_newer(config, found, check)
    if found:
        check(found)
        log.info("✓ Resuming from %s (stage %s)\n", found.folder, found.marker.stage)
    elif torn:
        log.warning("WARNING: no usable checkpoint is left in %s; training starts anew", config.output_dir)
    return found
