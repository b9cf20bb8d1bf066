"""README.md of an exported model: what it is, how to run it, and what was measured, with the source of every number."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from caspi.ops.comparison.criteria import read_object
from caspi.records import ComparedSet, Score, sha256_of_file

PROFILE = "ivrit"
UNVERIFIED = "**unverified**"
MODEL = "OWNER/NAME"
"""Stands for this repository: the card is written before it is known where it goes."""


class Results(NamedTuple):
    """Error rates for the card, and whether they are these weights'."""

    rows: tuple[tuple[str, ...], ...]
    """Table with its header; rates in percent."""
    sources: tuple[str, ...]
    """The files they are from, each with its hash."""
    doubt: str | None
    """Why they may not be those of the exported weights; None: they are."""


class CardFacts(NamedTuple):
    """Everything the card says."""

    name: str
    layout: str
    dtype: str
    language: str
    license: str | None
    base_model: str
    checkpoints: tuple[str, ...]
    """Each with what it scored while training."""
    adapter_merged: bool
    num_parameters: int
    changed_groups: tuple[str, ...]
    results: Results | None
    versions: Mapping[str, str]


def read_results(evaluation: Path | None, comparison: Path | None, weights_sha256: Collection[str]) -> Results | None:
    """Results of `caspi evaluate` (its folder) and `caspi compare` (its comparison.json), the latter preferred.

    They count as verified if the evaluation's run.json names exactly weights of `weights_sha256`.

    Raises:
        ValueError: a file is missing or damaged.
    """
    if comparison:
        content = require(comparison)
        round2 = content["rounds"]["round2"]
        folder = evaluation or folder_of(Path(str(round2["source"])))
        doubt = doubt_about(folder, weights_sha256)
        if folder and not doubt and sha256_of(folder / "predictions.jsonl") != round2["predictions_sha256"]:
            doubt = f"the comparison was made from other predictions than {folder}"
        rows = compared_rows([ComparedSet.model_validate(row) for row in content["rows"]])
        return Results(rows, (named(comparison),), doubt)
    if evaluation:
        scores = [Score.model_validate(row) for row in require(evaluation / "scores.json")["scores"]]
        doubt = doubt_about(evaluation, weights_sha256)
        return Results(scored_rows(scores), (named(evaluation / "scores.json"),), doubt)
    return None


def require(path: Path) -> dict[str, Any]:
    content = read_object(path)
    if not content:
        raise ValueError(f"{path} does not exist or is empty; expected what caspi evaluate or compare wrote")
    return content


def folder_of(source: Path) -> Path | None:
    folder = source if source.is_dir() else source.parent
    return folder if (folder / "run.json").is_file() else None


def sha256_of(path: Path) -> str | None:
    return sha256_of_file(path) if path.is_file() else None


def doubt_about(folder: Path | None, weights_sha256: Collection[str]) -> str | None:
    """Why an evaluation may be of other weights; None when its record names these."""
    if folder is None:
        return "the record of the evaluation is not there"
    run = read_object(folder / "run.json")
    files = run.get("settings", {}).get("model_files_sha256", {})
    hashes = {digest for name, digest in files.items() if name.endswith(".safetensors")}
    if not hashes:
        return f"{folder / 'run.json'} does not say which weights were evaluated"
    if not hashes <= set(weights_sha256):
        return f"{folder} is an evaluation of other weights ({run.get('model')})"
    return None


def named(path: Path) -> str:
    return f"`{path.name}` (sha256 {sha256_of_file(path)[:16]})"


def compared_rows(rows: list[ComparedSet]) -> tuple[tuple[str, ...], ...]:
    header = ("Test set", "clips", "words", "before", "WER", "CER", "difference", "95 % interval", "verdict")
    lines: list[tuple[str, ...]] = [header]
    for row in rows:
        if row.bucket == "all":
            spread = "-" if row.low is None or row.high is None else f"[{row.low:+.2%}, {row.high:+.2%}]"
            rates = (
                f"{row.round1_wer:.2%}",
                f"{row.round2_wer:.2%}",
                f"{row.round2_cer:.2%}",
                f"{row.difference:+.2%}",
            )
            counts = (f"{row.num_utterances:,}", f"{row.num_words:,}")
            lines.append((row.test_set, *counts, *rates, spread, row.verdict))
    return tuple(lines)


