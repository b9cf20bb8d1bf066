"""Forced alignment with any CTC model of transformers whose tokens are characters.

The transcript's best path is compared, frame by frame, with what the model would write if it were free. The free decode
takes out what makes a frame hard for any text, which is why the scores of different clips can be compared.
"""

from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoFeatureExtractor, AutoModelForCTC, AutoTokenizer

from caspi.config import Recipe
from caspi.model.aligners import AlignmentItem, FailedToAlign
from caspi.model.checkpoints.checkpoint import local_folder, quiet_transformers, require_exact, require_safetensors
from caspi.speech.alignment.quality import Alignment
from caspi.speech.corpora.audio import SAMPLE_RATE_HZ

WILDCARD = -1
"""Target of a character the model does not know: whatever the model hears best, other than the blank."""
TRAINING_ONLY = "masked_spec_embed"
"""wav2vec2's mask of SpecAugment, which some checkpoints lack."""
MIN_SAMPLES = 400
"""One frame of wav2vec2's convolutions, 25 ms."""

Emissions = NDArray[np.float64]
"""[num_frames, num_tokens] log probabilities."""


class Characters(NamedTuple):
    """What a CTC model writes with."""

    ids: dict[str, int]
    blank: int
    delimiter: int | None
    """Token between words."""
    special: frozenset[int]
    """Tokens that stand for no sound: blank, delimiter, unknown and the like."""

    def targets(self, words: Sequence[str]) -> tuple[list[int], list[int]]:
        """Tokens to be passed in order, and the index of the word each belongs to; -1 for a delimiter."""
        tokens: list[int] = []
        owners: list[int] = []
        for index, word in enumerate(words):
            if index and self.delimiter is not None:
                tokens.append(self.delimiter)
                owners.append(-1)
            known = [self.ids.get(letter, self.ids.get(letter.lower(), WILDCARD)) for letter in word]
            tokens += known
            owners += [index] * len(known)
        return tokens, owners


