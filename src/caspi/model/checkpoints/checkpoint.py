"""Load and save Qwen3-ASR checkpoints of either layout; a checkpoint loads exactly or not at all."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerBase,
    Qwen3ASRConfig,
    Qwen3ASRForConditionalGeneration,
    Qwen3ASRForTokenClassification,
    Qwen3ASRProcessor,
)
from transformers.utils import logging as transformers_logging

from caspi.files import read_object
from caspi.model.checkpoints.original_layout import (
    config_from_original,
    is_original_layout,
    key_mapping,
    processor_parts,
)
from caspi.model.prompt import ALIGNER_TEMPLATE, CHAT_TEMPLATE, forced_prefix

__all__ = ["CHAT_TEMPLATE", "forced_prefix", "load_aligner", "load_asr", "save_asr"]

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
HUB_PATTERNS = ("*.json", "*.txt", "*.jinja", "*.safetensors")
"""Files of a Hub repository that are fetched: nothing that has to be unpickled or executed."""
MAX_NEW_TOKENS = 512
"""Written into generation_config.json, as in the published checkpoints; steps set their own limit."""
TIED_HEAD = "lm_head.weight"

Model = TypeVar("Model", Qwen3ASRForConditionalGeneration, Qwen3ASRForTokenClassification)


def load_asr(
    source: str | Path, dtype: torch.dtype = torch.float32
) -> tuple[Qwen3ASRForConditionalGeneration, Qwen3ASRProcessor]:
    """Load a speech recogniser from a folder or a Hub id, in the original or the transformers layout.

    The processor's chat template is always `CHAT_TEMPLATE`, so every checkpoint sees the same prompt.

    Raises:
        ValueError: nothing is there, it is not Qwen3-ASR, it has no safetensors weights, or any tensor is missing,
            unexpected or of another shape.
    """
    folder = local_folder(source)
    model, processor = load(Qwen3ASRForConditionalGeneration, folder, "lm_head", dtype)
    processor.chat_template = CHAT_TEMPLATE
    require_tied(folder, model)
    model.generation_config = greedy_generation(processor.tokenizer)
    return model, processor


def load_aligner(
    source: str | Path, dtype: torch.dtype = torch.float32
) -> tuple[Qwen3ASRForTokenClassification, Qwen3ASRProcessor]:
    """Load a forced aligner from a folder or a Hub id, in the original or the transformers layout.

    Raises:
        ValueError: as `load_asr`.
    """
    model, processor = load(Qwen3ASRForTokenClassification, local_folder(source), "score", dtype)
    processor.chat_template = ALIGNER_TEMPLATE
    return model, processor


def save_asr(
    model: Qwen3ASRForConditionalGeneration,
    processor: Qwen3ASRProcessor,
    folder: str | Path,
    tensors: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write a checkpoint in the transformers layout that transformers, vLLM and `load_asr` read.

    Tied weights are written once: vLLM refuses a file with `lm_head.weight`.
    """
    model.generation_config = greedy_generation(processor.tokenizer)
    save_checkpoint(model, processor, folder, tensors)


def save_checkpoint(
    model: Qwen3ASRForConditionalGeneration | Qwen3ASRForTokenClassification,
    processor: Qwen3ASRProcessor,
    folder: str | Path,
    tensors: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write a recogniser or a forced aligner.

    Tensor names are transformers' own (the default would restore `thinker.*` beside a configuration that does not
    match), and every file appears by rename. `tensors` are written instead of the model's own where those are in parts.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    processor.tokenizer.backend_tokenizer.no_padding()  # left over from the last batch, and would be written
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as temporary, quiet_transformers():
        model.save_pretrained(temporary, save_original_format=False, state_dict=tensors)
        processor.save_pretrained(temporary)
        files = sorted(Path(temporary).iterdir())
        if model.config.tie_word_embeddings:
            assert TIED_HEAD not in tensor_names(Path(temporary)), "a tied head must not be written"
        stale = {path.name for path in folder.glob("model*.safetensors*")} - {path.name for path in files}
        for path in files:
            path.chmod(0o644)  # safetensors writes files that only their owner reads
            os.replace(path, folder / path.name)
        for name in stale:
            (folder / name).unlink()


def local_folder(source: str | Path) -> Path:
    """The folder of a checkpoint; a Hub id is downloaded, or found in the cache."""
    folder = Path(source)
    if folder.is_dir():
        return folder
    name = str(source)
    if isinstance(source, Path) or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ValueError(f"checkpoint {source}: no such folder; expected a folder or a Hub id such as OWNER/NAME")
    try:
        return Path(snapshot_download(name, allow_patterns=list(HUB_PATTERNS)))
    except (OSError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"checkpoint {name}: neither a folder nor available from the Hub ({type(error).__name__}: {reason}); "
            "download it on a machine with network, or give a folder"
        ) from None


