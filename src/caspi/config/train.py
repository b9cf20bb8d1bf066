"""Training: stages and layer groups, and everything that decides the weights."""

from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import Field, model_validator

from caspi.config.base import Count, Fraction, Positive, Section

AlertKind = Literal[
    "GRAD_NORM_HIGH",
    "GRAD_NORM_LOW",
    "LOSS_NOT_RECOVERED",
    "GPU_MEMORY_HIGH",
    "SPEED_LOW",
    "LEARNING_RATES_ZERO",
    "EVAL_WER_RISING",
    "DATA_WAIT_HIGH",
    "MIRROR_FAILED",
]


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


class Health(Section):
    """When a run that still goes on deserves a look; each alert is raised once, with the flag that helps."""

    max_grad_norm: Positive = 50.0
    """Gradient norm (before clipping) above which training is unstable."""
    min_grad_norm: Positive = 0.01
    """Gradient norm below which nothing is learnt."""
    recovery_steps: Count = 200
    """Optimizer steps within which the loss must be back after a new stage began."""
    max_recovered_ratio: Positive = 1.25
    """Loss relative to the last one before the switch that counts as back."""
    max_memory_fraction: Fraction = 0.95
    """Peak of the GPU's memory that was in use."""
    expected_samples_per_second: Positive | None = None
    """Utterances per second of all processes; None: what `caspi plan` predicts for this GPU, if it knows it."""
    min_speed_fraction: Fraction = 0.5
    """Share of the expected speed below which something is wrong."""
    max_data_wait_fraction: Fraction = 0.10
    """Share of the time spent waiting for audio to be decoded."""
    stop_on: tuple[AlertKind, ...] = ()
    """Alerts at which the run saves and stops with exit code 3; the same command goes on."""


class Mirroring(Section):
    """Copies of the checkpoints in object storage, made beside training."""

    retry_seconds: Positive = 300.0
    """After a failed copy, unless a checkpoint comes first."""
    finish_seconds: Positive = 1800.0
    """Longest wait for the last copy when the run ends."""
    restore_seconds: Positive = 7200.0
    """Longest wait for a checkpoint from the mirror when the run starts."""


class Augmentation(Section):
    """How training audio and prompts vary, drawn anew for each utterance and epoch. As it is, they do not."""

    speed_probability: Fraction = 0.0
    speed_factors: Annotated[tuple[Positive, ...], Field(min_length=1)] = (0.9, 1.1)
    """Tempo and pitch together; 1.1 is faster."""
    noise_probability: Fraction = 0.0
    noise_snr_db: tuple[float, float] = (5.0, 25.0)
    """Range of speech to pink noise."""
    telephone_probability: Fraction = 0.0
    """Of the telephone's 300 to 3400 Hz."""
    codec_probability: Fraction = 0.0
    """Of a round trip through a lossy codec, as voice messages take."""
    codecs: Annotated[tuple[Literal["opus", "mp3"], ...], Field(min_length=1)] = ("opus", "mp3")
    num_time_masks: Annotated[int, Field(ge=0)] = 0
    """SpecAugment's masks in time."""
    max_time_mask_fraction: Fraction = 0.05
    """Longest of them, as a share of the clip."""
    num_mel_masks: Annotated[int, Field(ge=0)] = 0
    """SpecAugment's masks in frequency."""
    max_mel_mask_fraction: Fraction = 0.2
    """Widest of them, as a share of the mel bins."""
    context_probability: Fraction = 0.0
    """Of giving the previous transcript (the manifest's `prev_text`) as the system prompt."""
    max_context_characters: Count = 400
    """Only the last words of it."""


