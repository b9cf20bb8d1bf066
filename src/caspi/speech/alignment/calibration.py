"""Thresholds and confidence from wrong pairs (AUDIT section 4).

A forced aligner puts any text somewhere, so its scores mean nothing alone. The threshold of a word is set where wrong
transcripts reach it at a fixed rate, and never from the data that it judges: utterances fall into two folds by
recording, and each fold is judged by what the other one taught.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from caspi.config import Audit
from caspi.speech.alignment.controls import DECOY, ORIGINAL
from caspi.speech.alignment.logistic import PRINTED_DIGITS, Logistic, fit_logistic
from caspi.speech.alignment.quality import (
    Measures,
    Pair,
    length_mismatch,
    measure,
    quality_reasons,
    typical_length,
)
from caspi.speech.seeds import hash_key

NUM_FOLDS = 2
ANY_DOMAIN = "*"
"""Stands for domains of which no utterance taught anything: what all domains together taught."""
MIN_FOLD_FRACTION = 0.25
"""Smallest share of the utterances that a fold may have."""


@dataclass(frozen=True)
class Measured:
    """All aligned pairs of one utterance, by control; pairs that failed are not in it."""

    id: str
    domain: str
    fold: int
    pairs: Mapping[str, Pair]

    @property
    def is_paired(self) -> bool:
        return ORIGINAL in self.pairs and DECOY in self.pairs


class Thresholds(NamedTuple):
    alpha_word: float
    """Share of wrong words that the thresholds accept."""
    word_scores: dict[tuple[int, str], float]
    """Least word score by fold and domain."""
    confidence: dict[tuple[int, str], Logistic]
    """Platt's curve of the utterance score by fold and domain."""
    length: dict[str, tuple[float, float] | None]
    """Median and deviation of ln(letters per second of speech) by domain."""

    def for_domain(self, domain: str) -> str:
        """Key of the thresholds of a domain."""
        return domain if domain in self.length else ANY_DOMAIN

    def as_printed(self) -> "Thresholds":
        """With as many digits as the report has, so that whoever reads it judges as the audit did."""
        return Thresholds(
            self.alpha_word,
            {key: round(value, PRINTED_DIGITS) for key, value in self.word_scores.items()},
            {key: curve.as_printed() for key, curve in self.confidence.items()},
            {
                domain: typical and (round(typical[0], PRINTED_DIGITS), round(typical[1], PRINTED_DIGITS))
                for domain, typical in self.length.items()
            },
        )

    def as_json(self) -> dict[str, Any]:
        """Read back by `frozen_audit`."""
        return {
            "word_score": {f"fold {fold} {domain}": value for (fold, domain), value in self.word_scores.items()},
            "confidence": {
                f"fold {fold} {domain}": [*curve.weights, curve.intercept]
                for (fold, domain), curve in self.confidence.items()
            },
            "length": {domain: list(values) if values else None for domain, values in self.length.items()},
        }


class Judgement(NamedTuple):
    measures: Measures
    confidence: float
    """P(matched) under even odds: 0.5 is no better than a wrong transcript."""
    is_length_mismatch: bool
    reasons: list[str]


def fold_of(group: str, seed: int) -> int:
    """Fold of a recording; utterances of one recording stay together."""
    return int(hash_key(seed, "fold", group)[:8], 16) % NUM_FOLDS


def assign_folds(ids: Sequence[str], groups: Sequence[str | None], seed: int) -> list[int]:
    """Folds of utterances, whole recordings together.

    Where that leaves a fold with too little to teach, as when all is one recording, utterances are spread singly: an
    original and its decoy share their audio, so a recording known to both folds does not tell them apart.
    """
    if recordings_fill_folds(ids, groups, seed):
        return [fold_of(group or own_id, seed) for own_id, group in zip(ids, groups, strict=True)]
    return [fold_of(own_id, seed) for own_id in ids]


def recordings_fill_folds(ids: Sequence[str], groups: Sequence[str | None], seed: int) -> bool:
    """Does every fold have enough utterances when recordings stay together?"""
    folds = [fold_of(group or own_id, seed) for own_id, group in zip(ids, groups, strict=True)]
    return min(folds.count(fold) for fold in range(NUM_FOLDS)) >= MIN_FOLD_FRACTION * len(folds)


