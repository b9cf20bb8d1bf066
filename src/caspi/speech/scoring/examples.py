"""The utterances on which two rounds differ most, with their words compared and their audio at hand."""

from collections.abc import Iterable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Literal, NamedTuple

import jiwer

from caspi.config import Compare
from caspi.records import Clip, Prediction, sha256_of_file
from caspi.speech.corpora.audio import AudioError, load_audio
from caspi.speech.corpora.ogg import data_uri, opus_bytes
from caspi.speech.scoring.scoreboard import ScoredPrediction, score_prediction


class DiffWord(NamedTuple):
    kind: Literal["equal", "substitute", "delete", "insert"]
    reference: str
    """Empty when inserted."""
    hypothesis: str
    """Empty when deleted."""


class Example(NamedTuple):
    test_set: str
    id: str
    duration: float
    reference: str
    """Raw, as are the hypotheses."""
    hypotheses: tuple[str, str]
    errors: tuple[int, int]
    num_words: int
    diffs: tuple[list[DiffWord], list[DiffWord]]
    """On the normalised words."""
    audio: str | None
    """Data URI."""
    audio_note: str
    """Why there is no audio."""


def diff_words(reference: str, hypothesis: str) -> list[DiffWord]:
    """Word by word along the alignment that is scored; both texts are normalised."""
    ours, theirs = reference.split(), hypothesis.split()
    if not ours or not theirs:
        return [DiffWord("delete", word, "") for word in ours] + [DiffWord("insert", "", word) for word in theirs]
    words: list[DiffWord] = []
    for chunk in jiwer.process_words(reference, hypothesis).alignments[0]:
        left = ours[chunk.ref_start_idx : chunk.ref_end_idx]
        right = theirs[chunk.hyp_start_idx : chunk.hyp_end_idx]
        if chunk.type == "delete":
            words += [DiffWord("delete", word, "") for word in left]
        elif chunk.type == "insert":
            words += [DiffWord("insert", "", word) for word in right]
        else:
            kind: Literal["equal", "substitute"] = "equal" if chunk.type == "equal" else "substitute"
            words += [DiffWord(kind, one, two) for one, two in zip(left, right, strict=True)]
    return words


def choose_examples(
    round1: Sequence[Prediction], round2: Sequence[Prediction], clips: Iterable[Clip], section: Compare
) -> tuple[list[Example], list[Example]]:
    """Biggest wins and biggest losses of Round 2 in words, at most `num_examples` each.

    Both rounds hold the same utterances in the same order. Audio is taken only from files that are as they were when
    they were transcribed, and as long as the page's share lasts.
    """
    pairs = [
        (score_prediction(one, section.profile), score_prediction(two, section.profile))
        for one, two in zip(round1, round2, strict=True)
    ]
    gains = [(one.words.errors - two.words.errors, index) for index, (one, two) in enumerate(pairs)]
    wins = sorted((-gain, index) for gain, index in gains if gain > 0)[: section.num_examples]
    losses = sorted((gain, index) for gain, index in gains if gain < 0)[: section.num_examples]
    players = Players(clips, section)
    # alternately, so that both kinds get players when audio is short
    order = [entry[1] for both in zip_longest(wins, losses) for entry in both if entry]
    made = {index: example_of(*pairs[index], players) for index in order}
    return [made[index] for _, index in wins], [made[index] for _, index in losses]


def example_of(first: ScoredPrediction, second: ScoredPrediction, players: "Players") -> Example:
    row = first.prediction
    audio, note = players.audio_of(row)
    return Example(
        test_set=row.test_set,
        id=row.id,
        duration=row.duration,
        reference=row.reference,
        hypotheses=(row.hypothesis, second.prediction.hypothesis),
        errors=(first.words.errors, second.words.errors),
        num_words=first.words.num_reference,
        diffs=(diff_words(first.reference, first.hypothesis), diff_words(second.reference, second.hypothesis)),
        audio=audio,
        audio_note=note,
    )


class Players:
    """Gives out audio until the page's share is used up."""

    def __init__(self, clips: Iterable[Clip], section: Compare) -> None:
        self.clips = {(clip.test_set, clip.id): clip for clip in clips}
        self.max_seconds = section.max_example_seconds
        self.num_bytes_left = int(section.max_page_audio_mib * 2**20)

    def audio_of(self, row: Prediction) -> tuple[str | None, str]:
        """A data URI, or why there is none."""
        clip = self.clips.get((row.test_set, row.id))
        if clip is None:
            return None, "clips.jsonl does not say where the audio is"
        if clip.duration > self.max_seconds:
            return None, f"longer than {self.max_seconds:g} s"
        try:
            samples = load_audio(clip.audio_filepath, clip.offset, clip.duration)
        except AudioError as error:
            return None, error.reason
        if clip.source_sha256 and sha256_of_file(Path(clip.audio_filepath)) != clip.source_sha256:
            return None, "the file has changed since it was transcribed"
        uri = data_uri(opus_bytes(samples))
        if len(uri) > self.num_bytes_left:
            return None, "the page holds enough audio already"
        self.num_bytes_left -= len(uri)
        return uri, ""
