"""Training audio and prompts as they vary from epoch to epoch.

Every draw is a function of seed, kind of change, epoch and utterance, never of what was drawn before: a resumed run
hears what the first one would have heard, with any number of processes and loader workers, and switching one change on
leaves the others as they were.
"""

import numpy as np
import soxr
import torch

from caspi.config import Augmentation
from caspi.records import Utterance
from caspi.speech.augment import add_noise, codec_round_trip, telephone_band
from caspi.speech.corpora.audio import SAMPLE_RATE_HZ
from caspi.speech.seeds import seeded_generator


class Augmenter:
    """Changes the audio, features and prompt of one utterance in one epoch."""

    def __init__(self, config: Augmentation, seed: int) -> None:
        self.config = config
        self.seed = seed

    @property
    def changes_audio(self) -> bool:
        """Whether features differ between epochs, so that there is no sense in keeping them."""
        one = self.config
        sound = (one.speed_probability, one.noise_probability, one.telephone_probability, one.codec_probability)
        return any((*sound, one.num_time_masks, one.num_mel_masks))

    def generator(self, what: str, utterance: Utterance, epoch_index: int) -> np.random.Generator:
        return seeded_generator(self.seed, f"augmentation {what}", f"{epoch_index}/{utterance.id}")

    def samples(self, samples: np.ndarray, utterance: Utterance, epoch_index: int) -> np.ndarray:
        """float32 [num_samples]; in the order of nature: the speaker's tempo, the room, the telephone, the codec."""
        config = self.config
        rng = self.generator("speed", utterance, epoch_index)
        if rng.random() < config.speed_probability:
            samples = change_speed(samples, float(rng.choice(config.speed_factors)))
        rng = self.generator("noise", utterance, epoch_index)
        if rng.random() < config.noise_probability and samples.any():
            samples = add_noise(samples, float(rng.uniform(*config.noise_snr_db)), rng)
        if self.generator("telephone", utterance, epoch_index).random() < config.telephone_probability:
            samples = telephone_band(samples)
        rng = self.generator("codec", utterance, epoch_index)
        if rng.random() < config.codec_probability:
            samples = codec_round_trip(samples, config.codecs[rng.integers(len(config.codecs))])
        return samples

    def features(self, features: torch.Tensor, utterance: Utterance, epoch_index: int) -> torch.Tensor:
        """float32 [M, F] with SpecAugment's masks: stretches of time and bands of frequency set to the clip's mean.

        Park et al. 2019, without time warping; a time mask is at most a fraction of the clip, as for short utterances.
        """
        num_bins, num_frames = features.shape
        masked, mean = features.clone(), features.mean()
        rng = self.generator("masks", utterance, epoch_index)
        for _ in range(self.config.num_time_masks):
            first, width = draw_mask(rng, num_frames, int(self.config.max_time_mask_fraction * num_frames))
            masked[:, first : first + width] = mean
        for _ in range(self.config.num_mel_masks):
            first, width = draw_mask(rng, num_bins, int(self.config.max_mel_mask_fraction * num_bins))
            masked[first : first + width] = mean
        return masked

    def context(self, utterance: Utterance, epoch_index: int) -> str:
        """What was said before, for the system prompt; often nothing."""
        config = self.config
        if not utterance.prev_text or not config.context_probability:
            return ""
        if self.generator("context", utterance, epoch_index).random() >= config.context_probability:
            return ""
        return last_words(utterance.prev_text, config.max_context_characters)


def change_speed(samples: np.ndarray, factor: float) -> np.ndarray:
    """Tempo and pitch together, as a tape would; the length is divided by `factor`."""
    return np.asarray(soxr.resample(samples, SAMPLE_RATE_HZ * factor, SAMPLE_RATE_HZ), dtype=np.float32)


def draw_mask(rng: np.random.Generator, length: int, max_width: int) -> tuple[int, int]:
    """First position and width; the width is uniform from 0 to `max_width`."""
    width = int(rng.integers(0, max_width + 1))
    return int(rng.integers(0, length - width + 1)), width


def last_words(text: str, max_characters: int) -> str:
    """The end of a text, whole words only."""
    if len(text) <= max_characters:
        return text
    tail = text[-max_characters - 1 :]
    return tail.split(" ", 1)[1] if " " in tail else ""
