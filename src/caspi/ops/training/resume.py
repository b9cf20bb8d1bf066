"""Which checkpoint a run goes on from: the newest that is complete and its own, here or in the mirror."""

import logging
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from caspi.config import Train
from caspi.files import read_object
from caspi.ops.mirroring.mirror import restore_newer
from caspi.ops.training.artifacts import Checkpoint, files_of, newest_checkpoint, set_aside, step_of
from caspi.ops.training.evaluations import STATE_FILE
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

    found, torn = newest_checkpoint(config.output_dir, check_contents)
    set_aside(torn)
    if config.mirror:
        found = restore_newer(config, found, check)
    if found:
        check(found)
        name_strangers(found)
        log.info("✓ Resuming from %s (stage %s)\n", found.folder, found.marker.stage)
    elif torn:
        log.warning("WARNING: no usable checkpoint is left in %s; training starts anew", config.output_dir)
    return found


def check_contents(checkpoint: Checkpoint) -> None:
    """What hashes cannot tell: that the files are what a run goes on from, and those of this step.

    Raises:
        ValueError: what is wrong.
    """
    folder, marker = checkpoint
    if marker.step != step_of(folder):
        raise ValueError(f"it is a copy of another one: its marker says step {marker.step}")
    for needed in ("model*.safetensors", "optimizer.safetensors", STATE_FILE):
        if not any(Path(name).match(needed) for name in marker.files):
            raise ValueError(f"its marker names no {needed}")
    for name in marker.files:
        if name.endswith(".safetensors"):
            check_header(folder / name)
    found = read_object(folder / STATE_FILE).get("global_step")
    if found != marker.step:
        raise ValueError(f"{STATE_FILE} is of step {found}, the marker of step {marker.step}")


def check_header(path: Path) -> None:
    try:
        with safe_open(path, "np"):
            pass
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path.name} is no safetensors file ({error}); other formats are never opened") from None


def name_strangers(checkpoint: Checkpoint) -> None:
    """Files beside those of the run do no harm, because nothing opens them; but somebody put them there."""
    known = {checkpoint.folder / name for name in checkpoint.marker.files}
    for path in sorted(set(files_of(checkpoint.folder)) - known):
        name = path.relative_to(checkpoint.folder)
        log.warning("WARNING: %s holds %s, which the run did not write; it is not opened", checkpoint.folder.name, name)
