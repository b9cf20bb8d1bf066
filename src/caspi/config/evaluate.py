"""Transcribing test sets, and the comparison of two rounds."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from caspi.config.base import Count, Fraction, Positive, Section


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
