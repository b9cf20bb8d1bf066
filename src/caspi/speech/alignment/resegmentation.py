"""Cutting a recording between words: at dips of the level, between words that were heard (AUDIT section 9).

A cut is a promise that no word is on both sides. Where that cannot be promised there is no cut, and no segment.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from caspi.config import Cuts
from caspi.speech import hebrew
from caspi.speech.alignment.vad import FRAME_SECONDS
from caspi.speech.corpora.audio import SAMPLE_RATE_HZ
from caspi.speech.text import AlignmentWord

ROUND_DIGITS = 3
"""Cuts are whole milliseconds."""
LOUD_PERCENTILE = 90
SAME_LEVEL_DB = 1.0
"""Frames this close to the quietest one are as quiet."""
MIN_POWER = 1e-10

_HOP_SAMPLES = round(FRAME_SECONDS * SAMPLE_RATE_HZ)


class Recording(NamedTuple):
    """What is known about a clip when it is cut."""

    text: str
    words: Sequence[AlignmentWord]
    spans: NDArray[np.float64]
    """[num_words, 2] seconds, NaN where the aligner found no place."""
    accepted: NDArray[np.bool_]
    """[num_words]"""
    letters: NDArray[np.float64]
    """[num_words]"""
    speech: NDArray[np.bool_]
    """[num_frames] of 10 ms."""
    level_db: NDArray[np.float64]
    """[num_frames], see `levels_db`."""
    duration_seconds: float


class Boundary(NamedTuple):
    """A place between two words, or an end of the clip."""

    end_seconds: float
    """Where a segment ends that has the boundary behind it."""
    start_seconds: float
    """Where a segment begins that has the boundary before it; never earlier than `end_seconds`."""
    is_admissible: bool
    cost: float


class Segment(NamedTuple):
    first_word: int
    last_word: int
    """Exclusive."""
    start_seconds: float
    """In the clip, whole milliseconds."""
    end_seconds: float
    text: str


def levels_db(samples: NDArray[np.float32], window_seconds: float) -> NDArray[np.float64]:
    """Level against full scale in a window around the middle of every 10 ms frame, [num_frames]."""
    num_frames = -(-len(samples) // _HOP_SAMPLES)
    power = np.concatenate(([0.0], np.cumsum(np.square(samples, dtype=np.float64))))
    centres = np.arange(num_frames) * _HOP_SAMPLES + _HOP_SAMPLES // 2
    half = round(window_seconds * SAMPLE_RATE_HZ / 2)
    first, last = (np.clip(centres + side, 0, len(samples)) for side in (-half, half))
    mean = (power[last] - power[first]) / np.maximum(last - first, 1)
    return np.asarray(10 * np.log10(np.maximum(mean, MIN_POWER)))


def split_recording(recording: Recording, max_seconds: float, min_seconds: float, cuts: Cuts) -> list[Segment]:
    """Cut a whole recording into segments that together hold its whole text; empty: it cannot be done.

    Dynamic programming over the words: of all ways to cut at admissible boundaries into segments of at most
    `max_seconds`, the one of least cost.
    """
    bounds = boundaries(recording, cuts)
    num_words = len(recording.words)
    cost = [0.0] + [np.inf] * num_words
    previous = [-1] * (num_words + 1)
    for last in range(1, num_words + 1):
        if last < num_words and not bounds[last].is_admissible:
            continue
        for first in range(last - 1, -1, -1):
            if np.isinf(cost[first]):
                continue
            seconds = bounds[last].end_seconds - bounds[first].start_seconds
            if seconds > max_seconds:
                break
            if seconds < min_seconds:
                continue
            total = cost[first] + length_cost(seconds, cuts) + bounds[last].cost
            if total < cost[last]:
                cost[last], previous[last] = total, first
    chosen = []
    last = num_words
    while last > 0:
        if previous[last] < 0:
            return []
        chosen.append((previous[last], last))
        last = previous[last]
    return [segment_of(recording, bounds, first, last) for first, last in reversed(chosen)]


def rescue_runs(recording: Recording, max_seconds: float, min_coverage: float, cuts: Cuts) -> list[Segment]:
    """The stretches of a recording whose text was heard, between admissible boundaries; possibly none.

    Of all sets of stretches of `cuts.short_below_seconds` to `max_seconds` in which accepted words hold at least
    `min_coverage` of the letters, the one with most seconds; a unit of cost counts like a second.
    """
    bounds = boundaries(recording, cuts)
    heard = np.concatenate(([0.0], np.cumsum(recording.letters * recording.accepted)))
    letters = np.concatenate(([0.0], np.cumsum(recording.letters)))
    num_words = len(recording.words)
    gain = [0.0] * (num_words + 1)
    previous = [-1] * (num_words + 1)
    for last in range(1, num_words + 1):
        gain[last] = gain[last - 1]
        for first in range(last - 1, -1, -1) if bounds[last].is_admissible else ():
            if not bounds[first].is_admissible:
                continue
            seconds = bounds[last].end_seconds - bounds[first].start_seconds
            if seconds > max_seconds:
                break
            if seconds < cuts.short_below_seconds:
                continue
            coverage = (heard[last] - heard[first]) / (letters[last] - letters[first])
            total = gain[first] + seconds - length_cost(seconds, cuts) - bounds[last].cost
            if coverage >= min_coverage and total > gain[last]:
                gain[last], previous[last] = total, first
    chosen = []
    last = num_words
    while last > 0:
        if previous[last] >= 0:
            chosen.append((previous[last], last))
        last = previous[last] if previous[last] >= 0 else last - 1
    return [segment_of(recording, bounds, first, last) for first, last in reversed(chosen)]


def between(recording: Recording, segments: Sequence[Segment]) -> list[Segment]:
    """The words that no segment holds, with the audio between the segments around them."""
    whole, num_words = floor_ms(recording.duration_seconds), len(recording.words)
    starts = [(0, 0.0), *((one.last_word, one.end_seconds) for one in segments)]
    ends = [*((one.first_word, one.start_seconds) for one in segments), (num_words, whole)]
    return [
        Segment(first, last, start, end, text_between(recording.text, recording.words, first, last))
        for (first, start), (last, end) in zip(starts, ends, strict=True)
        if last > first and end > start
    ]


def length_cost(seconds: float, cuts: Cuts) -> float:
    short = cuts.short_cost if seconds < cuts.short_below_seconds else 0.0
    return ((seconds - cuts.target_seconds) / cuts.target_seconds) ** 2 + short


def boundaries(recording: Recording, cuts: Cuts) -> list[Boundary]:
    """[num_words + 1]: the beginning of the clip, the places between words, the end of the clip.

    An end of the clip is admissible if its word was heard and the audio beyond it can be left away.
    """
    level = recording.level_db
    loud_db = float(np.percentile(level, LOUD_PERCENTILE)) if len(level) else 0.0
    inner = [_between(recording, index, loud_db, cuts) for index in range(1, len(recording.words))]
    found = [_first(recording, loud_db, cuts), *inner, _last(recording, loud_db, cuts)]
    latest, whole = 0.0, floor_ms(recording.duration_seconds)
    for index, bound in enumerate(found):
        bound = found[index] = bound._replace(
            end_seconds=min(bound.end_seconds, whole), start_seconds=min(bound.start_seconds, whole)
        )
        if bound.is_admissible and bound.end_seconds < latest:  # the aligner went backwards
            found[index] = bound._replace(is_admissible=False)
        elif bound.is_admissible:
            latest = bound.start_seconds
    return found


def segment_of(recording: Recording, bounds: Sequence[Boundary], first: int, last: int) -> Segment:
    return Segment(
        first_word=first,
        last_word=last,
        start_seconds=bounds[first].start_seconds,
        end_seconds=bounds[last].end_seconds,
        text=text_between(recording.text, recording.words, first, last),
    )


def text_between(text: str, words: Sequence[AlignmentWord], first: int, last: int) -> str:
    """The characters of the transcript from the first word's to the last one's, with all that belongs to them.

    A lone dash or quotation mark between two words goes with the word before it, so that the texts of neighbouring
    segments together are the transcript.
    """
    return text[_text_start(text, words, first) : _text_start(text, words, last)].strip()


def ends_sentence(text: str, words: Sequence[AlignmentWord], index: int) -> bool:
    """Is there the end of a sentence between word `index - 1` and word `index`?"""
    between = text[words[index - 1].end : _text_start(text, words, index)]
    return any(mark in between for mark in hebrew.SENTENCE_ENDS)


def _text_start(text: str, words: Sequence[AlignmentWord], index: int) -> int:
    """Where the text of word `index` begins: behind the last space before it, or where its letters do without one."""
    if index == 0 or index == len(words):
        return len(text) if index else 0
    start = words[index].start
    while start > words[index - 1].end and not text[start - 1].isspace():
        start -= 1
    return start if start > words[index - 1].end else words[index].start


def _between(recording: Recording, index: int, loud_db: float, cuts: Cuts) -> Boundary:
    """The place between word `index - 1` and word `index`."""
    end, start = float(recording.spans[index - 1, 1]), float(recording.spans[index, 0])
    if not (recording.accepted[index - 1] and recording.accepted[index]) or np.isnan(end) or np.isnan(start):
        return Boundary(0.0, 0.0, False, np.inf)
    low, high = min(end, start) - cuts.search_seconds, max(end, start) + cuts.search_seconds
    cut, level = quietest(recording.level_db, low, high, (end + start) / 2)
    before, dip_before = _edge_after(recording, end, cut, cuts)
    after, dip_after = _edge_before(recording, start, cut, cuts)
    dip = loud_db - max(level, dip_before, dip_after)
    gap = max(0.0, start - end)
    cost = cuts.gap_cost * max(0.0, 1 - gap / cuts.good_gap_seconds)
    cost += cuts.dip_cost * max(0.0, 1 - dip / cuts.good_dip_db)
    cost += cuts.distance_cost * max(0.0, min(end, start) - cut, cut - max(end, start)) / cuts.search_seconds
    if ends_sentence(recording.text, recording.words, index):
        cost -= cuts.sentence_gain
    return Boundary(before, after, dip >= cuts.min_dip_db, cost)


def _first(recording: Recording, loud_db: float, cuts: Cuts) -> Boundary:
    """A first word that was not heard may begin anywhere: the clip then keeps its beginning."""
    start = float(recording.spans[0, 0])
    if not recording.accepted[0] or np.isnan(start):
        return Boundary(0.0, 0.0, False, 0.0)
    edge, level = _edge_before(recording, start, 0.0, cuts)
    is_quiet = edge <= 0.0 or loud_db - level >= cuts.min_dip_db
    return Boundary(edge, edge, True, 0.0) if is_quiet else Boundary(0.0, 0.0, False, 0.0)


def _last(recording: Recording, loud_db: float, cuts: Cuts) -> Boundary:
    whole = floor_ms(recording.duration_seconds)
    end = float(recording.spans[-1, 1])
    if not recording.accepted[-1] or np.isnan(end):
        return Boundary(whole, whole, False, 0.0)
    edge, level = _edge_after(recording, end, whole, cuts)
    is_quiet = edge >= whole or loud_db - level >= cuts.min_dip_db
    return Boundary(edge, edge, True, 0.0) if is_quiet else Boundary(whole, whole, False, 0.0)


def _edge_after(recording: Recording, end: float, limit: float, cuts: Cuts) -> tuple[float, float]:
    """Where to stop after a word that ends at `end`, not beyond `limit`, and the level there.

    The padding behind the word if that is silent; else, because the sound there is another word or the rest of this
    one, the quietest place.
    """
    far = end + cuts.padding_seconds
    if limit <= far:
        return limit, _level_at(recording.level_db, limit)
    if not _has_speech(recording.speech, end + cuts.search_seconds, far):
        return round(far, ROUND_DIGITS), _level_at(recording.level_db, far)
    return quietest(recording.level_db, end - cuts.search_seconds, far, end)


def _edge_before(recording: Recording, start: float, limit: float, cuts: Cuts) -> tuple[float, float]:
    """The same before a word that begins at `start`, not before `limit`."""
    far = start - cuts.padding_seconds
    if limit >= far:
        return limit, _level_at(recording.level_db, limit)
    if not _has_speech(recording.speech, far, start - cuts.search_seconds):
        return round(far, ROUND_DIGITS), _level_at(recording.level_db, far)
    return quietest(recording.level_db, far, start + cuts.search_seconds, start)


def quietest(level_db: NDArray[np.float64], low: float, high: float, prefer: float) -> tuple[float, float]:
    """The quietest place between two times, in seconds, and its level; of equally quiet ones that nearest to `prefer`.

    The times may lie outside of the clip.
    """
    first = min(max(0, int(low / FRAME_SECONDS)), len(level_db) - 1)
    last = max(first + 1, min(len(level_db), int(np.ceil(high / FRAME_SECONDS))))
    inside = level_db[first:last]
    places = (first + np.flatnonzero(inside <= inside.min() + SAME_LEVEL_DB) + 0.5) * FRAME_SECONDS
    place = float(places[np.argmin(np.abs(places - prefer))])
    return round(place, ROUND_DIGITS), _level_at(level_db, place)


def floor_ms(seconds: float) -> float:
    """Whole milliseconds that are not more."""
    return float(np.floor(round(seconds * 1000, 6)) / 1000)


def _level_at(level_db: NDArray[np.float64], seconds: float) -> float:
    return float(level_db[min(max(0, int(seconds / FRAME_SECONDS)), len(level_db) - 1)])


def _has_speech(speech: NDArray[np.bool_], low: float, high: float) -> bool:
    first, last = (max(0, round(second / FRAME_SECONDS)) for second in (low, high))
    return bool(speech[first:last].any())
