"""Does a server build the prompt that the model was trained on?"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from transformers import Qwen3ASRProcessor

from caspi.model.checkpoints.checkpoint import read_json
from caspi.model.checkpoints.original_layout import is_original_layout, processor_parts
from caspi.model.prompt import CHAT_TEMPLATE
from caspi.model.transcribers import WAY_OUT, PromptCheck
from caspi.model.transcribers.answers import Answer
from caspi.model.transcribers.local import prompt_text
from caspi.speech.corpora.audio import SAMPLE_RATE_HZ


def check_prompt(
    folder: Path, clips: Sequence[np.ndarray], answers: Sequence[Answer], language: str | None
) -> PromptCheck:
    """Compare the prompts that chat completions were made from with those of the checkpoint's processor.

    Raises:
        ValueError: they differ.
    """
    processor = load_processor(folder)
    prompt = prompt_text(processor, language)
    result = ""
    for clip, answer in zip(clips, answers, strict=True):
        inputs = processor(text=[prompt], audio=[clip], sampling_rate=SAMPLE_RATE_HZ)
        result = compare_prompts(answer, inputs["input_ids"][0].tolist(), processor)
    return PromptCheck(result, None if result.startswith("not checked") else prompt)


def load_processor(folder: Path) -> Qwen3ASRProcessor:
    """
    Raises:
        ValueError: the folder holds no processor of Qwen3-ASR.
    """
    try:
        if is_original_layout(read_json(folder / "config.json")):
            processor = Qwen3ASRProcessor(*processor_parts(folder, read_json(folder / "preprocessor_config.json")))
        else:
            processor = Qwen3ASRProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, KeyError) as error:
        raise ValueError(f"checkpoint {folder}: its processor cannot be loaded: {error}") from None
    processor.chat_template = CHAT_TEMPLATE
    return processor


def compare_prompts(answer: Answer, expected: list[int], processor: Qwen3ASRProcessor) -> str:
    """How far the prompt of an answer is known to be the expected one.

    Raises:
        ValueError: it is another one.
    """
    ids = answer.prompt_token_ids
    if ids is not None:
        if ids == expected:
            return "token ids equal"
        theirs, ours = (one_placeholder(processor.tokenizer.decode(one)) for one in (ids, expected))
        raise ValueError(f"the server's prompt is {theirs!r}, the model's is {ours!r}: {WAY_OUT}")
    if answer.usage is None:
        return "not checked: the server does not count tokens"
    if answer.usage.prompt_tokens == len(expected):
        return "number of tokens equal"
    raise ValueError(
        f"the server's prompt has {answer.usage.prompt_tokens} tokens, the model's has {len(expected)}: {WAY_OUT}"
    )


def one_placeholder(prompt: str, placeholder: str = "<|audio_pad|>") -> str:
    first, *rest = prompt.split(placeholder)
    return f"{first}{placeholder}({len(rest)}){rest[-1]}" if rest else first
