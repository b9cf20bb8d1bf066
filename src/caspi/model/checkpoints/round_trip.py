"""Written, read back, compared: an exported layout holds exactly the model that was meant."""

from pathlib import Path

import numpy as np
import torch
from transformers import Qwen3ASRForConditionalGeneration, Qwen3ASRProcessor

from caspi.config import Export
from caspi.model.checkpoints.checkpoint import load_asr, read_json
from caspi.model.checkpoints.export_layouts import save_layout
from caspi.model.checkpoints.source import Loaded
from caspi.model.checkpoints.weight_proof import clip_logits, relative_difference
from caspi.model.prompt import CHAT_TEMPLATE
from caspi.model.transcribers.local import transcribe
from caspi.records import Record, RunFailed


class RoundTrip(Record):
    """What was compared; that a layout is named means that it read back bit for bit."""

    layouts: list[str]
    num_tensors: int
    num_compared_logits: int
    rounding_relative_difference: float
    """Of the logits by rounding the weights to the exported precision, L2; 0 in float32."""
    text_before_rounding: str
    text: str
    """Of the clip, by the exported weights."""


def write_and_read_back(section: Export, loaded: Loaded, clip: np.ndarray, language: str, folder: Path) -> RoundTrip:
    """Write every layout under `folder`, load it again and compare tensors, logits and the clip's text.

    All in float32 arithmetic, with the weights as exported. The model is left with these weights.

    Raises:
        RunFailed: a layout does not read back bit for bit, or rounding changed the logits too much.
    """
    model, processor = loaded.model, loaded.processor
    text_before = text_of(model, processor, clip, language, section.max_new_tokens)
    before = clip_logits(model, processor, clip, language, text_before)
    cast_parameters(model, getattr(torch, section.dtype))
    for layout in section.layouts():
        save_layout(layout, model, processor, folder / layout, language=language, max_shard_size=section.max_shard_size)
    cast_parameters(model, torch.float32)
    logits = clip_logits(model, processor, clip, language, text_before)
    rounding = relative_difference(logits, before)
    if rounding > section.max_rounding_difference:
        raise RunFailed(
            f"rounding to {section.dtype} changed the logits by {rounding:.2%}, more than "
            f"{section.max_rounding_difference:.0%}; use --dtype float32"
        )
    text = text_of(model, processor, clip, language, section.max_new_tokens)
    for layout in section.layouts():
        check_template(folder / layout, layout)
        again, its_processor = load_asr(folder / layout, torch.float32)
        check_tensors(model, again, layout)
        its_text = text_of(again, its_processor, clip, language, section.max_new_tokens)
        if its_text != text:
            raise RunFailed(f"layout {layout} reads back with another text: {its_text!r} for {text!r}")
        if not torch.equal(clip_logits(again, its_processor, clip, language, text_before), logits):
            raise RunFailed(f"layout {layout} reads back with other logits")
    return RoundTrip(
        layouts=list(section.layouts()),
        num_tensors=len(model.state_dict()),
        num_compared_logits=logits.numel(),
        rounding_relative_difference=rounding,
        text_before_rounding=text_before,
        text=text,
    )


def cast_parameters(model: Qwen3ASRForConditionalGeneration, dtype: torch.dtype) -> None:
    """Only what is stored: tables of positions that are computed keep their precision."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def text_of(
    model: Qwen3ASRForConditionalGeneration,
    processor: Qwen3ASRProcessor,
    clip: np.ndarray,
    language: str,
    max_new_tokens: int,
) -> str:
    (result,) = transcribe(model, processor, [clip], language=language, batch_size=1, max_new_tokens=max_new_tokens)
    return result.text


def check_template(folder: Path, layout: str) -> None:
    """What loading does not show, since we always use our own prompt: which one a server will use."""
    if layout == "hf":
        template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    else:
        template = read_json(folder / "chat_template.json")["chat_template"]
    if template != CHAT_TEMPLATE:
        raise RunFailed(f"layout {layout} has another chat template than the one the model was trained with")


def check_tensors(
    model: Qwen3ASRForConditionalGeneration, again: Qwen3ASRForConditionalGeneration, layout: str
) -> None:
    ours, theirs = model.state_dict(), again.state_dict()
    differing = sorted(ours.keys() ^ theirs.keys())
    differing += [name for name in ours if name in theirs and not torch.equal(ours[name], theirs[name])]
    if differing:
        raise RunFailed(f"layout {layout} reads back with other tensors: {', '.join(differing[:3])}")
