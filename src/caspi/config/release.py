"""After training: the folder that is served, and the way back."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from caspi.config.base import Count, Fraction, Positive, Section


class Export(Section):
    """One checkpoint of a run as a folder that can be served and published, with proof that nothing else changed."""

    run_dir: Path = Path("qwen3-asr-hebrew-round2")
    """Output folder of `caspi train`."""
    checkpoint: Annotated[str, Field(pattern=r"^(best|last|final|average|[1-9]\d*)$")] = "best"
    """best: lowest eval_wer; last: newest; final: the model in the run folder itself; average: of the best ones; or a
    step number."""
    num_averaged: Annotated[int, Field(ge=2)] = 3
    """Checkpoints in `--checkpoint average`, by eval_wer."""
    average_weights: tuple[Positive, ...] = ()
    """Weight of each averaged checkpoint, best first; empty: all the same."""
    base_model: str | None = None
    """What the run started from; default: as its run.json says."""
    layout: Literal["hf", "original", "both"] = "hf"
    """hf: transformers and vLLM; original: `thinker.*`, the qwen-asr package and vLLM."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Precision of the exported weights."""
    output: Path = Path("export")
    """Folder for hf/, original/ and export_report.json; it appears when everything is proved."""
    clip: Path | None = None
    """Audio file that every layout must transcribe alike; default: the first utterance of the run's manifest."""
    max_new_tokens: Count = 256
    """Longest transcription of the clip."""
    max_rounding_difference: Fraction = 0.05
    """Relative change (L2) of the clip's logits that rounding the weights to bfloat16 may cause."""
    max_merge_difference: Fraction = 1e-4
    """Relative change (L2) of the clip's logits that merging LoRA adapters may cause: float32 rounding only."""
    max_shard_size: str = "5GB"
    """Larger weights are split into several files."""
    evaluation: Path | None = None
    """Folder that `caspi evaluate` wrote, for the table of the model card."""
    comparison: Path | None = None
    """comparison.json of `caspi compare`, for the table of the model card."""
    license: str | None = None
    """Licence that the model card names, for example apache-2.0; default: none is claimed."""
    push_to_hub: bool = False
    """Upload to the Hugging Face Hub afterwards; a complete export in `output` is used as it is."""
    hub_model_id: str | None = None
    """OWNER/NAME. With `--layout both` the hf layout goes to OWNER/NAME-hf, as Qwen names its own."""
    public: bool = False
    """Create a public repository, or upload to one that is."""
    dry_run: bool = False
    """With `--push-to-hub`: list what would be uploaded, and upload nothing."""
    upload_attempts: Count = 4
    """Tries before the upload counts as failed; what has arrived is not sent again."""
    upload_wait_seconds: Positive = 5.0
    """Before the second try; doubles with each."""

    @model_validator(mode="after")
    def check(self) -> "Export":
        if self.push_to_hub and not self.hub_model_id:
            raise ValueError(
                "export.push_to_hub needs export.hub_model_id, for example username/qwen3-asr-hebrew-round2"
            )
        if self.dry_run and not self.push_to_hub:
            raise ValueError("export.dry_run shows what --push-to-hub would upload: give both")
        if self.average_weights and len(self.average_weights) != self.num_averaged:
            raise ValueError(
                f"export.average_weights has {len(self.average_weights)} weights for num_averaged={self.num_averaged}"
            )
        return self

    def layouts(self) -> tuple[str, ...]:
        return ("hf", "original") if self.layout == "both" else (self.layout,)


class Rollback(Section):
    """Go back to a model that works: back up, prove that it loads, serve it, record it."""

    option: Literal["round1", "best-checkpoint", "conservative"] | None = None
    """The guide's options: serve Round 1; serve the Round 2 checkpoint with the lowest eval_wer; train again with the
    conservative recipe. Without `--option` and `--to`: show what is served."""
    to: str | None = None
    """Serve this instead: a run folder (its best checkpoint), a checkpoint or export folder, or a Hub id."""
    reason: str | None = None
    """Why, in your words, for the registry."""
    run_dir: Path = Path("qwen3-asr-hebrew-round2")
    """The training run that is backed up and searched for the best checkpoint."""
    round1_model: str = "OzLabs/Qwen3-ASR-Hebrew-1.7B"
    """Folder or Hub id."""
    registry: Path = Path("serving/registry.jsonl")
    """What was served from when on, and why; its last line that names a model is what is served now."""
    backup: Literal["best", "all", "logs", "none"] = "best"
    """Saved before anything else: logs and records, and of the checkpoints the best and the newest, all, or none.
    `none` writes no archive."""
    backup_dir: Path = Path("backups")
    compression_level: Annotated[int, Field(ge=0, le=9)] = 1
    """Of the archive; weights hardly compress."""
    serve: bool = True
    """Start the server; `--no-serve` only moves the pointer."""
    serve_command: str = "vllm serve {model} --host 127.0.0.1 --port {port}"
    """Started with `{model}` and `{port}` filled in; it must answer GET /health with 200 when it is ready."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    health_timeout_seconds: Positive = 900.0
    """Time the server may take to become healthy."""
    reload_timeout_seconds: Positive = 900.0
    """Time loading the model for the reload test may take."""
    conservative_recipe: Path = Path("recipes/conservative.toml")

    @model_validator(mode="after")
    def check(self) -> "Rollback":
        if self.option and self.to:
            raise ValueError("rollback takes --option or --to, not both")
        if self.serve and not self.serve_command.strip():
            raise ValueError("rollback.serve_command is empty: give a command, or --no-serve")
        return self
