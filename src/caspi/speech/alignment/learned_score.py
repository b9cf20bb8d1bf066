"""Scores learned from an audit's own wrong transcripts (AUDIT section 3, backend `qwen`).

Nobody can say beforehand which measurement of an aligner carries. Two logistic regressions, one for words and one for
utterances, learn it from originals against decoys; each fold of recordings is scored by what the other one taught.

No feature may tell originals from decoys without the sound. What depends on the audio alone is equal within a pair,
and decoys are transcripts of the same corpus, so what depends on the text alone has the same distribution. The length
of a text beside its audio would give a decoy away, therefore durations are compared within the transcript only, and
counts enter corrected for chance. Whether that holds in a run is checked with reversed audio (`validity`), which keeps
text, length and loudness and takes the words away.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from caspi.config import Calibration
from caspi.speech.alignment.calibration import NUM_FOLDS, Measured
from caspi.speech.alignment.controls import DECOY, ORIGINAL
from caspi.speech.alignment.logistic import Logistic, fit_logistic
from caspi.speech.alignment.quality import Pair, speech_share
from caspi.speech.alignment.validity import auc

Floats = NDArray[np.float64]

OF_WORDS_TOO = ("order_agreement",)
"""Measurements of the whole utterance that also count for each of its words."""
SPAN_ALLOWANCE_SECONDS = 0.04
"""Added to the duration of a word before its logarithm: half of the aligner's time resolution."""
SUMMARIES = ("mean", "q25", "q75")
"""Of a word feature over an utterance."""


class Features(NamedTuple):
    words: dict[str, Floats]
    """By name, [num_words]."""
    utterance: dict[str, float]


class ScoreModel(NamedTuple):
    """Logistic of words and of utterances by the fold that it scores (the other one taught it)."""

    word_features: tuple[str, ...]
    utterance_features: tuple[str, ...]
    words: dict[int, Logistic]
    utterances: dict[int, Logistic]

    def score(self, pair: Pair, fold: int) -> Pair:
        """The pair with learned word scores and utterance score, in logits."""
        features = features_of(pair)
        words = self.words[fold].logit(np.column_stack([features.words[name] for name in self.word_features]))
        row = np.array([[features.utterance[name] for name in self.utterance_features]])
        alignment = pair.alignment._replace(
            word_scores=tuple(words.tolist()), score=float(self.utterances[fold].logit(row)[0])
        )
        return replace(pair, alignment=alignment)

    def as_json(self) -> dict[str, Any]:
        written: dict[str, Any] = {
            "word_features": list(self.word_features),
            "utterance_features": list(self.utterance_features),
        }
        for kind, models in (("word", self.words), ("utterance", self.utterances)):
            written[f"{kind}s"] = {f"fold {fold}": [*one.weights, one.intercept] for fold, one in models.items()}
            written[f"{kind}_ranges"] = {
                f"fold {fold}": list(map(list, one.ranges or ())) for fold, one in models.items()
            }
        return written


def learn_scores(measured: Sequence[Measured], settings: Calibration) -> ScoreModel | None:
    """None where the backend has no features or a fold has too few pairs to teach; its own scores then stand."""
    paired = [item for item in measured if item.is_paired and _has_features(item)]
    teachers = {fold: [item for item in paired if item.fold != fold] for fold in range(NUM_FOLDS)}
    if min(map(len, teachers.values())) < settings.min_taught_pairs:
        return None
    first = features_of(paired[0].pairs[ORIGINAL])
    names, summaries = tuple(sorted(first.words)), tuple(sorted(first.utterance))
    words, utterances = {}, {}
    for fold, items in teachers.items():
        right, wrong = _features(items, ORIGINAL), _features(items, DECOY)
        words[fold] = _fit(_word_rows(right, names), _word_rows(wrong, names), settings)
        utterances[fold] = _fit(_utterance_rows(right, summaries), _utterance_rows(wrong, summaries), settings)
    return ScoreModel(names, summaries, words, utterances)


def _fit(right: Floats, wrong: Floats, settings: Calibration) -> Logistic:
    fitted = fit_logistic(right, wrong, settings.score_penalty / (len(right) + len(wrong)))
    return fitted.within(np.concatenate([right, wrong])).as_printed()


def rescored(measured: Sequence[Measured], model: ScoreModel) -> list[Measured]:
    return [
        replace(item, pairs={control: model.score(pair, item.fold) for control, pair in item.pairs.items()})
        for item in measured
    ]


def feature_auc(measured: Sequence[Measured]) -> dict[str, float]:
    """AUC of originals against decoys of each feature alone, with the sign that it has; empty without features.

    Word features are compared word by word (`word NAME`), the others utterance by utterance (`utterance NAME`).
    """
    paired = [item for item in measured if item.is_paired and _has_features(item)]
    if not paired:
        return {}
    right, wrong = _features(paired, ORIGINAL), _features(paired, DECOY)
    table = {}
    for name in right[0].words:
        table[f"word {name}"] = auc(_word_rows(right, [name])[:, 0], _word_rows(wrong, [name])[:, 0])
    for name in right[0].utterance:
        table[f"utterance {name}"] = auc(_utterance_rows(right, [name])[:, 0], _utterance_rows(wrong, [name])[:, 0])
    return table


def features_of(pair: Pair) -> Features:
    """What the aligner measured, and how its spans lie on the speech; for a pair of a backend with features."""
    alignment = pair.alignment
    assert alignment.word_features is not None
    assert alignment.features is not None
    words = {name: np.array(values, dtype=np.float64) for name, values in alignment.word_features.items()}
    words["speech_overlap"] = np.array([speech_share(pair, start, end, 0.0) for start, end in pair.starts_ends])
    words["duration_deviation"] = duration_deviations(pair)
    summary = dict(alignment.features)
    for name, values in words.items():
        summary |= {f"{name} {label}": float(one) for label, one in zip(SUMMARIES, summarised(values), strict=True)}
    words |= {name: np.full(len(pair.letters), alignment.features[name]) for name in OF_WORDS_TOO}
    return Features(words, summary)


def summarised(values: Floats) -> tuple[float, float, float]:
    lower, upper = np.quantile(values, (0.25, 0.75)).tolist()
    return float(values.mean()), lower, upper


def duration_deviations(pair: Pair) -> Floats:
    """How far each word's seconds per letter are from the transcript's median, |ln ratio|; [num_words].

    Against the transcript itself: against the corpus it would measure whether the text is as long as the audio.
    """
    spans = pair.starts_ends
    seconds = np.maximum(spans[:, 1] - spans[:, 0], 0.0) + SPAN_ALLOWANCE_SECONDS
    rates = np.log(seconds / np.array(pair.letters))
    return np.asarray(np.abs(rates - np.median(rates)))


def _has_features(item: Measured) -> bool:
    return all(pair.alignment.features is not None for pair in item.pairs.values())


def _features(items: Sequence[Measured], control: str) -> list[Features]:
    return [features_of(item.pairs[control]) for item in items]


def _word_rows(features: Sequence[Features], names: Sequence[str]) -> Floats:
    """[num_words of all, num_features]"""
    return np.column_stack([np.concatenate([one.words[name] for one in features]) for name in names])


def _utterance_rows(features: Sequence[Features], names: Sequence[str]) -> Floats:
    """[num_utterances, num_features]"""
    return np.array([[one.utterance[name] for name in names] for one in features])
