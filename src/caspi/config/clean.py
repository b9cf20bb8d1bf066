"""Cleaning after the audit: what is cut, kept, shown to a person, or left out."""

from pathlib import Path

from caspi.config.base import Fraction, Positive, Section


class Cuts(Section):
    """Where a recording may be cut, and which cuts are better (AUDIT section 9). No length here is a limit: the longest
    and the shortest segment are those of `prepare`."""

    target_seconds: Positive = 12.0
    """Length that segments should have; the cost of another length is ((length - target) / target)²."""
    short_below_seconds: Positive = 3.0
    """A shorter segment costs `short_cost`; a shorter stretch is not rescued."""
    short_cost: float = 4.0
    search_seconds: float = 0.08
    """A cut is looked for from so much before the end of a word to so much after the start of the next one."""
    window_seconds: Positive = 0.03
    """Window in which the level is measured."""
    min_dip_db: Positive = 12.0
    """A cut must be so far below the level that a tenth of the clip exceeds."""
    good_gap_seconds: Positive = 0.3
    """A shorter pause costs up to `gap_cost`."""
    gap_cost: float = 0.5
    good_dip_db: Positive = 35.0
    """A shallower dip costs up to `dip_cost`."""
    dip_cost: float = 0.5
    distance_cost: float = 0.5
    """Cost of a cut that lies `search_seconds` inside one of the two words by the aligner's times; in proportion."""
    sentence_gain: float = 0.3
    """Taken off the cost of a cut behind the end of a sentence."""
    padding_seconds: float = 0.2
    """Audio kept before the first and after the last word of a segment, but never beyond the cut."""


class Clean(Section):
    """A manifest that training can use: every utterance is kept, cut, shown to a person or left out, for a reason."""

    manifest: Path = Path("data/manifest.jsonl")
    report: Path = Path("phase0_audit_results/alignment_report.json")
    """Audit of that manifest; its aligner, thresholds and limits are used as they are."""
    output: Path = Path("data")
    """Folder for cleaned.jsonl, dropped.jsonl, review.jsonl, cleaning_summary.json and the cache of alignments."""
    num_processes: int = 0
    """Alignment worker processes, as in `audit`."""
    max_decoy_win_coverage: Fraction = 0.3
    """Below this coverage, an utterance whose decoy wins is dropped."""
    min_review_coverage: Fraction = 0.45
    """Low quality with at least this coverage goes to a person; with less it is dropped."""
    max_edge_silence_seconds: Positive = 1.0
    """Longer silence before or after the speech is trimmed."""
    min_run_coverage: Fraction = 0.9
    """Coverage of a stretch that is rescued, and of a transcript around which untranscribed speech is trimmed."""
    min_strong_coverage: Fraction = 0.9
    """With both coverages at least this, an utterance is of the tier `strong`, else `normal`."""
    max_domain_loss_fraction: Fraction = 0.3
    """A domain that loses a larger share of its hours is warned of."""
    cuts: Cuts = Cuts()
