"""Synthetic corpora with a manifest as `prepare` would write it."""

from pathlib import Path
from typing import Any

from caspi.records import SegmentTimes, Utterance, dump_json, read_jsonl, read_manifest, write_jsonl
from caspi.speech.corpora.audio import probe_audio
from caspi.speech.synthetic.synth import Domain
from caspi.speech.synthetic.synth_corpus import CorpusRow, SyntheticTruth, plan_audit_corpus, read_truth, write_corpus


def write_audit_corpus(
    folder: Path, count: int, defects: float, seed: int, shares: dict[Domain, float], **plan: Any
) -> Path:
    """The manifest of `count` utterances, a share of them with planted defects; the truth lies beside it.

    Clips without a defect also carry the times of their two halves, as a corpus with Whisper's timestamps would.
    `plan` goes to `plan_audit_corpus`.
    """
    rows = write_corpus(folder, plan_audit_corpus(count, defects, seed, domain_shares=shares, **plan), num_processes=1)
    truth = read_truth(folder)
    utterances = [
        Utterance(
            id=row.id,
            audio_filepath=row.audio_filepath,
            text=row.text,
            duration=probe_audio(folder / row.audio_filepath).duration_seconds,
            domain=row.domain,
            group_id=row.group_id,
            segments=() if truth[row.id].defect else halves(truth[row.id]),
        )
        for row in read_jsonl(rows, CorpusRow)
    ]
    write_jsonl(folder / "manifest.jsonl", utterances)
    return folder / "manifest.jsonl"


def halves(truth: SyntheticTruth) -> tuple[SegmentTimes, ...]:
    middle = len(truth.words) // 2
    parts = [(0, truth.word_times[:middle]), (middle, truth.word_times[middle:])]
    return tuple(
        SegmentTimes(first_word=first, num_words=len(times), start=times[0][0], end=times[-1][1])
        for first, times in parts
        if times
    )


def write_gold(manifest: Path, count: int) -> Path:
    """Clips of a corpus with the times at which their words are really spoken, as a gold set."""
    truth = read_truth(manifest.parent)
    good = [u for u in read_manifest(manifest) if truth[u.id].defect is None][:count]
    lines = []
    for utterance in good:
        known = truth[utterance.id]
        words = [
            {"word": word, "start": start, "end": end}
            for word, (start, end) in zip(known.words, known.word_times, strict=True)
        ]
        lines.append(dump_json({"id": f"g-{utterance.id}", "audio_filepath": utterance.audio_filepath, "words": words}))
    path = manifest.parent / "gold.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