def scored_rows(scores: list[Score]) -> tuple[tuple[str, ...], ...]:
    lines: list[tuple[str, ...]] = [("Test set", "clips", "words", "WER", "CER", "failed", "loops")]
    for row in scores:
        if row.bucket == "all" and row.profile == PROFILE:
            rates = tuple("-" if rate is None else f"{rate:.2%}" for rate in (row.wer, row.cer))
            counts = (f"{row.num_utterances:,}", f"{row.num_words:,}")
            lines.append((row.test_set, *counts, *rates, str(row.num_failed), str(row.num_loops)))
    return tuple(lines)


def model_card(facts: CardFacts) -> str:
    """The card as Markdown with the Hub's YAML header."""
    parts = [header(facts), f"# {facts.name}", introduction(facts), "## Results", *results(facts.results)]
    parts += ["## Use", usage(facts), "## How it was made", origin(facts)]
    return "\n\n".join(parts) + "\n"


def header(facts: CardFacts) -> str:
    lines = ["---", "language: he" if facts.language == "Hebrew" else f"language: {facts.language.lower()}"]
    if facts.license:
        lines.append(f"license: {facts.license}")
    if facts.base_model.count("/") == 1 and not Path(facts.base_model).exists():
        lines += [f"base_model: {facts.base_model}", "base_model_relation: finetune"]
    if facts.layout == "hf":
        lines.append("library_name: transformers")
    lines += ["pipeline_tag: automatic-speech-recognition", "tags:", "- qwen3-asr", "- caspi", "---"]
    return "\n".join(lines)


def introduction(facts: CardFacts) -> str:
    return (
        f"Qwen3-ASR ({facts.num_parameters:,} parameters, {facts.dtype}) fine-tuned for {facts.language} by gradual "
        f"unfreezing with caspi. Use it with the language forced to {facts.language}, as it was trained."
    )


def results(found: Results | None) -> list[str]:
    if found is None:
        return ["No evaluation was given when this model was exported: nothing is claimed about its error rate."]
    first, *rest = found.rows
    table = ["| " + " | ".join(first) + " |", "|" + " --- |" * len(first)]
    table += ["| " + " | ".join(row) + " |" for row in rest]
    sources = ", ".join(found.sources)
    if found.doubt:
        note = f"These numbers are {UNVERIFIED}: {found.doubt}. Source: {sources}."
    else:
        note = (
            f"Measured on these weights (before any rounding for export) with profile `{PROFILE}`; source: {sources}."
        )
    return ["\n".join(table), note]


def usage(facts: CardFacts) -> str:
    request = f'extra_body={{"chat_template_kwargs": {{"forced_language": "{facts.language}"}}}}'
    lines = [
        f"`{MODEL}` is this repository, or the folder it was downloaded to.",
        "",
        "```bash",
        f"vllm serve {MODEL} --port 8000",
        "```",
        f"Send audio to `/v1/chat/completions` with `{request}`; the template in this repository takes that variable.",
    ]
    if facts.layout == "original":
        lines += [
            "",
            f"With the qwen-asr package, whose own list of languages lacks {facts.language}:",
            "",
            "```python",
            "from qwen_asr import Qwen3ASRModel",
            "from qwen_asr.inference.utils import SUPPORTED_LANGUAGES",
            "",
            f'SUPPORTED_LANGUAGES.append("{facts.language}")',
            f'model = Qwen3ASRModel.from_pretrained("{MODEL}")',
            f'print(model.transcribe("clip.wav", language="{facts.language}")[0].text)',
            "```",
        ]
    return "\n".join(lines)


def origin(facts: CardFacts) -> str:
    lines = [f"* Base model: {facts.base_model}"]
    lines += [f"* Checkpoint: {line}" for line in facts.checkpoints]
    if facts.adapter_merged:
        lines.append("* LoRA adapters are merged into the weights.")
    lines.append(
        f"* Layer groups that differ from the base model: {', '.join(facts.changed_groups) or 'none'}; all other "
        "tensors are the base model's, bit for bit before rounding."
    )
    lines.append("* Made with " + ", ".join(f"{name} {version}" for name, version in facts.versions.items()))
    return "\n".join(lines)