def fit_thresholds(measured: Sequence[Measured], settings: Audit) -> Thresholds:
    """Choose the most permissive word thresholds that still refuse wrong transcripts.

    Raises:
        ValueError: no utterance has both an original and a decoy alignment.
    """
    paired = [item for item in measured if item.is_paired]
    if not paired:
        raise ValueError("no utterance could be aligned with both its transcript and a decoy: nothing to calibrate on")
    domains = sorted({item.domain for item in measured} | {ANY_DOMAIN})
    fitted = Thresholds(0.0, {}, _fit_confidence(paired, domains, settings), _fit_length(paired, domains, settings))
    candidates = sorted(settings.calibration.word_false_acceptance, reverse=True)
    for alpha in candidates:
        fitted = fitted._replace(alpha_word=alpha, word_scores=_fit_word_scores(paired, domains, alpha, settings))
        accepted = sum(passes_by_words(item, DECOY, fitted, settings) for item in paired)
        if accepted <= settings.calibration.max_decoy_acceptance * len(paired):
            break
    return fitted.as_printed()


def judge(item: Measured, control: str, thresholds: Thresholds, settings: Audit) -> Judgement:
    """Judge one pair by the thresholds of the other fold; an original is also compared with its decoy."""
    pair, domain = item.pairs[control], thresholds.for_domain(item.domain)
    limits = settings.quality
    measures = measure(pair, thresholds.word_scores[item.fold, domain], limits)
    confidence = matched_probability(pair.alignment.score, thresholds.confidence[item.fold, domain])
    mismatch = length_mismatch(pair, thresholds.length[domain], limits)
    margin = None
    if control == ORIGINAL and DECOY in item.pairs:
        margin = pair.alignment.score - item.pairs[DECOY].alignment.score
    reasons = quality_reasons(
        measures,
        speech_seconds=pair.speech_seconds,
        confidence=confidence,
        is_length_mismatch=mismatch,
        decoy_margin=margin,
        limits=limits,
    )
    return Judgement(measures, confidence, mismatch, reasons)


def passes_by_words(item: Measured, control: str, thresholds: Thresholds, settings: Audit) -> bool:
    """Do the accepted words alone, and the length, let the pair pass?

    The word threshold must not lean on the utterance score: that would make it too lax for half-wrong transcripts.
    """
    reasons = judge(item, control, thresholds, settings).reasons
    return not set(reasons) - {"LOW_CONFIDENCE", "DECOY_WINS"}


def matched_probability(score: float, curve: Logistic) -> float:
    """P(matched | utterance score) under even odds."""
    return float(curve.probability(np.array([[score]]))[0])


def control_scores(measured: Sequence[Measured], control: str) -> NDArray[np.float64]:
    """Utterance scores of the pairs of one control; [num_pairs]."""
    return np.array([item.pairs[control].alignment.score for item in measured if control in item.pairs])


def _other_fold(measured: Sequence[Measured], fold: int) -> Sequence[Measured]:
    """What teaches a fold: the other ones, or everything when there are none."""
    return [item for item in measured if item.fold != fold] or measured


def _fit_confidence(
    paired: Sequence[Measured], domains: Sequence[str], settings: Audit
) -> dict[tuple[int, str], Logistic]:
    """A domain that is judged alone has its own logistic: its channel shifts the scores of right transcripts, and the
    logistic of all domains together would call the weaker ones wrong. Smaller domains use the one of all.
    """
    sizes = Counter(item.domain for item in paired)
    fitted = {}
    for fold in range(NUM_FOLDS):
        teachers = _other_fold(paired, fold)
        for domain in domains:
            own = [item for item in teachers if item.domain == domain]
            is_large = sizes[domain] >= settings.validity.min_domain_utterances
            chosen = own if is_large and own else teachers
            right, wrong = control_scores(chosen, ORIGINAL), control_scores(chosen, DECOY)
            fitted[fold, domain] = fit_logistic(right[:, None], wrong[:, None])
    return fitted


def _fit_length(
    paired: Sequence[Measured], domains: Sequence[str], settings: Audit
) -> dict[str, tuple[float, float] | None]:
    """Small domains use the typical length of all."""
    everywhere = typical_length([item.pairs[ORIGINAL] for item in paired])
    fitted = {}
    for domain in domains:
        pairs = [item.pairs[ORIGINAL] for item in paired if item.domain == domain]
        fitted[domain] = typical_length(pairs) if len(pairs) >= settings.validity.min_domain_utterances else everywhere
    return fitted


def _fit_word_scores(
    paired: Sequence[Measured], domains: Sequence[str], alpha: float, settings: Audit
) -> dict[tuple[int, str], float]:
    fitted = {}
    for fold in range(NUM_FOLDS):
        teachers = _other_fold(paired, fold)
        everywhere = [score for item in teachers for score in item.pairs[DECOY].alignment.word_scores]
        for domain in domains:
            own = [s for item in teachers if item.domain == domain for s in item.pairs[DECOY].alignment.word_scores]
            enough = len(own) >= settings.calibration.min_domain_words
            fitted[fold, domain] = float(np.quantile(own if enough else everywhere, 1 - alpha))
    return fitted
