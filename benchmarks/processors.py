"""A processor for the benchmarks: the real classes, a small vocabulary, the mel bins of the model at hand."""

from transformers import Qwen3ASRFeatureExtractor, Qwen3ASRProcessor

from caspi.model.prompt import CHAT_TEMPLATE
from caspi.model.tiny_models import NUM_KNOWN_WORDS, build_processor
from caspi.speech.synthetic.synth import lexicon


def known_words() -> list[str]:
    return list(lexicon(NUM_KNOWN_WORDS))


def processor_with(num_mel_bins: int) -> Qwen3ASRProcessor:
    processor = build_processor(known_words(), CHAT_TEMPLATE)
    processor.feature_extractor = Qwen3ASRFeatureExtractor(feature_size=num_mel_bins)
    return processor
