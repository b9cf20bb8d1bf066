"""Every number of a run, by step. The defaults are Round 2 of the deployment guide.

Precedence: these defaults, then the recipe (TOML), then the flags of the running step. A recipe has one table per
section below; unknown keys are refused. Shared sections change only through a recipe, which is then part of the record.
"""

import tomllib
from pathlib import Path
from typing import Annotated, Literal

import tyro
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


class Check(Section):
    """Is this machine ready to train?"""

    fetch: bool = False
    """Download models and datasets beforehand; interrupted downloads continue."""
    json_output: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print JSON instead of lines."""
    timeout_seconds: Positive = 4.0
    """Time each question to a server may take."""
    fetch_attempts: Count = 5
    """Tries per download before it counts as failed."""
    num_gpus: Count = 2
    min_gpu_memory_gib: Positive = 39.0
    """Memory of each GPU; an A100-40GB reports 39.4."""
    min_ram_gib: Positive = 117.0
    """The guide asks for 128 GB, which is 119.2 GiB; machines report a little less than they are sold with."""
    models_gib: Positive = 8.0
    """Disk for Qwen3-ASR-1.7B and the forced aligner in bf16, with room for the Round 1 model."""
    datasets_gib: Positive = 50.0
    """Disk for the training datasets (the guide's figure)."""
    checkpoint_gib: Positive = 13.3
    """Disk of one checkpoint of strategy A with the tied matrix: weights and Adam state."""
    max_clock_skew_seconds: Positive = 60.0


class Plan(Section):
    """What a run will need before anything is rented. All rates are predictions until measured."""

    gpu: str = "A100-40GB"
    """GPU model, see `ops.cost.GPUS`."""
    num_gpus: Count = 2
    price: Positive | None = None
    """USD per hour for all GPUs together; default: the dated table in `ops.cost`."""
    mfu_fraction: Annotated[float, Field(gt=0, le=1)] = 0.04
    """Share of the GPU's peak that training reaches. 0.04 is what Round 1 reached on A100s with the official script."""
    num_utterances: Count = 73_579
    """Training utterances when the manifest does not exist yet."""
    mean_duration_seconds: Positive = 5.7
    """Mean length when the manifest does not exist yet."""
    target_tokens_per_second: Positive = 4.0
    """Transcript tokens per second of audio, counted on Hebrew with the model's tokenizer."""
    evaluation_hours: Positive = 2.0
    buffer_hours: float = Field(default=1.0, ge=0)
    """Paid time for restarts."""
    max_memory_fraction: Fraction = 0.95
    """More of the card's memory than this does not fit."""
    json_output: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print JSON instead of tables."""


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
    domain_of_source: dict[str, str] = {"whatsapp": "whatsapp_noisy", "kan": "kan_clean"}
    """Without a domain column, a source whose name holds this word has this domain, whatever is measured."""
    max_snr_seconds: Positive = 10.0
    """The SNR is measured on at most this much of a clip, from its start."""
    num_processes: Annotated[int, Field(ge=0)] = 0
    """Processes that look at the audio; 0: one per core."""


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
    min_length_ratio_deviation: Positive = 0.10
    """Least spread of ln(letters per speech second) that `length_ratio_z` is measured in."""
    max_word_seconds: Positive = 0.4
    """Longest believable word span: this plus `max_word_seconds_per_letter` for each letter."""
    max_word_seconds_per_letter: Positive = 0.25
    max_overrun_seconds: float = 0.16
    """A span may end this much after the audio (time resolution of the aligner)."""
    min_span_speech_fraction: Fraction = 0.5
    """Less speech than this inside a word's span: the word is not accepted."""
    span_tolerance_seconds: float = 0.08
    """Widening of a span when its speech is looked for."""
    span_padding_seconds: float = 0.08
    """Widening of accepted spans when covered speech is counted."""
    max_filled_gap_seconds: float = 0.3
    """Shorter gaps between consecutive accepted words count as covered."""
    min_collapsed_words: Count = 3
    """A run of at least so many zero-length words is not accepted."""
    max_collapsed_letters_fraction: Fraction = 0.25
    """A shorter run of zero-length words with more than this share of the letters is not accepted."""


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


class Estimation(Section):
    """From the audited sample to the whole manifest."""

    confidence_fraction: Fraction = 0.90
    """Level of two-sided intervals; each side alone then holds with 95 %."""
    power_fraction: Fraction = 0.90
    """Probability with which the recommended number of samples settles the decision."""
    korn_graubard_below: Count = 5
    """With fewer low quality utterances than this, the more conservative Korn-Graubard interval is used."""
    num_bootstrap_draws: Count = 2000
    """Draws of whole recordings that measure how much utterances of one recording resemble each other."""


class Calibration(Section):
    """Negative controls: wrong pairs made on purpose, on which thresholds are set and detection is measured."""

    word_false_acceptance: tuple[Fraction, ...] = (0.40, 0.30, 0.25, 0.20, 0.15, 0.10, 0.05)
    """Candidate shares of wrong words accepted; the largest that keeps `max_decoy_acceptance` is taken."""
    max_decoy_acceptance: Fraction = 0.02
    """Share of held-out wrong transcripts that may pass as good."""
    min_domain_words: Count = 200
    """A domain with fewer control words uses the threshold of all domains together."""
    max_decoy_length_difference: Fraction = 0.15
    """A decoy transcript should have the same number of letters, give or take this share."""
    max_decoy_word_overlap: Fraction = 0.34
    """Share of a transcript's words that its decoy may contain."""
    num_control_utterances: int = 180
    """Utterances on which each further control is tried, spread evenly over the domains; 0: none."""
    dose_levels: tuple[Fraction, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    """Shares of foreign words in the dose-response control."""
    num_dose_utterances: int = 30
    """Utterances of the dose-response control."""
    num_self_test_sentences: int = 20
    """Synthetic sentences that tell a broken tool from bad data; 0: none. Needs the espeak engine."""
    min_mean_detection: Fraction = 0.80
    """Mean detection of truncated, incomplete, padded, reordered and half-wrong pairs; below: degraded."""
    max_dose_correlation: Annotated[float, Field(ge=-1, le=1)] = -0.9
    """Rank correlation of coverage with the share of wrong words; above: degraded."""
    max_harmless_rise: Fraction = 0.05
    """Rise of the flag rate under harmless changes of the audio; more: degraded."""


class Audit(Section):
    """Phase 0: does the transcript match the audio?"""

    manifest: Path = Path("data/manifest.jsonl")
    output: Path = Path("phase0_audit_results")
    backend: Literal["tts-dtw", "uniform", "random"] = "tts-dtw"
    """Aligner. `uniform` and `random` ignore the audio; they exist to show that such an audit ends in AUDIT_INVALID."""
    reference_voices: tuple[str, ...] = ("",)
    """Variants of `language.espeak_voice` that `tts-dtw` compares with, for example "" "+f2" "+m3"; the best counts."""
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
    estimation: Estimation = Estimation()
    calibration: Calibration = Calibration()
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


class Evaluate(Section):
    """One model over the test sets: transcribe, keep raw predictions, score."""

    model: str = "qwen3-asr-hebrew-round2"
    """Checkpoint folder or Hub id."""
    test_sets: tuple[str, ...] = (
        "eval-d1=ivrit-ai/eval-d1",
        "eval-whatsapp=ivrit-ai/eval-whatsapp",
        "hebrew-speech-kan=imvladikon/hebrew_speech_kan:validation",
        "saspeech=upai-inc/saspeech",
    )
    """NAME=SOURCE pairs; a source is a manifest, a folder, or a Hugging Face id, if need be with `:SPLIT`."""
    split: str = "test"
    """Split of Hugging Face datasets that name none."""
    output: Path = Path("evaluation")
    max_samples: int | None = None
    """Seeded random subset per test set; small subsets cannot show small differences."""
    num_beams: Count = 1
    batch_size: Count = 16
    """Clips transcribed at once."""
    max_batch_seconds: Positive = 480.0
    """Padded audio seconds transcribed at once, times beams; keeps batches of long clips small."""
    max_new_tokens: Count = 448
    """Longer texts are cut off and counted as truncated."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the model; auto: bfloat16 on a GPU, float32 without."""
    short_below_seconds: Positive = 5.0
    """Clips shorter than this are in the duration bucket `short`."""
    long_above_seconds: Positive = 15.0
    """Clips longer than this are in the bucket `long`; the rest is `medium`."""
    min_loop_repeats: Annotated[int, Field(ge=2)] = 20
    """A pattern of up to 20 characters written this often in a row is a repetition loop."""
    seed: int = 42


class CriteriaThresholds(Section):
    """The guide's success criteria in numbers; WER and CER are fractions, improvements differences of fractions."""

    must_wer: Fraction = 0.115
    """Go / no-go: mean WER of Round 2 below this."""
    must_improvement: Fraction = 0.01
    """Go / no-go: mean WER at least this much lower than Round 1's."""
    should_wer: Fraction = 0.11
    should_noisy_improvement: Fraction = 0.015
    noisy_test_set: str = "eval-whatsapp"
    """Test set of highest leverage."""
    should_last_stage_improvement: Fraction = 0.005
    """Further fall of `eval_wer` in the last training stage."""
    should_max_hours: Positive = 13.0
    """Training time."""
    should_max_gpu_gib: Positive = 34.0
    """Peak GPU memory."""
    nice_wer: Fraction = 0.105
    nice_max_hours: Positive = 12.0
    nice_cer: Fraction = 0.045
    """Mean CER of Round 2 below this."""
    nice_improvement_everywhere: Fraction = 0.01
    """Improvement that every test set shows."""


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
    """Of the intervals; a verdict needs an interval without 0."""
    power_fraction: Fraction = 0.8
    """Chance of showing a true difference with the number of utterances that is called needed."""
    min_utterances: Count = 30
    """A test set or bucket with fewer utterances gets no verdict, whatever its interval."""
    num_bootstrap_draws: Count = 10_000
    num_permutations: Count = 10_000
    seed: int = 42
    train_run: Path | None = None
    """Training run directory; gives evidence for the criteria about training."""
    criteria: CriteriaThresholds = CriteriaThresholds()


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
    """Relative change (L2) of the clip's logits that merging LoRA adapters may cause; only float32 rounding is meant."""
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
    """Before anything else: logs and records, and of the checkpoints the best and the newest, all, or none. `none` writes
    no archive."""
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


class SyntheticSpeech(Section):
    """How the synthetic corpus sounds. Pairs are the two ends of a uniform range."""

    voices: tuple[str, ...] = ("+f1", "+f2", "+f3", "+f5", "+m1", "+m2", "+m3", "+m5", "+m7")
    """Variants of `language.espeak_voice` that speak the training and the audit corpus."""
    held_out_voices: tuple[str, ...] = ("+f4", "+m4", "+m6")
    """Variants that only test sets use. The plain voice is left for `tts-dtw` and the test set `saspeech`."""
    speakers_per_voice: Count = 4
    """A speaker is a voice with a pitch and a rate of its own."""
    rate_wpm: tuple[int, int] = (130, 200)
    """Words per minute, drawn per speaker; an utterance differs by up to `rate_spread_wpm`, inside the same range."""
    rate_spread_wpm: int = 10
    pitch: tuple[int, int] = (30, 75)
    """espeak-ng's 0 to 100, drawn per speaker."""
    word_gaps: tuple[int, ...] = (0, 0, 2, 8)
    """Extra pauses between words, in 10 ms at the default rate; one is drawn per utterance."""
    edge_silence_seconds: tuple[float, float] = (0.1, 0.5)
    """Silence before the first and after the last word, drawn separately."""
    level_dbfs: tuple[float, float] = (-36.0, -26.0)
    """Power of active speech against full scale."""
    clean_snr_db: tuple[float, float] = (33.0, 37.0)
    """Speech to noise in `kan_clean`."""
    noisy_snr_db: tuple[float, float] = (8.0, 15.0)
    """Speech to noise inside the telephone band in `whatsapp_noisy`, before the codec."""
    long_tail_snr_db: tuple[float, float] = (20.0, 35.0)
    """Speech to noise in `long_tail`."""
    long_tail_seconds: tuple[float, float] = (21.5, 28.5)
    """Duration aimed at in `long_tail`; a sentence ends with the word that comes nearest."""

    def speaker_voices(self, language: Language, held_out: bool = False) -> tuple[str, ...]:
        return tuple(language.espeak_voice + variant for variant in (self.held_out_voices if held_out else self.voices))


class PlantedAudit(Section):
    """An audit of the demo whose answer is known."""

    name: str
    defect_fraction: Fraction
    """Share of utterances with a planted defect."""
    backend: Literal["tts-dtw", "uniform"] = "tts-dtw"
    expected: Literal["PROCEED", "CAUTION", "STOP", "AUDIT_INVALID"]


class Demo(Section):
    """The whole flow on synthetic Hebrew speech and tiny real models: no network, no GPU."""

    output: Path = Path("demo")
    seconds_budget: Positive = 300.0
    """Time the demo may take on two cores; longer is said at the end."""
    seed: int = 42
    rebuild_base: bool = False
    """Train the tiny base checkpoint again instead of using the one that ships."""
    audits: tuple[PlantedAudit, ...] = (
        PlantedAudit(name="2-percent", defect_fraction=0.02, expected="PROCEED"),
        PlantedAudit(name="11-percent", defect_fraction=0.11, expected="CAUTION"),
        PlantedAudit(name="25-percent", defect_fraction=0.25, expected="STOP"),
        PlantedAudit(name="blind-aligner", defect_fraction=0.02, backend="uniform", expected="AUDIT_INVALID"),
    )
    num_audit_utterances: Count = 300
    """Utterances of each small audit corpus; all of them are audited."""
    num_train_utterances: Count = 1000
    num_validation_utterances: Count = 60
    num_test_utterances: Count = 100
    """Utterances of each of the four test sets."""
    vocabulary_size: Count = 40
    """Words of the lexicon that training and test sentences are made of; the tiny base knows these."""
    num_words: tuple[int, int] = (1, 4)
    """Shortest and longest training sentence in words."""
    train_domain_shares: dict[str, Fraction] = {"kan_clean": 0.4, "whatsapp_noisy": 0.6}
    speech: SyntheticSpeech = SyntheticSpeech()


class TinyBase(Section):
    """How the tiny checkpoint that stands for the published model learns clean synthetic speech."""

    seed: int = 0
    vocabulary_size: Count = 40
    """First words of the lexicon; the base knows no others."""
    num_words: tuple[int, int] = (1, 5)
    """Shortest and longest training sentence in words."""
    snr_db: tuple[float, float] = (15.0, 37.0)
    """Speech to noise of the training utterances: full band, no codec, from plainly audible noise to none."""
    num_utterances: Count = 3000
    """Training utterances, seen again and again."""
    num_test_utterances: Count = 100
    """Of each of the test sets that the WERs in build.json come from."""
    batch_size: Count = 24
    length_group: Count = 4
    """Batches that are drawn at once and formed by duration, of which one is used."""
    num_encoder_steps: Count = 700
    """First the encoder alone: its frames learn to name words (CTC)."""
    encoder_learning_rate: Positive = 3e-3
    num_steps: Count = 1600
    """Then everything, by the loss on the transcript."""
    learning_rate: Positive = 2e-3
    warmup_steps: Count = 50
    final_rate_fraction: Fraction = 0.05
    """Rates fall in a straight line to this share of their peak."""
    ctc_weight: Fraction = 0.3
    """Weight of the encoder's loss beside the transcript's."""
    weight_decay: float = 0.01
    adam_beta2: Fraction = 0.98
    max_grad_norm: Positive = 1.0


class Recipe(Section):
    language: Language = Language()
    check: Check = Check()
    env: Env = Env()
    plan: Plan = Plan()
    prepare: Prepare = Prepare()
    audit: Audit = Audit()
    gate: Gate = Gate()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    compare: Compare = Compare()
    export: Export = Export()
    rollback: Rollback = Rollback()
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
