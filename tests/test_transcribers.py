from collections.abc import Sequence

import numpy as np
import pytest
import torch
from transformers import Qwen3ASRForConditionalGeneration, Qwen3ASRProcessor

from caspi.model.tiny import build_tiny_asr
from caspi.model.transcribers import Transcription, plan_batches
from caspi.model.transcribers.local import LocalTranscriber, prompt_text, read_tokens, transcribe

Tiny = tuple[Qwen3ASRForConditionalGeneration, Qwen3ASRProcessor]


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return build_tiny_asr(seed=3)


@pytest.fixture(scope="module")
def clips() -> list[np.ndarray]:
    """Seven clips of 0.4 to 6 seconds: tones in noise."""
    rng = np.random.default_rng(0)
    audios = []
    for seconds in (1.0, 3.3, 0.4, 6.0, 2.2, 2.2, 0.9):
        times = np.arange(int(seconds * 16_000)) / 16_000
        tone = 0.2 * np.sin(2 * np.pi * rng.uniform(200, 3000) * times)
        audios.append((tone + rng.normal(0, 0.05, len(times))).astype(np.float32))
    return audios


def texts(tiny: Tiny, clips: Sequence[np.ndarray], **settings: object) -> list[Transcription]:
    defaults = {"language": "Hebrew", "batch_size": 4, "max_new_tokens": 16}
    return transcribe(*tiny, clips, **(defaults | settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("num_beams", [1, 3])
def test_texts_do_not_depend_on_the_batch(tiny: Tiny, clips: list[np.ndarray], num_beams: int) -> None:
    together = texts(tiny, clips, batch_size=7, num_beams=num_beams)
    assert len({one.text for one in together}) > 3
    assert texts(tiny, clips, batch_size=1, num_beams=num_beams) == together
    assert texts(tiny, clips, batch_size=3, num_beams=num_beams) == together
    assert texts(tiny, clips, num_beams=num_beams, max_batch_seconds=2.5) == together


def test_results_come_in_the_order_of_the_clips(tiny: Tiny, clips: list[np.ndarray]) -> None:
    assert texts(tiny, clips[::-1]) == texts(tiny, clips)[::-1]


def test_the_same_call_gives_the_same_texts_whatever_the_global_seed(tiny: Tiny, clips: list[np.ndarray]) -> None:
    torch.manual_seed(1)
    first = texts(tiny, clips)
    torch.manual_seed(2)
    assert texts(tiny, clips) == first


def test_no_clips_give_no_texts(tiny: Tiny) -> None:
    assert texts(tiny, []) == []


def test_training_flags_are_restored_module_by_module(clips: list[np.ndarray]) -> None:
    model, processor = build_tiny_asr(seed=3)
    model.train()
    model.model.audio_tower.eval()
    before, settings = [module.training for module in model.modules()], model.generation_config
    texts((model, processor), clips[:1])
    assert model.generation_config is settings
    assert [module.training for module in model.modules()] == before
    assert True in before
    assert False in before


def test_a_text_that_reaches_the_limit_says_length_and_one_that_ends_says_stop(clips: list[np.ndarray]) -> None:
    model, processor = build_tiny_asr(seed=3)
    (cut_off,) = texts((model, processor), clips[:1], max_new_tokens=12)
    assert cut_off.finish_reason == "length"
    inputs = processor(text=[prompt_text(processor, "Hebrew")], audio=clips[:1], sampling_rate=16_000)
    written = model.generate(**inputs, max_new_tokens=12)[0, inputs["input_ids"].shape[1] :].tolist()  # type: ignore[misc]
    model.generation_config.eos_token_id = [written[-1]]
    (ended,) = texts((model, processor), clips[:1], max_new_tokens=12)
    assert ended.finish_reason == "stop"
    assert cut_off.text.startswith(ended.text)
    assert len(ended.text) < len(cut_off.text)


def test_the_checkpoints_own_generation_settings_change_nothing(clips: list[np.ndarray]) -> None:
    model, processor = build_tiny_asr(seed=3)
    plain = texts((model, processor), clips)
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.no_repeat_ngram_size = 2
    model.generation_config.do_sample = True
    model.generation_config.temperature = 3.0
    model.generation_config.suppress_tokens = processor.tokenizer(plain[0].text, add_special_tokens=False)["input_ids"]
    assert texts((model, processor), clips) == plain


def test_repetition_loops_stay_in_the_text(tiny: Tiny) -> None:
    processor = tiny[1]
    loop = "הא" * 60
    ids = processor.tokenizer(loop, add_special_tokens=False)["input_ids"]
    assert read_tokens(processor, ids, [-1]).text == loop
    assert processor.decode(ids, return_format="transcription_only") != loop, "else this test shows nothing"


def test_the_text_is_what_follows_the_last_mark_up_to_the_first_end(tiny: Tiny) -> None:
    processor = tiny[1]
    written = "language Hebrew<asr_text>ראשון<asr_text> שלום<|im_end|>עוד<|endoftext|>"
    ids = processor.tokenizer(written, add_special_tokens=False)["input_ids"]
    ends = [processor.tokenizer.convert_tokens_to_ids(name) for name in ("<|im_end|>", "<|endoftext|>")]
    assert read_tokens(processor, ids, ends) == Transcription(" שלום", "stop")


@pytest.mark.parametrize(
    ("written", "text", "language"),
    [
        ("language Hebrew<asr_text>שלום", "שלום", "Hebrew"),
        ("language None<asr_text>", "", "None"),
        ("language English<asr_text>one<asr_text>two", "two", "English"),
        ("שלום", "שלום", ""),
        ("language Hebrew", "language Hebrew", ""),
        ("נדבר על language Hebrew<asr_text>שלום", "שלום", ""),
    ],
)
def test_a_language_that_is_not_forced_is_read_from_what_the_model_wrote(
    written: str, text: str, language: str
) -> None:
    assert Transcription.of_output(written, "stop", is_forced=False) == (text, "stop", None, language)
    assert Transcription.of_output(written, "stop", is_forced=True) == (text, "stop", None, None)


def test_without_a_language_the_prompt_ends_where_the_model_names_one(tiny: Tiny, clips: list[np.ndarray]) -> None:
    settings = {"batch_size": 4, "num_beams": 1, "max_new_tokens": 16, "max_batch_seconds": 60.0}
    transcriber = LocalTranscriber(*tiny, language=None, **settings)  # type: ignore[arg-type]
    assert transcriber.describe()["prompt"] == prompt_text(tiny[1], "Hebrew").removesuffix("language Hebrew<asr_text>")
    free, forced = transcriber.transcribe(clips, "Hebrew"), texts(tiny, clips)
    assert {one.language_tag for one in free} == {""}, "random weights name no language"
    assert [one.text for one in free] != forced


def test_the_prompt_is_the_training_prompt_with_the_language_forced(tiny: Tiny) -> None:
    assert prompt_text(tiny[1], "Hebrew") == (
        "<|im_start|>system\n<|im_end|>\n<|im_start|>user\n<|audio_start|><|audio_pad|><|audio_end|><|im_end|>\n"
        "<|im_start|>assistant\nlanguage Hebrew<asr_text>"
    )


@pytest.mark.parametrize(
    "audio",
    [np.zeros(0, np.float32), np.zeros((2, 800), np.float32), np.full(800, np.nan, np.float32)],
    ids=["empty", "stereo", "not finite"],
)
def test_audio_that_would_pass_silently_is_refused(tiny: Tiny, clips: list[np.ndarray], audio: np.ndarray) -> None:
    with pytest.raises(ValueError, match="clip 1: expected finite samples of one channel"):
        texts(tiny, [clips[0], audio])


def test_the_transcriber_says_everything_that_decides_its_texts(tiny: Tiny, clips: list[np.ndarray]) -> None:
    settings = {"batch_size": 4, "num_beams": 2, "max_new_tokens": 16, "max_batch_seconds": 60.0}
    transcriber = LocalTranscriber(*tiny, language="Hebrew", **settings)  # type: ignore[arg-type]
    described = transcriber.describe()
    assert settings.items() <= described.items()
    assert described["prompt"].endswith("language Hebrew<asr_text>")
    assert transcriber.transcribe(clips) == texts(tiny, clips, num_beams=2)


@pytest.mark.parametrize(
    ("durations", "batch_size", "max_batch_seconds", "expected"),
    [
        ([1, 3, 2], 2, 100, [[1, 2], [0]]),
        ([10, 10, 10, 1, 1], 4, 20, [[0, 1], [2, 3], [4]]),
        ([50, 1], 4, 20, [[0], [1]]),
        ([2, 2, 2], 8, 100, [[0, 1, 2]]),
        ([], 4, 20, []),
    ],
    ids=["longest first", "bounded by padded seconds", "longer than the bound", "ties in order", "nothing"],
)
def test_batches_are_bounded_in_clips_and_in_padded_seconds(
    durations: list[float], batch_size: int, max_batch_seconds: float, expected: list[list[int]]
) -> None:
    assert list(plan_batches(durations, batch_size, max_batch_seconds)) == expected
