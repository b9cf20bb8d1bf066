"""Datasets that the Hugging Face library reads: from the Hub, its cache, or a folder. Audio stays as it is stored."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

HUB_ID = re.compile(r"(?!\.)[\w.-]+(?:/(?!\.)[\w.-]+)?")
MAX_MESSAGE_CHARACTERS = 300


class LoadedDataset(NamedTuple):
    rows: Iterable[dict[str, Any]]
    fingerprint: str


def is_hub_id(name: str) -> bool:
    return HUB_ID.fullmatch(name) is not None


def is_dataset_folder(folder: Path) -> bool:
    """Whether the library itself wrote the folder, or keeps its tables in it as a repository does."""
    written = any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))
    return written or any(folder.rglob("*.parquet"))


def cache_folder() -> Path:
    """Where the library keeps audio files of datasets that do not embed them."""
    import datasets

    return Path(datasets.config.HF_DATASETS_CACHE).resolve()


def load(location: str, split: str) -> LoadedDataset:
    """Open one split of a dataset, `load_from_disk` folders included; nothing is decoded.

    Raises:
        ValueError: it does not exist, is gated, cannot be reached, is damaged, or has no such split; one line.
    """
    import datasets

    folder = Path(location)
    saved = (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()
    try:
        loaded = datasets.load_from_disk(location) if saved else datasets.load_dataset(location, split=split)
    except datasets.exceptions.DatasetNotFoundError as error:
        way_out = "check the id; if it is gated, accept its terms on its page and log in: hf auth login"
        raise ValueError(f"dataset {location}: {one_line(error)}; {way_out}") from None
    except ConnectionError as error:
        way_out = "download it where there is network (hf download --repo-type dataset), then give the folder"
        raise ValueError(f"dataset {location}: {one_line(error)}; {way_out}") from None
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"dataset {location} cannot be read: {one_line(error)}") from None
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise ValueError(f"dataset {location} has no split {split!r}, found {', '.join(map(str, loaded))}")
        loaded = loaded[split]
    for column, feature in loaded.features.items():
        if isinstance(feature, datasets.Audio):
            loaded = loaded.cast_column(column, datasets.Audio(decode=False))
    return LoadedDataset(loaded, str(loaded._fingerprint))


def one_line(error: Exception) -> str:
    message = " ".join(str(error).split())
    return message if len(message) <= MAX_MESSAGE_CHARACTERS else message[: MAX_MESSAGE_CHARACTERS - 3] + "..."
