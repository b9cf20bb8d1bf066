"""Scores of raw predictions: per test set and duration bucket, from counts per utterance, and as tables."""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from caspi.config import Evaluate
from caspi.records import Prediction, Score
from caspi.speech.hebrew import hebrew_fraction
from caspi.speech.scoring.predictions import Timing
from caspi.speech.scoring.score import (
    PROFILES,
    ErrorCounts,
    Profile,
    count_character_errors,
    count_word_errors,
    normalize,
    pool,
)

Bucket = Literal["all", "short", "medium", "long"]
BUCKETS: tuple[Bucket, ...] = ("all", "short", "medium", "long")
MAX_LOOP_PERIOD = 20
"""Characters in the longest pattern that is looked for, as in Qwen3-ASR's own repetition fix."""

COLUMNS = (
    *("dataset", "wer", "cer", "samples", "S", "D", "I", "words"),
    *(
        "failed",
        "truncated",
        "loops",
        "empty",
        "hebrew_fraction",
        "audio_seconds",
        "avg_latency",
        "total_time",
        "route",
    ),
)
"""Of benchmark_results_PROFILE.csv; times in seconds."""


class ScoredPrediction(NamedTuple):
    prediction: Prediction
    reference: str
    """Normalised."""
    hypothesis: str
    """Normalised; empty when the clip failed."""
    words: ErrorCounts
    characters: ErrorCounts


def score_prediction(prediction: Prediction, profile: Profile) -> ScoredPrediction:
    """Count the errors of one utterance; a clip that failed lost all its words."""
    failed = prediction.finish_reason == "error"
    reference = normalize(prediction.reference, profile)
    hypothesis = "" if failed else normalize(prediction.hypothesis, profile)
    words, characters = count_word_errors(reference, hypothesis), count_character_errors(reference, hypothesis)
    return ScoredPrediction(prediction, reference, hypothesis, words, characters)


def bucket_of(duration_seconds: float, section: Evaluate) -> Bucket:
    if duration_seconds < section.short_below_seconds:
        return "short"
    return "long" if duration_seconds > section.long_above_seconds else "medium"


def in_bucket(scored: Iterable[ScoredPrediction], bucket: Bucket, section: Evaluate) -> list[ScoredPrediction]:
    return [one for one in scored if bucket in ("all", bucket_of(one.prediction.duration, section))]


def by_test_set(scored: Iterable[ScoredPrediction]) -> dict[str, list[ScoredPrediction]]:
    """In the order in which the test sets first appear."""
    sets: dict[str, list[ScoredPrediction]] = {}
    for one in scored:
        sets.setdefault(one.prediction.test_set, []).append(one)
    return sets


def has_loop(text: str, min_repeats: int) -> bool:
    """Was the model caught in a loop: does a pattern of up to `MAX_LOOP_PERIOD` characters repeat this often?"""
    return re.search(rf"(.{{1,{MAX_LOOP_PERIOD}}}?)\1{{{min_repeats - 1},}}", text, re.DOTALL) is not None


def scores_of(predictions: Sequence[Prediction], profile: Profile, section: Evaluate) -> list[Score]:
    """Scores of every test set, whole and by bucket; buckets without utterances are left out."""
    scores = []
    for test_set, scored in by_test_set(score_prediction(one, profile) for one in predictions).items():
        for bucket in BUCKETS:
            if part := in_bucket(scored, bucket, section):
                scores.append(score_of(test_set, bucket, profile, part, section.min_loop_repeats))
    return scores