class CtcAligner:
    """
    Raises:
        ValueError: the model cannot be loaded, is not a CTC model of characters, or expects another sampling rate.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.model_id = recipe.audit.ctc_model
        self.device, self.dtype = "cuda" if torch.cuda.is_available() else "cpu", "float32"
        self.model, self.extractor, tokenizer = load_ctc(self.model_id)
        self.model.to(self.device).eval()
        self.characters = read_characters(tokenizer, self.model.config.pad_token_id, self.model_id)
        self.max_seconds = recipe.audit.quality.max_duration_seconds

    def align(self, items: Sequence[AlignmentItem]) -> list[Alignment | FailedToAlign]:
        """Items next to each other with the same array share one pass of the model; each audio is computed alone."""
        outcomes: list[Alignment | FailedToAlign] = []
        for _, group in groupby(items, key=lambda item: id(item.samples)):
            same = list(group)
            emissions = self._listen(same[0].samples)
            for item in same:
                outcomes.append(emissions if isinstance(emissions, FailedToAlign) else self._align(item, emissions))
        return outcomes

    @torch.inference_mode()
    def _listen(self, samples: NDArray[np.float32]) -> Emissions | FailedToAlign:
        seconds = len(samples) / SAMPLE_RATE_HZ
        if len(samples) < MIN_SAMPLES:
            return FailedToAlign(f"{seconds:.3f} s of audio are shorter than one frame of the model")
        if seconds > self.max_seconds:
            return FailedToAlign(f"{seconds:.1f} s of audio, the aligner takes at most {self.max_seconds:g} s")
        inputs = self.extractor(samples, sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt").to(self.device)
        logits = self.model(**inputs).logits[0].float()
        return np.asarray(logits.log_softmax(dim=-1).double().cpu().numpy())

    def _align(self, item: AlignmentItem, emissions: Emissions) -> Alignment | FailedToAlign:
        if not item.words:
            return FailedToAlign("the transcript has no word")
        frame_seconds = len(item.samples) / SAMPLE_RATE_HZ / len(emissions)
        return align_words(emissions, item.words, self.characters, frame_seconds)


def align_words(
    emissions: Emissions, words: Sequence[str], characters: Characters, frame_seconds: float
) -> Alignment | FailedToAlign:
    """Spans and scores of words; a score is the mean log probability against the free decode, at most 0."""
    tokens, owners = characters.targets(words)
    columns = target_columns(emissions, tokens, characters.special)
    path = best_path(emissions[:, characters.blank], columns, tokens)
    if path is None:
        return FailedToAlign(f"{len(emissions)} frames of audio are too few for {len(tokens)} tokens")
    on_target = path >= 0
    reached = np.where(on_target, columns[np.arange(len(path)), path], emissions[:, characters.blank])
    loss = reached - emissions.max(axis=1)
    owner = np.where(on_target, np.array(owners)[path], -1)
    spans: list[tuple[float, float] | None] = []
    scores = []
    for index in range(len(words)):
        frames = np.flatnonzero(owner == index)
        first, last = int(frames[0]), int(frames[-1])
        spans.append((first * frame_seconds, (last + 1) * frame_seconds))
        scores.append(float(loss[first : last + 1].mean()))
    return Alignment(tuple(spans), tuple(scores), float(loss.mean()))


def target_columns(emissions: Emissions, tokens: Sequence[int], special: frozenset[int]) -> Emissions:
    """[num_frames, num_targets] log probability of each target; a wildcard takes the best token that is a sound."""
    sounds = [token for token in range(emissions.shape[1]) if token not in special]
    best_sound = emissions[:, sounds].max(axis=1)
    return np.stack([best_sound if token == WILDCARD else emissions[:, token] for token in tokens], axis=1)


def best_path(blank: NDArray[np.float64], columns: Emissions, tokens: Sequence[int]) -> NDArray[np.int64] | None:
    """Viterbi over blank, target, blank, target, ..., blank.

    A blank may be left out, except between two equal targets, which would otherwise merge. Two wildcards in a row may
    stand for different sounds.

    Args:
        blank: [num_frames] log probability of the blank.
        columns: [num_frames, num_targets].

    Returns:
        [num_frames] index of the target, -1 on blanks; None when there are too few frames.
    """
    num_frames, num_targets = columns.shape
    num_states = 2 * num_targets + 1
    emission = np.repeat(blank[:, None], num_states, axis=1)
    emission[:, 1::2] = columns
    may_skip = np.zeros(num_states, dtype=bool)
    may_skip[3::2] = [a != b or a == WILDCARD for a, b in pairwise(tokens)]
    total = np.full(num_states, -np.inf)
    total[:2] = emission[0, :2]
    steps = np.zeros((num_frames, num_states), dtype=np.int8)
    for frame in range(1, num_frames):
        arrivals = np.full((3, num_states), -np.inf)
        arrivals[0] = total
        arrivals[1, 1:] = total[:-1]
        arrivals[2, 2:] = np.where(may_skip[2:], total[:-2], -np.inf)
        steps[frame] = arrivals.argmax(axis=0)
        total = arrivals.max(axis=0) + emission[frame]
    state = num_states - 1 if total[-1] >= total[-2] else num_states - 2
    if total[state] == -np.inf:
        return None
    path = np.empty(num_frames, dtype=np.int64)
    for frame in range(num_frames - 1, -1, -1):
        path[frame] = state // 2 if state % 2 else -1
        state -= int(steps[frame, state])
    return path


def read_characters(tokenizer: Any, blank: int, model_id: str) -> Characters:
    """
    Raises:
        ValueError: the tokens are not single characters.
    """
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    delimiter = getattr(tokenizer, "word_delimiter_token", None) or "|"
    special = {blank, *tokenizer.all_special_ids, *(vocabulary[t] for t in (delimiter, " ") if t in vocabulary)}
    ids = {token: number for token, number in vocabulary.items() if number not in special and len(token) == 1}
    if not any(token.isalpha() for token in ids):
        raise ValueError(
            f"audit.ctc_model {model_id}: none of its {len(vocabulary)} tokens is a letter; "
            "expected a CTC model that writes characters"
        )
    long = [number for token, number in vocabulary.items() if len(token) > 1]
    return Characters(ids, blank, vocabulary.get(delimiter), frozenset(special | set(long)))


def load_ctc(source: str) -> tuple[Any, Any, Any]:
    """Model, feature extractor and tokenizer.

    Raises:
        ValueError: nothing is there, it has no safetensors weights, or it is not a CTC model at 16 kHz.
    """
    folder = local_folder(source)
    require_safetensors(folder)
    try:
        with quiet_transformers():
            extractor = AutoFeatureExtractor.from_pretrained(folder, local_files_only=True)
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model, info = AutoModelForCTC.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"audit.ctc_model {source} cannot be loaded: {' '.join(str(error).split())}") from error
    info["missing_keys"] = [key for key in info["missing_keys"] if not key.endswith(TRAINING_ONLY)]
    require_exact(folder, info)
    if extractor.sampling_rate != SAMPLE_RATE_HZ:
        raise ValueError(f"audit.ctc_model {source} expects {extractor.sampling_rate} Hz, caspi has {SAMPLE_RATE_HZ}")
    return model, extractor, tokenizer
