"""The demo: synthetic speech, tiny models, audits with known answers."""

from pathlib import Path
from typing import Literal

from caspi.config.base import Count, Fraction, Language, Positive, Section


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
    """Speech to full-band pink noise in `whatsapp_noisy`, before the codec; 4 dB more inside the telephone band."""
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
    rehearse: bool = False
    """The guide's whole timeline in OUTPUT/rehearsal instead: with a preemption, a kill, a damaged checkpoint, a W&B
    outage and a rollback, and the proof that nothing was lost."""
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
    num_audit_utterances: Count = 200
    """Utterances of each small audit corpus; all of them are audited."""
    audit_domain_shares: dict[str, Fraction] = {"kan_clean": 0.5, "whatsapp_noisy": 0.35, "long_tail": 0.15}
    """Domains of the small audit corpora; each must have enough utterances to be judged."""
    num_train_utterances: Count = 800
    num_validation_utterances: Count = 60
    num_test_utterances: Count = 100
    """Utterances of each of the four test sets."""
    vocabulary_size: Count = 39
    """Words of the lexicon that training and test sentences are made of; the tiny base knows these."""
    num_words: tuple[int, int] = (4, 6)
    """Shortest and longest training sentence in words; shorter ones are hard to audit."""
    train_domain_shares: dict[str, Fraction] = {"kan_clean": 0.5, "whatsapp_noisy": 0.5}
    round2_must_win: bool = True
    """Fail unless the comparison says `better`; smaller test sets than the default ones cannot tell."""
    speech: SyntheticSpeech = SyntheticSpeech()


class TinyTraining(Section):
    """AdamW for models of half a million parameters."""

    seed: int = 0
    batch_size: Count = 24
    length_group: Count = 4
    """Batches that are drawn at once and formed by duration, of which one is used."""
    warmup_steps: Count = 50
    final_rate_fraction: Fraction = 0.05
    """Rates fall in a straight line to this share of their peak."""
    weight_decay: float = 0.01
    adam_beta2: Fraction = 0.98
    max_grad_norm: Positive = 1.0


class TinyBase(TinyTraining):
    """How the tiny checkpoint that stands for the published model learns clean, and hardly any noisy, speech."""

    vocabulary_size: Count = 40
    """First words of the lexicon; the base knows no others."""
    num_words: tuple[int, int] = (1, 5)
    """Shortest and longest training sentence in words."""
    num_utterances: Count = 3200
    """Training utterances, seen again and again."""
    noisy_fraction: Fraction = 0.05
    """Share of `whatsapp_noisy` among them; a base that never met noise answers it with endless repetitions."""
    num_test_utterances: Count = 100
    """Of each of the test sets that the WERs in build.json come from."""
    num_encoder_steps: Count = 700
    """First the encoder alone: its frames learn to name words (CTC)."""
    encoder_learning_rate: Positive = 3e-3
    num_steps: Count = 1800
    """Then everything, by the loss on the transcript."""
    learning_rate: Positive = 2e-3
    ctc_weight: Fraction = 0.3
    """Weight of the encoder's loss beside the transcript's."""


class SplicedClips(Section):
    """Clips from which the tiny aligner learns. Pairs are the two ends of a uniform range."""

    sentence_fraction: Fraction = 0.5
    """Clips that are a stretch of a spoken sentence; the others are spliced from single words."""
    sentence_speeds: tuple[float, float] = (0.8, 1.25)
    word_speeds: tuple[float, float] = (0.75, 1.25)
    """Of each spliced word by itself."""
    pause_fraction: Fraction = 0.5
    """Spliced clips with pauses between the words; the others have none."""
    max_pause_seconds: Positive = 0.6
    lead_fraction: Fraction = 0.7
    """Clips that do not begin with the first word at once."""
    max_lead_seconds: Positive = 1.0
    max_tail_seconds: Positive = 0.5
    noise_seconds: Positive = 0.1
    """Beginning of a sentence whose noise fills silence."""
    level_spread_db: Positive = 6.0
    foreign_fraction: Fraction = 0.3
    """Transcripts with words that nobody speaks."""


class AlignerStage(Section):
    """A part of the curriculum."""

    max_words: Count
    """Spoken words of the longest clips; the shortest have two."""
    num_steps: Count
    complete_fraction: Fraction
    """Transcripts that hold every spoken word."""


class TinyAligner(TinyTraining):
    """How the tiny forced aligner learns to find words of clean speech, from the tiny base on."""

    vocabulary_size: Count = 40
    """First words of the lexicon, those that the base knows."""
    num_sentences: Count = 1200
    """Spoken sentences that clips are made of."""
    sentence_words: Count = 8
    noisy_fraction: Fraction = 0.15
    """Share of `whatsapp_noisy` among them."""
    num_clips: Count = 1500
    """Clips of each stage, seen again and again."""
    clips: SplicedClips = SplicedClips()
    stages: tuple[AlignerStage, ...] = (
        AlignerStage(max_words=3, num_steps=600, complete_fraction=0.1),
        AlignerStage(max_words=5, num_steps=500, complete_fraction=0.3),
        AlignerStage(max_words=8, num_steps=900, complete_fraction=0.5),
    )
    learning_rate: Positive = 2e-3
    boundary_spread_bins: Positive = 1.0
    """Standard deviation of the target around a boundary, in time classes of 80 ms."""
    absent_weight: Fraction = 0.3
    """Of the loss of words that are not spoken, whose times should be flat."""
    spoken_weight: Fraction = 0.3
    """Of the encoder's own loss: its frames name the spoken words (CTC)."""
    position_weight: Fraction = 0.3
    """Of the loss of audio positions that tell their own time; afterwards nothing asks them."""
    position_fraction: Fraction = 0.25
    """Audio positions of a batch that are asked."""
    attention_weight: Fraction = 1.0
    """Of the loss of one attention head whose slots should look at the frames of their word."""
    attention_layer: int = 1
    """Layer of that head, from 0."""
    num_test_utterances: Count = 160
    """Of each of the two test sets that the values in build.json come from."""
    num_test_words: tuple[int, int] = (4, 8)
    """Shortest and longest test sentence in words."""
