"""Corpora to one manifest."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from caspi.config.base import Positive, Section


class Prepare(Section):
    """Corpora to one manifest of utterances: exactly what audit and train both read."""

    datasets: tuple[str, ...] = (
        "ivrit-ai/crowd-transcribe-v5",
        "ivrit-ai/crowd-recital-whisper-training",
    )
    """Hugging Face dataset ids, local dataset folders, folders of `name.wav` with `name.txt`, or Parquet files. Ignored
    when `manifest` is given."""
    manifest: tuple[Path, ...] = ()
    """JSONL, CSV or TSV manifests with `audio_filepath` and `text`."""
    output: Path = Path("data")
    """Folder for manifest.jsonl, quarantine.jsonl and extracted audio."""
    split: str = "train"
    """Split read from Hugging Face datasets."""
    root: Path | None = None
    """Audio paths must stay inside this folder; default: the folder of each manifest."""
    min_duration_seconds: Positive = 0.5
    """Shorter clips are quarantined."""
    max_duration_seconds: Positive = 15.0
    """Longer clips are marked for resegmentation and not used for training; they are never cut blindly."""
    max_file_mib: Positive = 512.0
    """Larger audio files are quarantined unread."""
    noisy_below_snr_db: float = 15.0
    """Without a domain column, clips with a measured SNR below this are `whatsapp_noisy`."""
    long_tail_above_seconds: Positive = 20.0
    """Without a domain column, clips longer than this are `long_tail`."""
    domain_of_source: dict[str, str] = {"whatsapp": "whatsapp_noisy", "kan": "kan_clean"}
    """Without a domain column, a source whose name holds this word has this domain, whatever is measured."""
    max_snr_seconds: Positive = 10.0
    """The SNR is measured on at most this much of a clip, from its start."""
    num_processes: Annotated[int, Field(ge=0)] = 0
    """Processes that look at the audio; 0: one per core."""
