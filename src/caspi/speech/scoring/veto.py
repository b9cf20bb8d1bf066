"""Test sets that Round 2 must not spoil: other languages, long form, silence and noise.

Fine-tuning on one language easily costs another, or teaches a model to invent words over silence; test sets of the
trained domain do not show that.
"""

from collections.abc import Sequence

from caspi.config import Compare
from caspi.records import ComparedControl, Prediction
from caspi.speech.scoring.contrast import POOLED, block_labels, generator, spread_of
from caspi.speech.scoring.scoreboard import ScoredPrediction, score_prediction
from caspi.speech.scoring.significance import Blocks, Interval, sum_by_block

ZERO_OF_N = 3.0
"""Nothing seen in n independent trials: with 95 % the rate is below 3 / n."""


def compare_controls(
    round1: Sequence[Prediction], round2: Sequence[Prediction], section: Compare
) -> list[ComparedControl]:
    """The control sets, in the order of the configuration; clips with and without a reference are judged apart.

    Both rounds hold the same clips in the same order.

    Raises:
        ValueError: a control set is not among the test sets.
    """
    pairs: dict[str, list[tuple[ScoredPrediction, ScoredPrediction]]] = {name: [] for name in section.control_sets}
    for first, second in zip(round1, round2, strict=True):
        if first.test_set in pairs:
            scored = score_prediction(first, section.profile), score_prediction(second, section.profile)
            pairs[first.test_set].append(scored)
    compared = []
    for name, scored_pairs in pairs.items():
        if not scored_pairs:
            raise ValueError(f"compare.control_sets names {name}, which is no test set of the rounds")
        spoken = [pair for pair in scored_pairs if pair[0].words.num_reference]
        silent = [pair for pair in scored_pairs if not pair[0].words.num_reference]
        if spoken:
            blocks = blocks_of(spoken, [one.words.num_reference for one, _ in spoken])
            compared.append(compare(name, blocks, len(spoken), "WER", section.max_control_worsening, section))
        if silent:
            blocks = blocks_of(silent, [1] * len(silent))
            bound = section.max_control_words_per_clip
            compared.append(compare(name, blocks, len(silent), "invented words per clip", bound, section))
    return compared


def blocks_of(pairs: Sequence[tuple[ScoredPrediction, ScoredPrediction]], sizes: Sequence[int]) -> Blocks:
    _, labels = block_labels([one.prediction for one, _ in pairs])
    return sum_by_block([one.words.errors for one, _ in pairs], [two.words.errors for _, two in pairs], sizes, labels)


def compare(
    name: str, blocks: Blocks, num_utterances: int, measure: str, bound: float, section: Compare
) -> ComparedControl:
    spread = spread_of([blocks], POOLED, section, generator(section.seed, name, measure))
    interval = spread.of_difference
    if interval is None and (blocks.errors_1 == blocks.errors_2).all():
        interval = Interval(0.0, ZERO_OF_N / len(blocks.num_reference))
    total = blocks.num_reference.sum()
    return ComparedControl.model_validate(
        {
            "test_set": name,
            "measure": measure,
            "num_utterances": num_utterances,
            "round1": float(blocks.errors_1.sum() / total),
            "round2": float(blocks.errors_2.sum() / total),
            "difference": spread.difference,
            "low": interval.low if interval else None,
            "high": interval.high if interval else None,
            "bound": bound,
            "outcome": outcome_of(interval, bound, num_utterances, section),
        }
    )


def outcome_of(difference: Interval | None, bound: float, num_utterances: int, section: Compare) -> str:
    """Met or missed only if the whole interval lies on that side of the bound."""
    if difference is None or num_utterances < section.min_utterances or difference.low <= bound < difference.high:
        return "cannot tell"
    return "met" if difference.high <= bound else "missed"
