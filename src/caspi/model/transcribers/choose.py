"""The transcriber that a configuration asks for; heavy packages are loaded only for the one that is chosen."""

import re
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from caspi.config import Evaluate, Language
from caspi.model.transcribers import Transcriber
from caspi.records import sha256_of_file

WEIGHT_FILES = ("*.safetensors", "config.json", "tokenizer.json", "vocab.json", "merges.txt", "*processor_config.json")
"""Files of a checkpoint that decide its texts; a run folder holds logs besides."""
BEAMS_BY_TEXT_LENGTH = (0, 33)
"""Version of vLLM since which the score of a beam is divided by the length of its text alone, as transformers does."""


@contextmanager
def connect(server: str, section: Evaluate, language: Language) -> Iterator[Transcriber]:
    """
    Raises:
        RunFailed: the server does not answer as it should.
        ValueError: it serves another model, or its prompt is not the training prompt.
    """
    from caspi.model.transcribers.server import ServerTranscriber

    with closing(ServerTranscriber(server, section, language)) as transcriber:
        endpoint = transcriber.endpoint
        version = f" {endpoint.version}" if endpoint.version else ""
        print(
            f"{endpoint.url} ({endpoint.dialect}{version}) serves {endpoint.model}; prompt: {transcriber.check.result}"
        )
        yield transcriber


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def load_transcriber(section: Evaluate, language: Language) -> Transcriber:
    """The model in process, on the GPU where there is one."""
    import torch

    from caspi.model.checkpoints.checkpoint import load_asr, local_folder
    from caspi.model.transcribers.local import LocalTranscriber

    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = section.dtype if section.dtype != "auto" else {"cuda": "bfloat16", "cpu": "float32"}[device]
    folder = local_folder(section.model)
    model, processor = load_asr(folder, dtype=getattr(torch, name))
    model.to(torch.device(device))  # type: ignore[arg-type]  # transformers' wrapper hides the signature
    return LocalTranscriber(
        model,
        processor,
        folder=folder,
        language=None if section.language_forcing == "none" else language.name,
        batch_size=section.batch_size,
        num_beams=section.num_beams,
        max_new_tokens=section.max_new_tokens,
        max_batch_seconds=section.max_batch_seconds,
    )


def weights_sha256(folder: Path | None) -> dict[str, str]:
    """Empty where the checkpoint is on another machine."""
    if folder is None:
        return {}
    files = sorted({path for pattern in WEIGHT_FILES for path in folder.glob(pattern)})
    return {path.name: sha256_of_file(path) for path in files}


def cautions_about(transcriber: Mapping[str, Any]) -> Iterator[str]:
    if transcriber.get("route") == "transcription":
        yield "/v1/audio/transcriptions has another prompt than training: these are not the model's error rates"
    elif transcriber.get("prompt_check", "").startswith("not checked"):
        yield f"the server's prompt was {transcriber['prompt_check']}; give --model the folder that is served"
    if prefers_short_beams(transcriber):
        yield (
            "this vLLM divides the score of a beam by the length of prompt and text, so that shorter texts win more "
            "often than in process: compare only rounds that were decoded the same way"
        )


def prefers_short_beams(transcriber: Mapping[str, Any]) -> bool:
    """vLLM before `BEAMS_BY_TEXT_LENGTH`, with beams."""
    version = re.match(r"(\d+)\.(\d+)", transcriber.get("server_version") or "")
    is_vllm = transcriber.get("dialect") == "vllm" and transcriber["num_beams"] > 1
    return is_vllm and version is not None and (int(version[1]), int(version[2])) < BEAMS_BY_TEXT_LENGTH
