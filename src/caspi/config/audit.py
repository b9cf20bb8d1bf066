"""Phase 0: the audit of transcripts against audio, and the gate."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from caspi.config.base import Count, Fraction, Percent, Positive, Section


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
    min_reversed_auc: Fraction = 0.65
    """AUC of originals against the same texts on reversed audio, which has no words but the same length, loudness and
    pauses; below: invalid, because what separates originals from decoys is not the sound."""
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
    """A domain with fewer low quality utterances than this gets the more conservative Korn-Graubard interval."""
    num_bootstrap_draws: Count = 2000
    """Draws of whole recordings that measure how much utterances of one recording resemble each other."""


class Review(Section):
    """Blind review of audited clips, which corrects the detector's errors."""

    num_clips: Count = 100
    """Clips to hear: about half an hour of a person."""
    flagged_fraction: Fraction = 0.4
    """Share of them that the audit flagged; the rest tells how much it missed."""
    min_domain_labels: Count = 10
    """A domain with fewer labels of flagged (or of unflagged) clips takes the rate of all domains together."""
    min_detector_power: Positive = 0.1
    """Rogan-Gladen divides by detection minus false alarms; below this the quotient says nothing."""


class AuditPage(Section):
    """audit.html."""

    max_clips: int = 120
    """Clips shown with words and waveform, and with audio where `embed_audio` allows it."""
    num_worst: Count = 10
    """Of them the worst, in pages made for review."""
    num_near: Count = 10
    """Of them the nearest to the thresholds, in pages made for review."""
    max_audio_mib: Positive = 24.0
    """Audio in a page at most, as encoded in it; clips beyond are shown without."""
    num_peaks: Count = 480
    """Points of a waveform."""


class Calibration(Section):
    """Negative controls: wrong pairs made on purpose, on which thresholds are set and detection is measured."""

    word_false_acceptance: tuple[Fraction, ...] = (0.40, 0.30, 0.25, 0.20, 0.15, 0.10, 0.05)
    """Candidate shares of wrong words accepted; the largest that keeps `max_decoy_acceptance` is taken."""
    max_decoy_acceptance: Fraction = 0.02
    """Share of held-out wrong transcripts that may pass as good."""
    score_penalty: Positive = 1.0
    """L2 penalty of learned scores, as strong as one observation (1 / C of scikit-learn)."""
    min_taught_pairs: Count = 10
    """With fewer pairs per fold nothing is learned, and the backend's own scores stand."""
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
    """Rise of the flag rate under harmless changes of the audio, lower 95 % bound; more: degraded."""


class Audit(Section):
    """Phase 0: does the transcript match the audio?"""

    manifest: Path = Path("data/manifest.jsonl")
    output: Path = Path("phase0_audit_results")
    backend: Literal["qwen", "ctc", "asr", "tts-dtw", "uniform", "random"] = "qwen"
    """Aligner: `qwen` is Qwen3-ForcedAligner, `ctc` any CTC model of transformers, `tts-dtw` compares with synthetic
    speech and needs no weights. `asr` asks a Qwen3-ASR model how much the audio supports each word: it gives no times,
    so speech without text goes unseen. `uniform` and `random` ignore the audio: such an audit ends in AUDIT_INVALID."""
    aligner_model: str = "Qwen/Qwen3-ForcedAligner-0.6B"
    """Forced aligner of `qwen`: a folder or a Hub id, in either layout."""
    ctc_model: str = "imvladikon/wav2vec2-xls-r-300m-hebrew"
    """Model of `ctc`: a folder or a Hub id with safetensors; any AutoModelForCTC whose tokens are characters."""
    asr_model: str = "Qwen/Qwen3-ASR-1.7B"
    """Recogniser of `asr`: a folder or a Hub id. Not one trained on the audited data: it would believe its errors."""
    model_batch_size: Count = 16
    """Most clips that `qwen` computes at once, each with all its transcripts; for `asr` most (clip, transcript) pairs.
    """
    model_batch_seconds: Positive = 300.0
    """Most audio in such a batch, padding included; text counts as audio with as many tokens."""
    shift_stability: bool = False
    """Let `qwen` align again after 0.48 s of silence: a word whose times do not follow loses its score. Twice the time.
    """
    reference_voices: tuple[str, ...] = ("", "+f3")
    """Variants of `language.espeak_voice` that `tts-dtw` compares with, for example "" "+f2" "+m3"; the best counts."""
    sample_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    """Fraction of the manifest that is audited (not the audio sampling rate). None: everything where the aligner runs
    on a GPU, else `sample_rate_without_gpu`."""
    sample_rate_without_gpu: Annotated[float, Field(gt=0, le=1)] = 0.10
    num_samples: int | None = None
    """Number of utterances audited; overrides `sample_rate`."""
    looks: tuple[Count, ...] = (800, 1600, 3200)
    """Sizes of the sample at which the audit stops when the decision is settled. Only those count that are at most half
    of the sample; a census has none."""
    seed: int = 42
    domain_shares: dict[str, Fraction] = {"whatsapp_noisy": 0.4, "kan_clean": 0.4, "long_tail": 0.2}
    """Shares of the sample by domain; shortages are redistributed and reported."""
    gate: Literal["evidence", "point"] = "evidence"
    """`evidence` demands an upper bound below 10 %; `point` is the guide's plain rule."""
    proceed_below_pct: Percent = 10.0
    stop_above_pct: Percent = 15.0
    domain_alert_pct: Percent = 20.0
    """A domain whose lower bound exceeds this blocks PROCEED."""
    embed_audio: Literal["none", "worst", "review"] = "review"
    """Clips whose audio audit.html carries: those of the blind review and some of the worst, the worst only, or none.
    Voices leave this machine with the file."""
    labels: Path | None = None
    """Labels that audit.html exported: decide again from the report in `output`, without aligning."""
    gold: Path | None = None
    """Clips with verified word times, JSON lines of `id`, `audio_filepath` and `words` (each `word`, `start`, `end`),
    for example from ivrit-ai/eval-forced-alignment: boundary errors and false alarms in real Hebrew."""
    gold_labels: Path | None = None
    """Labels of audited clips known from elsewhere, in the same format: a cross-check by Rogan and Gladen's formula."""
    engine: Literal["local", "ray"] = "local"
    """Where clips are aligned: `local` in processes of this machine, `ray` over a Ray cluster (extra `ray`), on which
    every node must see the audio files under the same paths."""
    ray_address: str | None = None
    """Address of a running cluster, for example "auto"; None starts one on this machine for the length of the audit."""
    clip_timeout_seconds: Positive = 120.0
    """A worker that is silent for this long for each clip it was given, and `clip_timeout_factor` beside, hangs."""
    clip_timeout_factor: Positive = 60.0
    """Seconds granted to a worker for each second of audio to align, all pairs counted."""
    num_processes: int = 0
    """Alignment worker processes; 0: one per core, with model weights one on a GPU and at most four on CPU."""
    quality: QualityThresholds = QualityThresholds()
    estimation: Estimation = Estimation()
    review: Review = Review()
    page: AuditPage = AuditPage()
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
