"""Which audited clips a reader gets to see and hear, and what is shown of each (AUDIT section 11)."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from caspi.config import Audit, QualityThresholds
from caspi.records import Utterance, sha256_of_file
from caspi.speech.alignment.audit_files import AuditFiles, WordSpan
from caspi.speech.alignment.findings import Finding
from caspi.speech.alignment.quality import covered_frames
from caspi.speech.alignment.review import needs_hearing, review_plan
from caspi.speech.alignment.vad import FRAME_SECONDS, runs, speech_mask
from caspi.speech.corpora.audio import AudioError, load_audio
from caspi.speech.corpora.ogg import data_uri, opus_bytes
from caspi.speech.seeds import hash_key

MIN_SHOWN_RUN_SECONDS = 0.1
"""Shorter stretches of speech without text are the edges of words."""


class Choice(NamedTuple):
    """Clips of a page by what they were chosen for; ids in the order in which they are shown."""

    worst: list[str]
    near: list[str]
    good: list[str]
    """A random sample of clips that passed."""
    flagged: list[str]
    """A random sample of clips that did not."""
    review: list[str]
    """In the order of the review; empty in a page that is not made for it."""

    def shown(self) -> list[str]:
        """All of them once, those of the review first."""
        return list(dict.fromkeys([*self.review, *self.worst, *self.near, *self.flagged, *self.good]))


class ClipDetail(NamedTuple):
    text: str
    words: tuple[WordSpan, ...]
    decoy_text: str | None
    speech: list[tuple[float, float]]
    """Stretches of speech in seconds."""
    untranscribed: list[tuple[float, float]]
    """Stretches of speech outside accepted words, in seconds."""
    peaks: str
    """Base64 of one byte per point: the largest absolute sample in 255ths of the clip's largest."""
    audio: str | None
    """Data URI."""
    note: str
    """Why there is no audio or no waveform; may be empty."""


def slack(finding: Finding, limits: QualityThresholds) -> float | None:
    """Distance of the weakest measure to its threshold; negative below it, None if nothing was measured."""
    measured = [
        (finding.alignment_coverage, limits.min_coverage),
        (finding.speech_coverage, limits.min_speech_coverage),
        (finding.alignment_confidence, limits.min_confidence),
    ]
    distances = [value - limit for value, limit in measured if value is not None]
    return min(distances) if distances else None


def worst_first(findings: Iterable[Finding], limits: QualityThresholds) -> list[Finding]:
    """Measured clips by their weakest measure, then those that could not be measured."""

    def key(finding: Finding) -> tuple[bool, bool, float, str]:
        distance = slack(finding, limits)
        return (not finding.low_quality, distance is None, distance or 0.0, finding.sample_id)

    return sorted(findings, key=key)


def choose_clips(files: AuditFiles, settings: Audit) -> Choice:
    """At most `page.max_clips` different clips."""
    page, limits, seed = settings.page, settings.quality, files.report["sampling"]["seed"]
    heard = [finding for finding in files.findings if needs_hearing(finding)]
    measured = {f.sample_id: distance for f in heard if (distance := slack(f, limits)) is not None}
    near = sorted(measured, key=lambda id_: (abs(measured[id_]), id_))[: page.num_near]
    worst = [finding.sample_id for finding in worst_first(heard, limits) if finding.low_quality]
    shuffled = sorted(heard, key=lambda f: hash_key(seed, "review", f.sample_id))
    passed = [f.sample_id for f in shuffled if not f.low_quality]
    flagged = [f.sample_id for f in shuffled if f.low_quality]
    if settings.embed_audio == "worst":
        return Choice(worst[: page.max_clips], [], [], [], [])
    room = max(0, page.max_clips - page.num_worst - page.num_near)
    plan = list(review_plan(files.findings, files.population, settings.review, seed))[:room]
    planned = set(plan)
    num_worst = min(page.num_worst, page.max_clips - len(plan))
    num_near = min(page.num_near, page.max_clips - len(plan) - num_worst)
    good = [id_ for id_ in passed if id_ in planned]
    return Choice(worst[:num_worst], near[:num_near], good, [id_ for id_ in flagged if id_ in planned], plan)


def details_of(
    shown: Sequence[str],
    files: AuditFiles,
    utterances: Mapping[str, Utterance],
    words: Mapping[str, tuple[WordSpan, ...]],
    settings: Audit,
) -> dict[str, ClipDetail]:
    """Details by id. Audio is given until the page's share is used up, then to none: a page that left out only long
    clips would be a review of short ones."""
    decoys = {finding.sample_id: utterances.get(finding.decoy_id or "") for finding in files.findings}

    def made(id_: str) -> ClipDetail:
        decoy = decoys[id_]
        return detail_of(utterances[id_], words.get(id_, ()), decoy.text if decoy else None, settings)

    with ThreadPoolExecutor() as pool:  # decoding and encoding run outside the interpreter's lock
        details = dict(zip(shown, pool.map(made, shown), strict=True))
    left = int(settings.page.max_audio_mib * 2**20)
    for id_, detail in details.items():
        size = len(detail.audio or "")
        if size > left:
            left = 0
            note = "the page holds as much audio as --page.max-audio-mib allows"
            details[id_] = detail._replace(audio=None, note=note)
        left -= min(left, size)
    return details


def detail_of(utterance: Utterance, words: tuple[WordSpan, ...], decoy_text: str | None, settings: Audit) -> ClipDetail:
    """What can be shown of one clip; a file that cannot be read or has changed is shown without its sound."""
    mute = ClipDetail(utterance.text, words, decoy_text, [], [], "", None, "")
    try:
        samples = load_audio(utterance.audio_filepath, utterance.offset, utterance.duration)
    except AudioError as error:
        return mute._replace(note=f"the audio cannot be read: {error.reason}")
    if utterance.source_sha256 and sha256_of_file(Path(utterance.audio_filepath)) != utterance.source_sha256:
        return mute._replace(note="the audio file has changed since caspi prepare")
    speech = speech_mask(samples)
    spans = np.array([(word.s, word.e) for word in words if word.aligned and word.s is not None]).reshape(-1, 2)
    bare = speech & ~covered_frames(spans, len(speech), settings.quality)
    audible = settings.embed_audio != "none"
    return mute._replace(
        note="" if audible else "this page was made without audio (--embed-audio none)",
        speech=_stretches(speech),
        untranscribed=[run for run in _stretches(bare) if run[1] - run[0] >= MIN_SHOWN_RUN_SECONDS],
        peaks=base64.b64encode(peaks_of(samples, settings.page.num_peaks)).decode("ascii"),
        audio=data_uri(opus_bytes(samples)) if audible else None,
    )


def peaks_of(samples: NDArray[np.float32], num_peaks: int) -> bytes:
    """Largest absolute sample of equal parts of the clip, scaled so that the loudest is 255."""
    if len(samples) == 0:
        return b""
    edges = np.linspace(0, len(samples), min(num_peaks, len(samples)) + 1).astype(int)[:-1]
    peaks = np.maximum.reduceat(np.abs(samples), edges)
    return np.round(255 * peaks / max(float(peaks.max()), 1e-9)).astype(np.uint8).tobytes()


def as_json(detail: ClipDetail) -> dict[str, Any]:
    return {
        **detail._asdict(),
        "words": [[*word.char, word.s, word.e, word.score, int(word.aligned)] for word in detail.words],
    }


def _stretches(mask: NDArray[np.bool_]) -> list[tuple[float, float]]:
    return [(round(start * FRAME_SECONDS, 2), round(end * FRAME_SECONDS, 2)) for start, end in runs(mask)]
