"""Test clips that the model was trained on: the same audio, recording, words or group in the training manifest.

Such clips say how well a model remembers, not how well it hears. Overlapping audio is certain; another stretch of the
same file or of the same group tells the model the voice; equal words may be a sentence that many speakers read. Texts
that were cut differently share no whole transcript but most of their word n-grams, whose overlap is reported by set.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from caspi.config import Evaluate
from caspi.records import Clip, Leak, Prediction, Utterance, read_manifest, sha256_of_file
from caspi.speech.corpora.overlap import seen_ngrams
from caspi.speech.scoring.score import normalize

KINDS = ("audio", "recording", "transcript", "group")
MAX_LISTED = 1000
"""Leaks that a report lists; it counts all."""


class KnownClip(NamedTuple):
    """What is known about a test clip; an empty hash or group is unknown."""

    test_set: str
    id: str
    text: str
    group_id: str | None
    source_sha256: str
    offset: float
    """Seconds."""
    duration: float

    @classmethod
    def of(cls, test_set: str, one: Utterance) -> "KnownClip":
        return cls(test_set, one.id, one.text, one.group_id, one.source_sha256, one.offset, one.duration)

    @classmethod
    def of_prediction(cls, row: Prediction, clip: Clip | None) -> "KnownClip":
        source, offset = (clip.source_sha256, clip.offset) if clip else ("", 0.0)
        return cls(row.test_set, row.id, row.reference, row.group_id, source, offset, row.duration)


def find_leaks(training: Sequence[Utterance], clips: Iterable[KnownClip], min_words: int) -> list[Leak]:
    """Every clip that is in the training manifest, once for each way in which it is.

    `min_words`: shorter transcripts occur in both by chance and do not count.
    """
    by_file: dict[str, list[Utterance]] = {}
    by_words: dict[str, Utterance] = {}
    by_group: dict[str, Utterance] = {}
    for one in training:
        by_words.setdefault(normalize(one.text, "he"), one)
        if one.source_sha256:
            by_file.setdefault(one.source_sha256, []).append(one)
        if one.group_id:
            by_group.setdefault(one.group_id, one)
    leaks = []
    for clip in clips:
        words = normalize(clip.text, "he")
        found = {
            **same_file(clip, by_file.get(clip.source_sha256, [])),
            "transcript": by_words.get(words) if len(words.split()) >= min_words else None,
            "group": by_group.get(clip.group_id or ""),
        }
        leaks += [
            Leak(test_set=clip.test_set, id=clip.id, kind=kind, train_id=one.id) for kind, one in found.items() if one
        ]
    return leaks


def same_file(clip: KnownClip, training: Sequence[Utterance]) -> dict[Any, Utterance]:
    """The first utterance whose audio overlaps; else the first of the same file."""
    for one in training:
        if one.offset < clip.offset + clip.duration and clip.offset < one.offset + one.duration:
            return {"audio": one}
    return {"recording": training[0]} if training else {}


def leakage_report(manifest: Path, clips: Sequence[KnownClip], section: Evaluate) -> dict[str, Any]:
    """leakage.json: what of the clips is in the training manifest."""
    training = read_manifest(manifest)
    leaks = find_leaks(training, clips, section.min_leak_words)
    texts = [(clip.test_set, clip.id, clip.text) for clip in clips]
    seen = seen_ngrams((one.text for one in training), texts, section.leak_ngram_words)
    sizes = Counter(clip.test_set for clip in clips)
    counts: Counter[tuple[str, str]] = Counter((leak.test_set, leak.kind) for leak in leaks)
    hashed = any(one.source_sha256 for one in training)
    return {
        "train_manifest": str(manifest),
        "train_manifest_sha256": sha256_of_file(manifest),
        "num_training_utterances": len(training),
        "test_sets": {
            name: {"num_clips": size, **{kind: counts[name, kind] for kind in KINDS}} for name, size in sizes.items()
        },
        "ngram_words": section.leak_ngram_words,
        "max_seen_ngram_fraction": section.max_seen_ngram_fraction,
        "seen_ngrams": {name: one.model_dump(mode="json") for name, one in seen.items()},
        "num_audio_unchecked": sum(not clip.source_sha256 for clip in clips) if hashed else len(clips),
        "leaks": [leak.model_dump(mode="json") for leak in leaks[:MAX_LISTED]],
    }


def leakage_summary(report: Mapping[str, Any]) -> Iterator[str]:
    """What of a report must be said aloud."""
    says = {
        "audio": "are in the training manifest with the same audio",
        "recording": "are from files that are in the training manifest",
        "transcript": "have the words of a training utterance",
        "group": "are of a recording or speaker in the training manifest",
    }
    for name, row in report["test_sets"].items():
        for kind in KINDS:
            if row[kind]:
                yield f"{name}: {row[kind]} of {row['num_clips']} clips {says[kind]}"
    for name, row in report["seen_ngrams"].items():
        if (row["seen_fraction"] or 0.0) > report["max_seen_ngram_fraction"]:
            share, length = f"{row['seen_fraction']:.1%} of {row['num_ngrams']}", report["ngram_words"]
            yield f"{name}: {share} sequences of {length} words are in the training manifest"
    if count := report["num_audio_unchecked"]:
        yield f"the audio of {count} test clips could not be looked up in the training manifest: no hashes"
