"""Training: stages and layer groups, and everything that decides the weights."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from caspi.config.base import Count, Fraction, Positive, Section


class Stage(Section):
    """One strategy: which layer groups train, and how fast. A group left out stays frozen."""

    name: str
    num_epochs: Count
    learning_rates: dict[str, Positive]
    """Learning rate by layer group: projector, audio_top, llm_top, lm_head (the matrix tied to the embeddings)."""


STRATEGY_B = Stage(name="B", num_epochs=2, learning_rates={"projector": 2e-4, "llm_top": 5e-5, "lm_head": 1e-4})
STRATEGY_A = Stage(
    name="A", num_epochs=3, learning_rates={"projector": 1e-4, "audio_top": 3e-5, "llm_top": 3e-5, "lm_head": 1e-4}
)


class Train(Section):
    """Gradual unfreezing of Qwen3-ASR, stage by stage."""

    manifest: Path = Path("data/manifest.jsonl")
    output_dir: Path = Path("qwen3-asr-hebrew-round2")
    base_model: str = "Qwen/Qwen3-ASR-1.7B"
    """Checkpoint folder or Hub id, of either layout."""
    gate_report: Path = Path("phase0_audit_results/alignment_report.json")
    signoff_file: Path = Path("phase0_signoff.txt")
    accept_risk: str | None = None
    """Train although the gate is closed; the reason is recorded in run.json."""
    yes: bool = False
    """Do not ask "Have you reviewed Phase 0 results?" on a terminal."""
    stages: tuple[Stage, ...] = (STRATEGY_B, STRATEGY_A)
    num_llm_top_layers: Count = 12
    num_audio_top_layers: Count = 8
    batch_size: Count = 2
    """Utterances per micro-batch and process."""
    gradient_accumulation_steps: Count = 16
    num_processes: int = 0
    """Training processes; 0: one per visible GPU, or one on a machine without."""
    min_audio_length_seconds: Positive = 0.5
    max_audio_length_seconds: Positive = 15.0
    """Longer utterances are left out, counted and named; they are never cut."""
    warmup_steps: int = 500
    rewarmup_steps: int = 100
    """Warm-up of groups that a later stage unfreezes."""
    lr_schedule: Literal["constant", "cosine"] = "constant"
    weight_decay: float = 0.01
    """Not applied to norms, biases and the tied matrix."""
    adam_beta2: Fraction = 0.999
    max_grad_norm: Positive = 1.0
    eval_steps: Count = 500
    """Optimizer steps between evaluations; a checkpoint is saved at each, so the best one is never lost."""
    logging_steps: Count = 50
    save_total_limit: Annotated[int, Field(ge=2)] = 3
    eval_fraction: Fraction = 0.05
    """Share of recordings held out for evaluation when the manifest has no `split` column."""
    max_wer_utterances: Count = 512
    """Size of the fixed, seeded subset that is transcribed at each evaluation."""
    max_new_tokens: Count = 256
    eval_batch_size: Count = 16
    """Utterances per batch when evaluating."""
    final_model: Literal["best", "last"] = "best"
    """Which checkpoint becomes the final model: the one with the lowest eval_wer, or the last one."""
    num_loader_workers: Annotated[int, Field(ge=0)] = 0
    """Processes that decode audio ahead; 0: in the training process."""
    feature_cache_mib: Annotated[float, Field(ge=0)] = 1024.0
    """Memory for audio features of small corpora, which are then decoded once; only without loader workers."""
    seed: int = 42
    overwrite_recipe: bool = False
    """Resume although recipe or data differ from the checkpoint's."""
    push_to_hub: bool = False
    hub_model_id: str | None = None

    @model_validator(mode="after")
    def check(self) -> "Train":
        if not self.stages:
            raise ValueError("train.stages is empty: expected at least one stage")
        if self.push_to_hub and not self.hub_model_id:
            raise ValueError("train.push_to_hub needs train.hub_model_id, for example username/qwen3-asr-hebrew-round2")
        return self

    def effective_batch_size(self, num_processes: int) -> int:
        """Utterances per optimizer step."""
        return self.batch_size * self.gradient_accumulation_steps * num_processes

    def num_epochs(self) -> int:
        return sum(stage.num_epochs for stage in self.stages)

    def first_epoch_number(self, stage_index: int) -> int:
        """1-based epoch number with which a stage begins."""
        return 1 + sum(stage.num_epochs for stage in self.stages[:stage_index])
