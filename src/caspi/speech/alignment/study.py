"""What the audited utterances say once they are aligned: thresholds, judgements, findings (AUDIT sections 3 and 4)."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from caspi.config import Audit
from caspi.records import Utterance
from caspi.speech.alignment import findings as found
from caspi.speech.alignment.calibration import (
    Judgement,
    Measured,
    Thresholds,
    assign_folds,
    control_scores,
    fit_thresholds,
    judge,
    recordings_fill_folds,
)
from caspi.speech.alignment.controls import DECOY, ORIGINAL, DecoyChooser, Transcript
from caspi.speech.alignment.estimate import ROUND_DIGITS, rounded
from caspi.speech.alignment.findings import Finding
from caspi.speech.alignment.learned_score import ScoreModel, feature_auc, learn_scores, rescored
from caspi.speech.alignment.quality import Outcome, Pair
from caspi.speech.alignment.references import segment_time_errors
from caspi.speech.alignment.sampling import Sample
from caspi.speech.alignment.validity import Validity, assess
from caspi.speech.text import alignment_words, num_letters


class Study(NamedTuple):
    """Everything the report is made of, but for what ran where."""

    sample: Sample
    score_model: ScoreModel | None
    """None: the backend's own scores were used."""
    feature_auc: dict[str, float]
    segment_times: dict[str, Any] | None
    """How far word times are from the corpus' own segment times; None: it has none."""
    thresholds: Thresholds | None
    folds_by_recording: bool
    """False: utterances were spread over the folds singly."""
    validity: Validity
    findings: list[Finding]
    words: list[dict[str, Any]]
    """Lines of word_spans.jsonl.gz."""


def study_of(
    audited: Sequence[Utterance],
    transcripts: Mapping[str, Transcript],
    outcomes: Mapping[str, Outcome],
    sample: Sample,
    settings: Audit,
) -> Study:
    """Set the thresholds on the decoys, judge every utterance, judge the audit itself.

    Args:
        transcripts: of the whole manifest, by utterance id; the decoys came from them.
        outcomes: by utterance id; an utterance that was not aligned has none.
    """
    aligned = [u for u in audited if u.id in outcomes and ORIGINAL in outcomes[u.id].pairs]
    names = [u.id for u in aligned], [u.group_id for u in aligned]
    folds = assign_folds(*names, settings.seed)
    measured = [Measured(u.id, u.domain, fold, outcomes[u.id].pairs) for u, fold in zip(aligned, folds, strict=True)]
    carried = feature_auc(measured)
    score_model = learn_scores(measured, settings.calibration)
    measured = measured if score_model is None else rescored(measured, score_model)
    thresholds = fit_thresholds(measured, settings) if any(item.is_paired for item in measured) else None
    judged = {i.id: judge(i, ORIGINAL, thresholds, settings) for i in measured} if thresholds else {}
    chooser = DecoyChooser(list(transcripts.values()), settings.calibration, settings.seed)
    values = judged_by_id(measured, judged)
    for id_ in values:
        decoy = chooser.choose(transcripts[id_])
        values[id_]["decoy_id"] = decoy.id if decoy else None
    findings = [
        finding_of(u, len(transcripts[u.id].words), outcomes.get(u.id), values.get(u.id), sample, settings)
        for u in audited
    ]
    num_failed = sum(finding.is_failure for finding in findings)
    validity = assess(measured, thresholds, num_failed, len(findings), settings)
    if validity.status == "invalid":
        findings = [finding.model_copy(update={"alignment_confidence": None}) for finding in findings]
    pairs = {item.id: item.pairs[ORIGINAL] for item in measured}
    words = [word_line(u, pairs[u.id], judged[u.id]) for u in audited if u.id in judged]
    segments = segment_time_errors(measured, {u.id: u.segments for u in aligned})
    by_recording = recordings_fill_folds(*names, settings.seed)
    return Study(sample, score_model, carried, segments, thresholds, by_recording, validity, findings, words)


def transcript_of(utterance: Utterance) -> Transcript:
    words = tuple(word.text for word in alignment_words(utterance.text))
    letters = sum(num_letters(word) for word in words)
    return Transcript(utterance.id, utterance.domain, utterance.source, words, letters)


def judged_by_id(measured: Sequence[Measured], judged: Mapping[str, Judgement]) -> dict[str, dict[str, Any]]:
    """Measured fields of the findings."""
    domains = {item.domain for item in measured}
    decoys = {d: control_scores([item for item in measured if item.domain == d], DECOY) for d in domains}
    return {i.id: found.judged_values(i, judged[i.id], decoys[i.domain]) for i in measured if i.id in judged}


def finding_of(
    utterance: Utterance,
    num_words: int,
    outcome: Outcome | None,
    values: dict[str, Any] | None,
    sample: Sample,
    settings: Audit,
) -> Finding:
    """One audited utterance; whatever could not be measured is low quality for a reason that says so."""
    reason, error = None, None
    if num_words == 0:
        reason, error = "EMPTY_TRANSCRIPT", "the transcript has no word"
    elif utterance.duration > settings.quality.max_duration_seconds:
        limit = settings.quality.max_duration_seconds
        reason, error = "TOO_LONG", f"{utterance.duration:.1f} s, the aligner takes at most {limit:g} s"
    elif outcome is None or outcome.audio_error is not None:
        reason, error = "AUDIO_ERROR", outcome.audio_error if outcome else "not reached"
    elif values is None:
        reason, error = "ALIGN_ERROR", outcome.failures.get(ORIGINAL, "there is no decoy to calibrate against")
    failed = {"low_quality": True, "reasons": [reason], "error": error}
    domain = utterance.domain
    return Finding(
        sample_id=utterance.id,
        group_id=utterance.group_id,
        domain=domain,
        audio_duration=round(utterance.duration, ROUND_DIGITS),
        transcript_length=len(utterance.text),
        words=num_words,
        weight=round(sample.population[domain] / sample.drawn[domain], ROUND_DIGITS),
        speech_seconds=rounded(outcome.speech_seconds) if outcome else None,
        snr_db=rounded(outcome.snr_db) if outcome else None,
        dataset_quality_score=rounded(utterance.quality_score),
        **(failed if values is None else rounded(values)),
    )


def word_line(utterance: Utterance, pair: Pair, judgement: Judgement) -> dict[str, Any]:
    words = [
        {
            "w": word.text,
            "char": [word.start, word.end],
            "s": span[0] if span else None,
            "e": span[1] if span else None,
            "score": score,
            "aligned": bool(accepted),
        }
        for word, span, score, accepted in zip(
            alignment_words(utterance.text),
            pair.alignment.spans,
            pair.alignment.word_scores,
            judgement.measures.accepted,
            strict=True,
        )
    ]
    return {"id": utterance.id, "words": words}
