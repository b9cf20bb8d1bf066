"""Alignment without trained weights: the transcript is spoken by espeak-ng and warped onto the audio (AUDIT 10).

The word times of the synthetic reference are known, so a dynamic time warping path carries them over. The path's
distance says little by itself (noise raises it for right and wrong transcripts alike), so it is placed between two
distances of the same audio frame: to an average frame of the voice, and to the most similar ones of a large pool, which
is what an unconstrained decode would find. It serves the demo, the tests and CI, not decisions on real recordings.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dct

from caspi.config import Recipe
from caspi.model.aligners import AlignmentItem, FailedToAlign
from caspi.speech.alignment.quality import Alignment
from caspi.speech.alignment.vad import FRAME_SECONDS, speech_mask
from caspi.speech.corpora.audio import SAMPLE_RATE_HZ
from caspi.speech.seeds import seeded_generator
from caspi.speech.synthetic.espeak import speak
from caspi.speech.synthetic.synth import lexicon

WINDOW_SAMPLES = 512
HOP_SAMPLES = 320
NUM_MEL_BANDS = 32
MEL_RANGE_HZ = (300.0, 3400.0)
NUM_CEPSTRA = 12
DELTA_WEIGHT = 2.0
MIN_FRAMES = 5
OFF_DIAGONAL_COST = 0.02
MISSING_WORD_SCORE = -1.0
REFERENCE_RATE_WPM = 190
NUM_POOL_FRAMES = 1500
NUM_POOL_SENTENCES = 25
POOL_SENTENCE_WORDS = 8
NUM_NEAREST = 8
FAR = np.float32(1e9)

Matrix = NDArray[np.float32]


class Features(NamedTuple):
    frames: Matrix
    """[num_kept_frames, 2 * NUM_CEPSTRA], unit length."""
    kept: NDArray[np.int64]
    """[num_kept_frames] position of each frame on the 20 ms grid."""


class Reference(NamedTuple):
    frames: Matrix
    word_frames: tuple[tuple[int, int], ...]
    """First and last reference frame of each word, inclusive."""


class Audio(NamedTuple):
    """What alignments of one audio share. far and near: [num_kept_frames] distance to the pool, mean and nearest."""

    features: Features
    far: Matrix
    near: Matrix


class TtsDtwAligner:
    device = "cpu"
    dtype = "float32"

    def __init__(self, recipe: Recipe) -> None:
        self.voices = tuple(recipe.language.espeak_voice + variant for variant in recipe.audit.reference_voices)
        if not self.voices:
            raise ValueError('audit.reference_voices is empty: expected at least one variant, for example ""')
        self.model_id = f"espeak-ng {' '.join(self.voices)} at {REFERENCE_RATE_WPM} wpm"
        self._pools = {voice: build_pool(voice) for voice in self.voices}

    def align(self, items: Sequence[AlignmentItem]) -> list[Alignment | FailedToAlign]:
        """Items next to each other with the same array are aligned in one pass over the audio."""
        outcomes: list[Alignment | FailedToAlign] = []
        first = 0
        while first < len(items):
            last = first + 1
            while last < len(items) and items[last].samples is items[first].samples:
                last += 1
            outcomes += self._align_to_one_audio(items[first].samples, [item.words for item in items[first:last]])
            first = last
        return outcomes

    def _align_to_one_audio(
        self, samples: NDArray[np.float32], transcripts: list[tuple[str, ...]]
    ) -> list[Alignment | FailedToAlign]:
        best: list[Alignment | FailedToAlign] = [FailedToAlign("not tried")] * len(transcripts)
        if len(samples) == 0:
            return [FailedToAlign("the audio is empty")] * len(transcripts)
        features = extract_features(samples, speech_mask(samples))
        for voice in self.voices:
            audio = compare_with_pool(features, self._pools[voice])
            for index, outcome in enumerate(align_with_voice(audio, transcripts, voice)):
                known = best[index]
                if not isinstance(known, Alignment) or (isinstance(outcome, Alignment) and outcome.score > known.score):
                    best[index] = outcome
        return best


def align_with_voice(
    audio: Audio, transcripts: Sequence[tuple[str, ...]], voice: str
) -> list[Alignment | FailedToAlign]:
    outcomes: list[Alignment | FailedToAlign] = []
    references: list[Reference] = []
    for words in transcripts:
        try:
            references.append(render(words, voice))
        except ValueError as error:
            outcomes.append(FailedToAlign(f"the transcript cannot be spoken: {error}"))
        else:
            outcomes.append(FailedToAlign("pending"))
    distances = [1 - audio.features.frames @ reference.frames.T for reference in references]
    aligned = iter(
        [
            alignment(audio, reference, distance, path)
            for reference, distance, path in zip(references, distances, warp(distances), strict=True)
        ]
    )
    return [next(aligned) if str(outcome) == "pending" else outcome for outcome in outcomes]


def alignment(audio: Audio, reference: Reference, distance: Matrix, path: NDArray[np.int64]) -> Alignment:
    """Carry the reference's word times over a warping path and score each word and the whole."""
    gain = audio.far - distance[np.arange(len(path)), path]
    attainable = audio.far - audio.near
    spans: list[tuple[float, float] | None] = []
    scores: list[float] = []
    for first, last in reference.word_frames:
        begin, end = np.searchsorted(path, first, side="left"), np.searchsorted(path, last, side="right")
        if begin == end:
            spans.append(None)
            scores.append(MISSING_WORD_SCORE)
            continue
        kept = audio.features.kept[[begin, end - 1]]
        spans.append((_frame_start_seconds(kept[0]), _frame_start_seconds(kept[1] + 1)))
        scores.append(_ratio(gain[begin:end], attainable[begin:end]))
    return Alignment(tuple(spans), tuple(scores), _ratio(gain, attainable))