def score_of(
    test_set: str, bucket: Bucket, profile: Profile, scored: Sequence[ScoredPrediction], min_loop_repeats: int
) -> Score:
    raw = [one.prediction for one in scored]
    counted = [one for one in scored if one.words.num_reference]
    empty = [one for one in scored if not one.words.num_reference]
    words, characters = pool(one.words for one in counted), pool(one.characters for one in counted)
    return Score(
        test_set=test_set,
        bucket=bucket,
        profile=profile,
        num_utterances=len(scored),
        num_failed=sum(one.finish_reason == "error" for one in raw),
        num_truncated=sum(one.finish_reason == "length" for one in raw),
        num_loops=sum(has_loop(one.hypothesis, min_loop_repeats) for one in raw),
        num_empty_hypotheses=sum(not one.hypothesis and one.prediction.finish_reason != "error" for one in scored),
        num_empty_references=len(empty),
        num_words_over_empty_references=pool(one.words for one in empty).insertions,
        audio_seconds=round(sum(one.duration for one in raw), 3),
        num_words=words.num_reference,
        substitutions=words.substitutions,
        deletions=words.deletions,
        insertions=words.insertions,
        wer=words.rate if counted else None,
        num_characters=characters.num_reference,
        character_errors=characters.errors,
        cer=characters.rate if counted else None,
        hebrew_fraction=hebrew_fraction(one.hypothesis for one in raw),
    )


class Averages(NamedTuple):
    """Over whole test sets that have at least one reference word; fractions."""

    mean_wer: float | None
    """Unweighted mean over the test sets: the guide's average."""
    pooled_wer: float | None
    """All errors over all words."""
    mean_cer: float | None
    pooled_cer: float | None


def averages_of(scores: Iterable[Score]) -> Averages:
    """Averages of scores of one profile."""
    whole = [score for score in scores if score.bucket == "all" and score.num_words]
    if not whole:
        return Averages(None, None, None, None)
    errors = sum(score.substitutions + score.deletions + score.insertions for score in whole)
    return Averages(
        mean_wer=sum(score.wer or 0.0 for score in whole) / len(whole),
        pooled_wer=errors / sum(score.num_words for score in whole),
        mean_cer=sum(score.cer or 0.0 for score in whole) / len(whole),
        pooled_cer=sum(s.character_errors for s in whole) / sum(s.num_characters for s in whole),
    )


def benchmark_csv(scores: Sequence[Score], timings: Mapping[str, Timing], route: str) -> str:
    """One row per test set; rates are fractions, empty where there is no reference word."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(COLUMNS)
    for score in scores:
        timing = timings[score.test_set]
        errors = [score.substitutions, score.deletions, score.insertions, score.num_words]
        oddities = [score.num_failed, score.num_truncated, score.num_loops, score.num_empty_hypotheses]
        latency = round(timing.transcribing / score.num_utterances, 4)
        rest = [score.hebrew_fraction, score.audio_seconds, latency, round(timing.elapsed, 3), route]
        writer.writerow([score.test_set, score.wer, score.cer, score.num_utterances, *errors, *oddities, *rest])
    return table.getvalue()


def summary(scores: Sequence[Score]) -> str:
    """The table on the terminal, in percent."""
    lines = [f"{'test set':24} {'profile':7} {'WER':>8} {'CER':>8} {'clips':>7} {'words':>8}  oddities"]
    for score in scores:
        if score.bucket == "all":
            counts = f"{score.num_utterances:7} {score.num_words:8}"
            rates = f"{percent(score.wer):>8} {percent(score.cer):>8}"
            lines.append(f"{score.test_set:24} {score.profile:7} {rates} {counts}  {oddities(score)}")
    for profile in PROFILES:
        averages = averages_of(score for score in scores if score.profile == profile)
        lines.append(f"{'mean_wer':24} {profile:7} {percent(averages.mean_wer):>8} {percent(averages.mean_cer):>8}")
        lines.append(
            f"{'pooled_wer':24} {profile:7} {percent(averages.pooled_wer):>8} {percent(averages.pooled_cer):>8}"
        )
    return "\n".join(lines)


def percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{fraction:.2%}"


def oddities(score: Score) -> str:
    counts = {
        "failed": score.num_failed,
        "truncated": score.num_truncated,
        "loops": score.num_loops,
        "empty": score.num_empty_hypotheses,
        "empty references": score.num_empty_references,
    }
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)
