"""run.json of a step whose results may be continued: only under the settings they began with."""

from pathlib import Path
from typing import Any

from caspi.ops.comparison.criteria import read_object
from caspi.ops.training.artifacts import differing_keys
from caspi.records import write_json


def keep_settings(path: Path, settings: dict[str, Any], facts: dict[str, Any], results: Path) -> None:
    """Write the record with its `settings` and further `facts`, or refuse to mix results of two settings in one folder.

    Raises:
        ValueError: the folder holds results of other settings, or results without a record.
    """
    if path.exists():
        differences = differing_keys(read_object(path).get("settings"), settings)
        if differences:
            raise ValueError(
                f"{path.parent} holds results of other settings ({'; '.join(differences)}): choose another --output, "
                "or delete the folder"
            )
        return
    if results.exists():
        raise ValueError(
            f"{path.parent} holds predictions without {path.name}: choose another --output, or delete the folder"
        )
    write_json(path, {"settings": settings, **facts})