def warp(distances: Sequence[Matrix]) -> list[NDArray[np.int64]]:
    """Dynamic time warping of one audio onto several references at once.

    Each audio frame moves on by 0, 1 or 2 reference frames; the path may begin and end within the outer three.

    Args:
        distances: per reference [num_audio_frames, num_reference_frames]; the number of audio frames is common.

    Returns:
        Per reference the reference frame of each audio frame, [num_audio_frames], not decreasing.
    """
    if not distances:
        return []
    num_frames = len(distances[0])
    widths = [distance.shape[1] for distance in distances]
    cost = np.full((num_frames, len(distances), max(widths)), FAR, dtype=np.float32)
    for index, distance in enumerate(distances):
        cost[:, index, : widths[index]] = distance
    total = np.full(cost.shape[1:], FAR, dtype=np.float32)
    total[:, :3] = cost[0, :, :3]
    steps = np.zeros(cost.shape, dtype=np.int8)
    for frame in range(1, num_frames):
        best = total + np.float32(OFF_DIAGONAL_COST)
        step = steps[frame]
        one = np.full_like(total, FAR)
        one[:, 1:] = total[:, :-1]
        better = one < best
        step[better] = 1
        np.minimum(best, one, out=best)
        two = np.full_like(total, FAR)
        two[:, 2:] = total[:, :-2] + np.float32(OFF_DIAGONAL_COST)
        step[two < best] = 2
        np.minimum(best, two, out=best)
        total = best + cost[frame]
    return [_trace_back(steps[:, i, :], total[i, : widths[i]]) for i in range(len(distances))]


def _trace_back(steps: NDArray[np.int8], total: Matrix) -> NDArray[np.int64]:
    """Follow the steps back from the cheapest of the last three reference frames."""
    tail = total[-3:]
    position = len(total) - len(tail) + int(np.argmin(tail))
    path = np.empty(len(steps), dtype=np.int64)
    for frame in range(len(steps) - 1, -1, -1):
        path[frame] = position
        position = max(position - int(steps[frame, position]), 0)
    return path


