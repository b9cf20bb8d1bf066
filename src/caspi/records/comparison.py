"""What a comparison of two rounds says."""

from typing import Literal

from caspi.records.base import Record


class ComparedSet(Record):
    """Round 1 against Round 2 on one test set, one duration bucket of it, the average of all sets, or all pooled."""

    test_set: str
    bucket: Literal["all", "short", "medium", "long"]
    num_utterances: int
    num_words: int
    blocks: Literal["group", "utterance"]
    """What was redrawn: recordings or speakers where there are at least two, else utterances."""
    num_blocks: int
    round1_wer: float
    round2_wer: float
    round1_cer: float
    round2_cer: float
    difference: float
    """Round 2 minus Round 1: negative is better."""
    low: float | None
    high: float | None
    """Bootstrap interval of the difference; None where it cannot be had."""
    round1_low: float | None
    round1_high: float | None
    """Bootstrap interval of Round 1's WER."""
    round2_low: float | None
    round2_high: float | None
    p_value: float
    """Two-sided, from permutations."""
    mapsswe_p_value: float | None
    """NIST's matched-pairs test; it takes utterances for independent."""
    verdict: Literal["better", "worse", "cannot tell"]
    num_utterances_needed: int | None
    """To show a difference of this size, where the verdict is `cannot tell`; None: no number would."""
    note: str
    """Why there is no verdict or what limits it; may be empty."""


class ComparedWords(Record):
    """Round 1 against Round 2 on the reference words of one class: a word is right, or it is substituted or deleted."""

    test_set: str
    word_class: Literal["number", "acronym", "foreign"]
    """Holds a digit; written with gershayim; has letters that are not Hebrew."""
    num_words: int
    num_utterances: int
    """With such a word."""
    round1_error: float
    """Share of the words that Round 1 got wrong; scoring profile `he`."""
    round2_error: float
    difference: float
    low: float | None
    high: float | None
    verdict: Literal["better", "worse", "cannot tell"]


class ComparedControl(Record):
    """A test set that Round 2 must not spoil."""

    test_set: str
    measure: Literal["WER", "invented words per clip"]
    num_utterances: int
    round1: float
    round2: float
    difference: float
    low: float | None
    high: float | None
    bound: float
    """Largest difference that is allowed."""
    outcome: Literal["met", "missed", "cannot tell"]


class Criterion(Record):
    """One success criterion of the guide and what the evidence says about it."""

    level: Literal["must", "should", "nice"]
    name: str
    outcome: Literal["met", "missed", "cannot tell"]
    finding: str
    """What was found, with the figures."""
    evidence: str | None
    """The file it was found in; None: there is none."""
