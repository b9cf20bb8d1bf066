"""Synthetic corpora with a manifest as `prepare` would write it."""

from pathlib import Path

from caspi.records import Utterance, read_jsonl, write_jsonl
from caspi.speech.corpora.audio import probe_audio
from caspi.speech.synthetic.synth import Domain
from caspi.speech.synthetic.synth_corpus import CorpusRow, plan_audit_corpus, write_corpus


def write_audit_corpus(folder: Path, count: int, defects: float, seed: int, shares: dict[Domain, float]) -> Path:
    """The manifest of `count` utterances, a share of them with planted defects; the truth lies beside it."""
    rows = write_corpus(folder, plan_audit_corpus(count, defects, seed, domain_shares=shares), num_processes=1)
    utterances = [
        Utterance(
            id=row.id,
            audio_filepath=row.audio_filepath,
            text=row.text,
            duration=probe_audio(folder / row.audio_filepath).duration_seconds,
            domain=row.domain,
            group_id=row.group_id,
        )
        for row in read_jsonl(rows, CorpusRow)
    ]
    write_jsonl(folder / "manifest.jsonl", utterances)
    return folder / "manifest.jsonl"