MAX_LOADER_WORKERS = 8
"""Of one training process, unless the recipe says otherwise."""


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
    lora_rank: Annotated[int, Field(ge=0)] = 0
    """Of adapters on the attention of the LLM layers that stay frozen, in all stages; 0: none. 16 adds 3.7 million
    parameters to the 1.7B. They are merged into every checkpoint."""
    lora_alpha: Positive = 32.0
    """An adapter's product counts alpha / rank times."""
    lora_learning_rate: Positive = 2e-4
    batch_size: Count = 2
    """Times accumulation steps and processes: utterances per optimizer step. A padded step computes so many at once."""
    gradient_accumulation_steps: Count = 16
    step: Literal["packed", "padded"] = "packed"
    """How the utterances of a step are computed: one after the other in one sequence, or padded in micro-batches by the
    stock class. The result is the same to rounding."""
    compile: bool = False
    """Compile each block; the first steps of every stage take a minute longer."""
    liger: bool = False
    """Liger's kernels in the language model, from the package liger-kernel; instead of compiling."""
    num_checkpointed_llm_layers: Annotated[int, Field(ge=0)] | None = None
    """Lowest LLM layers that save memory by computing twice; without: none, unless the GPU would hold too little."""
    gradient_exchange: Literal["bfloat16", "float32"] = "bfloat16"
    """How GPUs send each other gradients; what they sum, clip and apply is float32. On a CPU always float32."""
    token_budget: Count | None = None
    """Text positions, audio among them, that a packed step computes at once; more are split. Without: what the GPU
    holds, as `caspi plan` says; 16,384 on a CPU."""
    num_processes: int = 0
    """Training processes on this machine; 0: one per visible GPU, or one on a machine without."""
    data_parallel: Literal["ddp", "fsdp2"] = "ddp"
    """With several processes: a copy of the model in each (ddp), or a part of it in each (fsdp2), for cards that a copy
    does not fit. Checkpoints are the same."""
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
    eval_batch_size: Count = 64
    """Utterances transcribed at once when evaluating, at most; long ones are fewer."""
    early_stop_evaluations: Annotated[int, Field(ge=0)] = 0
    """Evaluations of the last stage in a row without a new lowest eval_wer after which the run ends; 0: never."""
    final_model: Literal["best", "last"] = "best"
    """Which checkpoint becomes the final model: the one with the lowest eval_wer, or the last one."""
    dataset_weights: dict[str, Positive] = {}
    """Share of each `source` of the manifest in an epoch, in any unit, for all of them; empty: every utterance once.
    An epoch keeps its length: of a source with a small share some wait for the next epoch, of others some repeat."""
    augmentation: Augmentation = Augmentation()
    trackio_project: str | None = None
    """Report to a trackio project as well; trackio is the extra `trackio`."""
    num_loader_workers: Annotated[int, Field(ge=0)] | None = None
    """Processes that decode audio ahead, for each training process; 0: in the training process itself. Without: 0 on a
    CPU; beside a GPU as many as it has cores, at most 8."""
    feature_cache_mib: Annotated[float, Field(ge=0)] = 1024.0
    """Memory for audio features of small corpora, which are then decoded once; only without loader workers."""
    max_undecodable_fraction: Fraction = 0.01
    """Share of the training clips that may be left out because they cannot be decoded; above it the run stops."""
    max_first_loss: Positive = 8.0
    """Nats per target token before step 1. A pretrained model is far below, a vocabulary of 152,000 guesses at 11.9;
    above it labels, audio and weights do not belong together."""
    health: Health = Health()
    mirror: str | None = None
    """Address for copies of the committed checkpoints (s3://BUCKET/FOLDER, gs://..., hf://buckets/OWNER/NAME, a
    folder); a start without as new a checkpoint here fetches it from there. Credentials by environment only."""
    mirroring: Mirroring = Mirroring()
    price: Positive | None = None
    """USD per hour for all GPUs together; default: `plan.price`, else that of the GPUs of this machine."""
    max_budget_usd: Annotated[Positive | None, tyro.conf.arg(aliases=["--max-budget"])] = None
    """USD of all starts together at which the run saves and stops with exit code 3."""
    shutdown_seconds: Count = 300
    """With several processes: time to save after a signal, before they are killed."""
    seed: int = 42
    overwrite_recipe: bool = False
    """Resume although recipe or data differ from the checkpoint's."""
    push_to_hub: bool = False
    """Upload the final model, privately. A failed upload is a warning with the command to try again: the model is kept
    and the run counts as done."""
    hub_model_id: str | None = None
    """OWNER/NAME."""

    @model_validator(mode="after")
    def check(self) -> "Train":
        if self.compile and self.liger:
            raise ValueError("train.compile and train.liger replace the same kernels: choose one of them")
        if not self.stages:
            raise ValueError("train.stages is empty: expected at least one stage")
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"train.stages has two stages of one name: {', '.join(names)}; checkpoints go by it")
        if self.push_to_hub and not self.hub_model_id:
            raise ValueError("train.push_to_hub needs train.hub_model_id, for example username/qwen3-asr-hebrew-round2")
        return self

    def effective_batch_size(self, num_processes: int) -> int:
        """Utterances per optimizer step."""
        return self.batch_size * self.gradient_accumulation_steps * num_processes

    def loader_workers(self, num_cores: int, num_gpus: int) -> int:
        """Processes that decode audio for one training process, of which a machine has one per GPU."""
        if self.num_loader_workers is not None:
            return self.num_loader_workers
        return max(1, min(MAX_LOADER_WORKERS, num_cores // num_gpus - 1)) if num_gpus else 0

    def num_epochs(self) -> int:
        return sum(stage.num_epochs for stage in self.stages)

    def first_epoch_number(self, stage_index: int) -> int:
        """1-based epoch number with which a stage begins."""
        return 1 + sum(stage.num_epochs for stage in self.stages[:stage_index])
