"""Which bytes an audio file holds now, and whether they are those that its manifest was made from."""

import math
from collections.abc import Iterable
from pathlib import Path

from caspi.records import Utterance, sha256_of_file
from caspi.speech.corpora.audio import AudioError, regular_file_bytes


def hash_audio(utterances: Iterable[Utterance]) -> dict[str, str]:
    """SHA-256 by path; a file that cannot be read has none.

    Raises:
        ValueError: a file is not the one that the manifest was made from.
    """
    hashes: dict[str, str] = {}
    unreadable: set[str] = set()
    for utterance in utterances:
        path = utterance.audio_filepath
        if path not in hashes and path not in unreadable:
            try:
                regular_file_bytes(Path(path), math.inf)
                hashes[path] = sha256_of_file(Path(path))
            except (AudioError, OSError):
                unreadable.add(path)
        if path in hashes and utterance.source_sha256 not in ("", hashes[path]):
            raise ValueError(
                f"{utterance.id}: {path} has changed since the manifest was made (hash {hashes[path][:12]}, expected "
                f"{utterance.source_sha256[:12]}); run caspi prepare and caspi audit again"
            )
    return hashes