def load(model_class: type[Model], folder: Path, head: str, dtype: torch.dtype) -> tuple[Model, Qwen3ASRProcessor]:
    raw_config = read_json(folder / "config.json")
    require_safetensors(folder)
    options: dict[str, Any] = {}
    try:
        with quiet_transformers():
            if is_original_layout(raw_config):
                raw_features = read_json(folder / "preprocessor_config.json")
                processor = Qwen3ASRProcessor(*processor_parts(folder, raw_features))
                config = config_from_original(raw_config, end_token_ids(processor.tokenizer))
                options = {"key_mapping": key_mapping(head)}
            else:
                require_model_type(raw_config)
                processor = Qwen3ASRProcessor.from_pretrained(folder, local_files_only=True)
                config = Qwen3ASRConfig.from_pretrained(folder, local_files_only=True)
            loaded: Any = model_class.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **options,
            )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ValueError(f"checkpoint {folder} cannot be loaded: {' '.join(str(error).split())}") from error
    model, info = loaded
    require_exact(folder, info)
    return model, processor


def require_safetensors(folder: Path) -> None:
    whole, index = (folder / name for name in WEIGHTS)
    if whole.is_file():
        return
    if index.is_file():
        require_shards_of_safetensors(index)
        return
    pickled = sorted(path.name for path in folder.glob("*.bin"))
    found = f"found {pickled[0]}, which is never unpickled" if pickled else "found none"
    raise ValueError(f"checkpoint {folder}: expected weights as {WEIGHTS[0]}, {found}; save it as safetensors")


def require_shards_of_safetensors(index: Path) -> None:
    """transformers would hand a shard of another name to torch.load, wherever it lies."""
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict):
        raise ValueError(f"{index} has no weight_map: it is not an index of shards")
    for shard in shards.values():
        if not isinstance(shard, str) or not re.fullmatch(r"[\w.-]+\.safetensors", shard):
            raise ValueError(f"{index} names {shard!r} as a shard, expected NAME.safetensors beside it")


def require_model_type(raw_config: dict[str, Any]) -> None:
    found = raw_config.get("model_type")
    if found != Qwen3ASRConfig.model_type:
        raise ValueError(f"config.json has model_type {found!r}, expected {Qwen3ASRConfig.model_type!r}")


def require_exact(folder: Path, info: dict[str, Any]) -> None:
    """Refuse a checkpoint of which transformers filled or ignored any part."""
    problems = []
    for kind, what in (
        ("missing_keys", "missing"),
        ("unexpected_keys", "unexpected"),
        ("mismatched_keys", "of another shape"),
    ):
        names = sorted(key if isinstance(key, str) else key[0] for key in info[kind])
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            problems.append(f"{len(names)} {what}: {', '.join(names[:3])}{more}")
    if problems:
        raise ValueError(
            f"checkpoint {folder} does not fit the model its config.json describes ({'; '.join(problems)}); "
            "it would run with random weights: check that config.json and the weights come from one checkpoint"
        )


def require_tied(folder: Path, model: Qwen3ASRForConditionalGeneration) -> None:
    """transformers unties silently when a file holds a head that differs from the embeddings it should equal."""
    embeddings = model.model.language_model.embed_tokens.weight
    if model.config.tie_word_embeddings and model.lm_head.weight is not embeddings:
        raise ValueError(
            f"checkpoint {folder}: config.json ties lm_head to the embeddings, but the file holds a {TIED_HEAD} that "
            "differs from them; it was saved by a run that trained the two apart"
        )


def read_json(path: Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except FileNotFoundError:
        raise ValueError(f"checkpoint {path.parent} has no {path.name}: it is not a checkpoint folder") from None


def end_token_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """Ids of `<|endoftext|>` and `<|im_end|>`, either of which ends a transcription."""
    vocabulary = tokenizer.get_vocab()
    try:
        return vocabulary["<|endoftext|>"], vocabulary["<|im_end|>"]
    except KeyError as error:
        raise ValueError(f"the tokenizer lacks {error.args[0]}: it is not Qwen3-ASR's") from None


def greedy_generation(tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    ends = end_token_ids(tokenizer)
    return GenerationConfig(
        eos_token_id=list(ends), pad_token_id=ends[-1], do_sample=False, max_new_tokens=MAX_NEW_TOKENS
    )


def tensor_names(folder: Path) -> set[str]:
    names: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as tensors:
            names |= set(tensors.keys())
    return names


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No warning tables or progress bars: what matters in them is raised as an error."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
