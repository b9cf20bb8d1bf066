"""Clips that cannot be decoded: out of the run from then on, on all processes and after a resume; never too many."""

from collections.abc import Sequence
from pathlib import Path

import torch

from caspi.model.training.batch import rejected
from caspi.model.training.processes import (
    all_gather_objects,
    is_main_process,
    num_processes,
    process_rank,
    sum_over_processes,
)
from caspi.records import Rejected, RunFailed, Utterance, read_jsonl, write_jsonl
from caspi.speech.corpora.audio import AudioError, load_audio, probe_audio
from caspi.speech.corpora.split import Split


class Quarantine:
    """The clips by id, and the file that says so."""

    def __init__(self, path: Path, max_fraction: float) -> None:
        self.path = path
        self.max_fraction = max_fraction
        self.num_training = 0
        """Training clips, whole and broken, that the share is of."""
        self.items: dict[str, Rejected] = {}

    def read_back(self) -> None:
        """Go on with what the run that is resumed left out, so that it is the same run."""
        if self.path.exists():
            self.items = {item.id: item for item in read_jsonl(self.path, Rejected)}

    def add(self, found: Sequence[Rejected], device: torch.device) -> list[Rejected]:
        """Take in what any process found; every process calls this at the same time. Returns what is new.

        Raises:
            RunFailed: too many training clips are broken.
        """
        new = [item for item in found if item.id not in self.items]
        if sum_over_processes([len(new)], device) == [0]:
            return []
        everywhere = {item.id: item for part in all_gather_objects(new) for item in part}
        self.items |= everywhere
        if is_main_process():
            in_order = sorted(self.items.values(), key=lambda item: item.id)
            write_jsonl(self.path, in_order)
        if len(self.items) > self.max_fraction * self.num_training:
            raise RunFailed(
                f"{len(self.items)} of {self.num_training} clips cannot be decoded, more than {self.max_fraction:.0%}; "
                f"look at {self.path} and run caspi prepare again, or allow more with --max-undecodable-fraction"
            )
        return list(everywhere.values())


def check_audio(split: Split, quarantine: Quarantine) -> tuple[Split, list[Rejected]]:
    """Look at every clip before the model is loaded: at the header of one to train on, at all of one to evaluate with,
    because evaluation needs every clip each time. Returns the split whose evaluation side is whole, and what is new.

    Training clips stay in their place, so that the plan of the steps does not depend on them.

    Raises:
        RunFailed: too many are broken.
        ValueError: none is left to evaluate with.
    """
    quarantine.num_training = len(split.training)
    clips = [(item, False) for item in split.training] + [(item, True) for item in split.evaluation]
    share = clips[process_rank() :: num_processes()]
    found = [problem for item, decode in share if (problem := problem_with(item, decode))]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    new = quarantine.add(found, device)
    evaluation = [item for item in split.evaluation if item.id not in quarantine.items]
    if not evaluation:
        raise ValueError(f"no evaluation clip can be decoded; look at {quarantine.path}")
    return split._replace(evaluation=evaluation), new


def problem_with(item: Utterance, decode: bool) -> Rejected | None:
    try:
        if decode:
            load_audio(item.audio_filepath, item.offset, item.duration)
        else:
            probe_audio(item.audio_filepath)
    except AudioError as error:
        return rejected(item, error)
    return None
