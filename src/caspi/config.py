"""Every number of a run, by step. The defaults are Round 2 of the deployment guide.

Precedence: these defaults, then the recipe (TOML), then the flags of the running step. A recipe has one table per
section below; unknown keys are refused. Shared sections change only through a recipe, which is then part of the record.
"""

import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Fraction = Annotated[float, Field(ge=0, le=1)]
Percent = Annotated[float, Field(ge=0, le=100)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class Language(Section):
    """What is Hebrew about a run; another language is another recipe."""

    name: str = "Hebrew"
    """Language name as Qwen3-ASR writes it in `language NAME<asr_text>`."""
    espeak_voice: str = "he"
    """espeak-ng voice that renders reference speech for `tts-dtw` and the synthetic corpus."""


class Env(Section):
    """Ask for the tracking and cache settings, write them as shell exports; secrets are never written."""

    output: Path = Path(".caspi.env")
    """Shell file that `scripts/setup_wandb.sh` sources."""
    wandb_project: str = "qwen3-asr-hebrew"
    """Offered as the project name; `WANDB_PROJECT` comes first."""
    wandb_run_name: str = "round2-gradual-unfreezing"
    """Offered as the run name; `WANDB_RUN_NAME` comes first."""
    cuda_visible_devices: str = "0,1"
    """Exported as CUDA_VISIBLE_DEVICES unless that is set."""
    pytorch_cuda_alloc_conf: str = "expandable_segments:True"
    """Exported as PYTORCH_CUDA_ALLOC_CONF unless that is set."""


class Prepare(Section):
    """Corpora to one manifest of utterances: exactly what audit and train both read."""

    datasets: tuple[str, ...] = (
        "ivrit-ai/crowd-transcribe-v5",
        "ivrit-ai/crowd-recital-whisper-training",
    )
    """Hugging Face dataset ids, local dataset folders or Parquet files. Ignored when `manifest` is given."""
    manifest: tuple[Path, ...] = ()
    """JSONL, CSV or TSV manifests with `audio_filepath` and `text`."""
    output: Path = Path("data")
    """Folder for manifest.jsonl, quarantine.jsonl and extracted audio."""
    split: str = "train"
    """Split read from Hugging Face datasets."""
    root: Path | None = None
    """Audio paths must stay inside this folder; default: the folder of each manifest."""
    min_duration_seconds: Positive = 0.5
    """Shorter clips are quarantined."""
    max_duration_seconds: Positive = 15.0
    """Longer clips are marked for resegmentation and not used for training; they are never cut blindly."""
    max_file_mib: Positive = 512.0
    """Larger audio files are quarantined unread."""
    noisy_below_snr_db: float = 15.0
    """Without a domain column, clips with a measured SNR below this are `whatsapp_noisy`."""
    long_tail_above_seconds: Positive = 20.0
    """Without a domain column, clips longer than this are `long_tail`."""


class QualityThresholds(Section):
    """When an utterance is low quality (AUDIT: definitions of the metrics)."""

    min_coverage: Fraction = 0.6
    """Below: LOW_COVERAGE. Share of transcript letters in accepted words."""
    min_confidence: Fraction = 0.5
    """Below: LOW_CONFIDENCE. 0.5 is "no better than a wrong transcript"."""
    min_speech_coverage: Fraction = 0.6
    """Below: UNTRANSCRIBED_SPEECH. Share of speech inside accepted words."""
    max_untranscribed_seconds: Positive = 2.0
    """A longer run of speech without text: UNTRANSCRIBED_SPEECH."""
    min_speech_seconds: Positive = 0.2
    """Less speech than this: NO_SPEECH."""
    max_duration_seconds: Positive = 300.0
    """Longer clips are TOO_LONG for the aligner."""
    length_ratio_z: Positive = 3.5
    """Robust z-score of letters per speech second beyond which LENGTH_MISMATCH is raised."""
    min_characters_per_second: Positive = 5.0
    """The guide's rule: fewer characters per second of speech is a LENGTH_MISMATCH."""
    max_characters_per_second: Positive = 20.0
    """The guide's rule: more characters per second of speech is a LENGTH_MISMATCH."""
    max_local_letters_per_second: Positive = 40.0
    """Faster speech over three words is impossible: the words are not accepted."""


class Validity(Section):
    """When an audit may speak at all: it must tell right transcripts from decoys."""

    min_separable_mass: Fraction = 0.5
    """Share of originals above the 99th percentile of decoys; below: degraded."""
    min_degraded_separable_mass: Fraction = 0.25
    """Below: invalid."""
    min_auc_lower_bound: Fraction = 0.8
    """Lower 95 % bound of AUC(originals, decoys)."""
    max_false_acceptance_upper_bound: Fraction = 0.05
    """Clopper-Pearson 95 % upper bound of the share of decoys accepted."""
    max_failed_fraction: Fraction = 0.01
    """More failed alignments than this is a broken tool, not bad data."""
    min_domain_utterances: Count = 30
    """Smaller domains are not judged alone."""
    num_bootstrap_draws: Count = 1000


class Audit(Section):
    """Phase 0: does the transcript match the audio?"""

    manifest: Path = Path("data/manifest.jsonl")
    output: Path = Path("phase0_audit_results")
    backend: Literal["tts-dtw", "uniform"] = "tts-dtw"
    """Aligner. `uniform` ignores the audio; it exists to show that such an audit ends in AUDIT_INVALID."""
    sample_rate: Annotated[float, Field(gt=0, le=1)] = 0.10
    """Fraction of the manifest that is audited (not the audio sampling rate)."""
    num_samples: int | None = None
    """Number of utterances audited; overrides `sample_rate`."""
    seed: int = 42
    domain_shares: dict[str, Fraction] = {"whatsapp_noisy": 0.4, "kan_clean": 0.4, "long_tail": 0.2}
    """Shares of the sample by domain; shortages are redistributed and reported."""
    gate: Literal["evidence", "point"] = "evidence"
    """`evidence` demands an upper bound below 10 %; `point` is the guide's plain rule."""
    proceed_below_pct: Percent = 10.0
    stop_above_pct: Percent = 15.0
    domain_alert_pct: Percent = 20.0
    """A domain whose lower bound exceeds this blocks PROCEED."""
    num_processes: int = 0
    """Alignment worker processes; 0: one per core."""
    quality: QualityThresholds = QualityThresholds()
    validity: Validity = Validity()


class Gate(Section):
    """Show the Phase 0 decision and record who signed it off."""

    report: Path = Path("phase0_audit_results/alignment_report.json")
    signoff: str | None = None
    """Append this reviewer's name, the date, the decision and the report's hash to `signoff_file`."""
    signoff_file: Path = Path("phase0_signoff.txt")
    accept_risk: str | None = None
    """Open the gate although the report does not allow it; the reason is recorded."""
    max_age_days: Positive = 30.0
    """An older report does not open the gate."""


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
    num_loader_workers: int = 0
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


class Evaluate(Section):
    """One model over the test sets: transcribe, keep raw predictions, score."""

    model: str = "qwen3-asr-hebrew-round2"
    """Checkpoint folder or Hub id."""
    test_sets: tuple[str, ...] = (
        "eval-d1=ivrit-ai/eval-d1",
        "eval-whatsapp=ivrit-ai/eval-whatsapp",
        "hebrew-speech-kan=imvladikon/hebrew_speech_kan",
        "saspeech=upai-inc/saspeech",
    )
    """NAME=SOURCE pairs; a source is a manifest, a folder or a Hugging Face id."""
    output: Path = Path("evaluation")
    max_samples: int | None = None
    """Seeded random subset per test set; small subsets cannot show small differences."""
    num_beams: Count = 1
    batch_size: Count = 16
    max_new_tokens: Count = 448
    seed: int = 42


class Compare(Section):
    """Round 1 against Round 2 per test set, with intervals, and the success criteria."""

    round1_model: str = "OzLabs/Qwen3-ASR-Hebrew-1.7B"
    """Checkpoint, Hub id, or a folder of predictions."""
    round2_model: str = "qwen3-asr-hebrew-round2"
    """Checkpoint, Hub id, or a folder of predictions."""
    output: Path = Path("round2_comparison.csv")
    predictions: Path = Path("comparison")
    """Folder for the predictions of models that have to be evaluated first."""
    profile: Literal["ivrit", "he"] = "ivrit"
    """Scoring profile of the verdicts."""
    confidence_fraction: Fraction = 0.95
    num_bootstrap_draws: Count = 10_000
    seed: int = 42
    train_run: Path | None = None
    """Training run directory; gives evidence for the criteria about training."""


class Demo(Section):
    """The whole flow on synthetic Hebrew speech and tiny real models: no network, no GPU."""

    output: Path = Path("demo")
    seconds_budget: Positive = 300.0
    """Time the demo may take on two cores."""
    seed: int = 42
    rebuild_base: bool = False
    """Train the tiny base checkpoint again instead of using the one that ships."""


class Recipe(Section):
    language: Language = Language()
    env: Env = Env()
    prepare: Prepare = Prepare()
    audit: Audit = Audit()
    gate: Gate = Gate()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    compare: Compare = Compare()
    demo: Demo = Demo()


def load_recipe(path: Path | None) -> Recipe:
    """Read a TOML recipe over the defaults.

    Raises:
        ValueError: the file is missing or not TOML, or a key is unknown or out of range; the message names it.
    """
    if path is None:
        return Recipe()
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"recipe {path} does not exist") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"recipe {path} cannot be read as TOML: {error}") from None
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"recipe {path}: {one_line(error)}") from None


def one_line(error: ValidationError) -> str:
    """All problems of a validation error as `section.key: what is wrong`."""
    return "; ".join(f"{'.'.join(map(str, item['loc'])) or 'value'}: {item['msg']}" for item in error.errors())