def extract_features(samples: NDArray[np.float32], speech: NDArray[np.bool_] | None) -> Features:
    """Cepstra 1-12 with weighted differences, normalised over the speech frames, unit length; 20 ms grid.

    Args:
        speech: speech mask; frames off speech are dropped. None keeps all.
    """
    spectrum = log_mel(samples)
    kept = np.arange(len(spectrum))
    if speech is not None:
        centre = ((kept * HOP_SAMPLES + WINDOW_SAMPLES // 2) / SAMPLE_RATE_HZ / FRAME_SECONDS).astype(int)
        spoken = np.flatnonzero(speech[np.minimum(centre, len(speech) - 1)])
        kept = spoken if len(spoken) >= MIN_FRAMES else kept
    cepstra = dct(spectrum, axis=1, norm="ortho")[kept, 1 : 1 + NUM_CEPSTRA]
    cepstra = (cepstra - cepstra.mean(axis=0)) / (cepstra.std(axis=0) + 1e-3)
    slope = np.gradient(cepstra, axis=0) if len(cepstra) > 1 else np.zeros_like(cepstra)
    frames = np.hstack([cepstra, DELTA_WEIGHT * slope])
    frames /= np.linalg.norm(frames, axis=1, keepdims=True) + 1e-6
    return Features(frames.astype(np.float32), kept)


def log_mel(samples: NDArray[np.float32]) -> NDArray[np.float64]:
    """[num_frames, NUM_MEL_BANDS], at least one frame."""
    padded = np.pad(samples, (0, max(0, WINDOW_SAMPLES - len(samples))))
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW_SAMPLES)[::HOP_SAMPLES]
    power = np.square(np.abs(np.fft.rfft(windows * np.hanning(WINDOW_SAMPLES), axis=1)))
    return np.asarray(np.log(power @ mel_bands().T + 1e-7))


@lru_cache(maxsize=1)
def mel_bands() -> NDArray[np.float64]:
    """Triangular filters on the mel scale, [NUM_MEL_BANDS, num_bins]."""
    low, high = (2595 * np.log10(1 + hz / 700) for hz in MEL_RANGE_HZ)
    edges_hz = 700 * (10 ** (np.linspace(low, high, NUM_MEL_BANDS + 2) / 2595) - 1)
    edges = np.floor((WINDOW_SAMPLES + 1) * edges_hz / SAMPLE_RATE_HZ)
    bins = np.arange(WINDOW_SAMPLES // 2 + 1)
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising = (bins - left) / np.maximum(centre - left, 1)
    falling = (right - bins) / np.maximum(right - centre, 1)
    return np.where(bins < centre, np.where(bins >= left, rising, 0.0), np.maximum(falling, 0.0))


@lru_cache(maxsize=4096)
def render(words: tuple[str, ...], voice: str) -> Reference:
    """Speak a transcript with the reference voice.

    Raises:
        ValueError: the engine is not installed or a word is not speakable.
    """
    spoken = speak(words, voice=voice, rate_wpm=REFERENCE_RATE_WPM)
    frames = extract_features(spoken.samples, None).frames
    centres = (np.arange(len(frames)) * HOP_SAMPLES + WINDOW_SAMPLES / 2) / SAMPLE_RATE_HZ
    ranges = []
    for start, end in spoken.word_times:
        first, last = int(np.searchsorted(centres, start)), int(np.searchsorted(centres, end)) - 1
        if last < first:
            first = last = int(np.argmin(np.abs(centres - (start + end) / 2)))
        ranges.append((first, last))
    return Reference(frames, tuple(ranges))


@lru_cache(maxsize=8)
def build_pool(voice: str) -> Matrix:
    """Frames of unrelated sentences in the reference voice, [num_pool_frames, num_features].

    Raises:
        ValueError: the espeak engine is not installed.
    """
    generator = seeded_generator(0, "tts-dtw pool", voice)
    sentences = generator.choice(lexicon(), size=(NUM_POOL_SENTENCES, POOL_SENTENCE_WORDS)).tolist()
    frames = np.concatenate([render(tuple(sentence), voice).frames for sentence in sentences])
    return frames[np.sort(generator.permutation(len(frames))[:NUM_POOL_FRAMES])]


def compare_with_pool(features: Features, pool: Matrix) -> Audio:
    distance = 1 - features.frames @ pool.T
    near = np.partition(distance, NUM_NEAREST, axis=1)[:, :NUM_NEAREST].mean(axis=1)
    return Audio(features, distance.mean(axis=1), near)


def _ratio(gain: Matrix, attainable: Matrix) -> float:
    return float(gain.mean(dtype=np.float64) / max(float(attainable.mean(dtype=np.float64)), 1e-6))


def _frame_start_seconds(frame: int) -> float:
    """Start of the 20 ms cell around a frame's centre."""
    return float((frame * HOP_SAMPLES + (WINDOW_SAMPLES - HOP_SAMPLES) / 2) / SAMPLE_RATE_HZ)
