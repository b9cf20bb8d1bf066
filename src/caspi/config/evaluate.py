"""Transcribing test sets, and the comparison of two rounds."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from caspi.config.base import Count, Fraction, Positive, Section


class Requests(Section):
    """How a server is asked."""

    num_concurrent: Count = 16
    """Clips on their way at once."""
    timeout_seconds: Positive = 300.0
    """Time one try may take."""
    max_retries: Annotated[int, Field(ge=0)] = 5
    """Tries after the first, where trying again can help; after 0.5 s, then twice as long each time up to 8 s."""
    max_failures_in_a_row: Count = 25
    """After so many clips have failed one after the other, the others are not sent."""
    max_clip_seconds: Positive = 1800.0
    """Longer clips are not sent, and count as failed."""
    max_answer_kib: Positive = 1024.0
    """More of an answer is not read."""
    beam_tokens: Count = 16
    """With beams on vLLM, which always writes to the limit, texts have at most this many tokens and
    `beam_tokens_per_second`."""
    beam_tokens_per_second: Positive = 12.0


class Evaluate(Section):
    """One model over the test sets: transcribe, keep raw predictions, score."""

    model: str = "qwen3-asr-hebrew-round2"
    """Checkpoint folder or Hub id. With `--server`: the name it serves; left alone, the only model there."""
    server: str | None = None
    """Transcribe through this OpenAI-compatible server, for example http://localhost:8000/v1. A key is taken from
    VLLM_API_KEY."""
    dialect: Literal["auto", "vllm", "transformers"] = "auto"
    """What kind of server it is; auto: asked from the server."""
    route: Literal["chat", "transcription"] = "chat"
    """`transcription` is /v1/audio/transcriptions, whose prompt is not the training prompt: not for error rates."""
    language_forcing: Literal["variable", "prefill", "none"] = "variable"
    """How the language is forced: by the chat template's `forced_language`; or, where the server's template lacks it,
    by beginning the answer (vLLM) or sending the template (transformers); or not at all: the model names it, and how
    often it names the right one is in scores.json."""
    serve_command: str = ""
    """With a GPU and without `--server`: start this, with `{model}` and `{port}` filled in, and stop it afterwards; for
    example `vllm serve {model} --host 127.0.0.1 --port {port}`. Empty: transcribe in process."""
    health_timeout_seconds: Positive = 900.0
    """Time that server may take to answer GET /health."""
    requests: Requests = Requests()
    test_sets: tuple[str, ...] = (
        "eval-d1=ivrit-ai/eval-d1",
        "eval-whatsapp=ivrit-ai/eval-whatsapp",
        "hebrew-speech-kan=imvladikon/hebrew_speech_kan:validation",
        "saspeech=upai-inc/saspeech",
    )
    """NAME=SOURCE pairs; a source is a manifest, a folder, or a Hugging Face id, if need be with `:SPLIT`."""
    split: str = "test"
    """Split of Hugging Face datasets that name none."""
    languages: dict[str, str] = {}
    """Language of a test set that is not in the recipe's language, for example `control-en = "English"`."""
    train_manifest: Path | None = None
    """What the model was trained on: test clips that are in it are named in leakage.json."""
    min_leak_words: Count = 4
    """Shorter transcripts may occur in both by chance and are not called leaks."""
    leak_ngram_words: Count = 5
    """Words in the n-grams of a test set that are looked for in the training manifest."""
    max_seen_ngram_fraction: Fraction = 0.1
    """Share of a test set's n-grams seen in training that is worth a warning; common phrases are in both anyway."""
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
    nice_beam_improvement: Fraction = 0.005
    """Improvement of Round 2's mean WER by beam search."""


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
    train_manifest: Path | None = None
    """What Round 2 was trained on; default: the manifest of `train_run`. Clips that are in it prove nothing."""
    round2_beams: Path | None = None
    """Folder of predictions of Round 2 with beam search, for the criterion about it."""
    control_sets: tuple[str, ...] = ()
    """Test sets that Round 2 need not improve but must not spoil: other languages, silence, long form. They are left
    out of the averages."""
    max_control_worsening: Fraction = 0.02
    """WER of Round 2 on a control set at most this much above Round 1's."""
    max_control_words_per_clip: Positive = 0.1
    """Control sets without references (silence, noise): words per clip that Round 2 may invent beyond Round 1's."""
    max_oddity_increase: Fraction = 0.01
    """Rise of the share of loops, cut-off, empty or foreign output that is worth a warning."""
    num_examples: Count = 8
    """Biggest wins, and as many losses, that comparison.html shows."""
    max_example_seconds: Positive = 30.0
    """Longer clips are shown without a player."""
    max_page_audio_mib: Positive = 8.0
    """Audio in comparison.html; players beyond this are left out."""
    criteria: CriteriaThresholds = CriteriaThresholds()
