"""Test sets: NAME=SOURCE pairs, samples of them, and their identity."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from caspi.config import Evaluate
from caspi.records import Clip, Utterance, dump_json

TestSets = Mapping[str, list[Utterance]]


def named_sources(pairs: Sequence[str]) -> dict[str, str]:
    """Source by name of the test set.

    Raises:
        ValueError: there is none, a pair is not NAME=SOURCE, or a name occurs twice.
    """
    if not pairs:
        raise ValueError("evaluate.test_sets is empty: expected NAME=SOURCE pairs")
    sources: dict[str, str] = {}
    for pair in pairs:
        name, separator, source = pair.partition("=")
        if not separator or not name or not source or "/" in name:
            raise ValueError(f"test set {pair!r}: expected NAME=SOURCE, for example eval-d1=ivrit-ai/eval-d1")
        if name in sources:
            raise ValueError(f"test set {name!r} is named twice")
        sources[name] = source
    return sources


def holds_utterances(path: Path) -> bool:
    """Is it a manifest as `caspi prepare` writes it, by its first line?"""
    if path.suffix != ".jsonl":
        return False
    try:
        with path.open(encoding="utf-8") as lines:
            row = json.loads(next(lines, ""))
    except (OSError, ValueError):
        return False
    fields = Utterance.model_fields
    required = {name for name, field in fields.items() if field.is_required()}
    return isinstance(row, dict) and required <= row.keys() <= fields.keys()


def sample(name: str, utterances: list[Utterance], section: Evaluate) -> list[Utterance]:
    """The seeded subset of `max_samples` utterances, in the order of the manifest; a smaller seed set is part of it."""
    total = len(utterances)
    if section.max_samples is None or section.max_samples >= total:
        return utterances
    chosen = sorted(utterances, key=lambda one: draw_number(section.seed, name, one.id))[: section.max_samples]
    widening = (total / section.max_samples) ** 0.5
    print(
        f"WARNING: {name}: {section.max_samples} of {total} utterances; intervals are about {widening:.1f} times as "
        "wide as on the whole set, and small differences cannot show"
    )
    kept = {one.id for one in chosen}
    return [one for one in utterances if one.id in kept]


def draw_number(seed: int, test_set: str, utterance_id: str) -> bytes:
    return hashlib.sha256(f"{seed}\0evaluate-sample\0{test_set}\0{utterance_id}".encode()).digest()


def sha256_of_set(utterances: Iterable[Utterance]) -> str:
    """Hash of what is transcribed and compared, wherever the files lie."""
    rows = [[one.id, one.text, one.offset, one.duration, one.source_sha256] for one in utterances]
    return hashlib.sha256(dump_json(rows).encode()).hexdigest()


def clips_of(test_sets: TestSets) -> Iterator[Clip]:
    """Lines of clips.jsonl, in the order of the test sets."""
    fields = ("id", "audio_filepath", "offset", "duration", "source_sha256")
    for name, utterances in test_sets.items():
        for one in utterances:
            yield Clip(test_set=name, **{field: getattr(one, field) for field in fields})
