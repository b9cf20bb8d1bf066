"""What the audit's codes and checks mean, in words for readers."""

from collections.abc import Mapping
from typing import Any

REASONS = {
    "LOW_COVERAGE": "too little of the text is found in the audio",
    "LOW_CONFIDENCE": "the match is no better than with a wrong transcript",
    "UNTRANSCRIBED_SPEECH": "speech without text",
    "LENGTH_MISMATCH": "too much or too little text for the speech",
    "DECOY_WINS": "a decoy transcript fits at least as well",
    "NO_SPEECH": "hardly any speech",
    "EMPTY_TRANSCRIPT": "the transcript has no word",
    "TOO_LONG": "too long for the aligner",
    "AUDIO_ERROR": "the audio cannot be read",
    "ALIGN_ERROR": "the alignment failed",
}
CHECKS = {
    "reversed_auc": "AUC of the audio against itself backwards",
    "num_utterances": "utterances compared with a decoy",
    "separable_mass": "transcripts above the 99th percentile of decoys (else blind)",
    "false_acceptance": "decoys accepted as good",
    "failed_fraction": "alignments that failed",
    "separable_mass_full": "transcripts above the 99th percentile of decoys",
    "auc_lower_bound": "AUC of transcripts against decoys, lower 95 % bound",
    "false_acceptance_upper_bound": "decoys accepted as good, upper 95 % bound",
    "mean_detection": "planted defects found, mean over their kinds",
    "dose_correlation": "rank correlation of coverage with replaced words",
    "harmless_rise_lower_bound": "rise of flags under harmless changes, lower bound",
}
AT_MOST = frozenset(
    {
        "false_acceptance",
        "failed_fraction",
        "false_acceptance_upper_bound",
        "dose_correlation",
        "harmless_rise_lower_bound",
    }
)
CONTROLS = {
    "K1_shuffle_similar": ("another transcript of the same length", "flag it"),
    "K2_truncated": ("the end of the audio cut off", "flag it"),
    "K3_dropped": ("a third to a half of the words left out", "flag it"),
    "K4_extra": ("foreign words put in", "flag it"),
    "K5_order": ("the words in another order", "flag it"),
    "K6_subst50": ("half of the words replaced", "flag it"),
    "K7_reversed": ("the audio backwards", "flag it"),
    "P1_gain": ("14 dB softer", "let it pass"),
    "P1_band": ("telephone band", "let it pass"),
    "P1_slower": ("5 % slower", "let it pass"),
    "P1_faster": ("5 % faster", "let it pass"),
    "P1_silence": ("half a second of silence before it", "let it pass"),
}
STATUS = {
    "valid": ("✓", "good", "valid: it tells right transcripts from wrong ones"),
    "degraded": ("△", "unsure", "degraded: it tells right transcripts from wrong ones only in part"),
    "invalid": ("✗", "bad", "invalid: it makes no statement about the data"),
    "too_small": ("·", "", "too few utterances to judge alone"),
}
ALERTS = {None: "", "high_risk_15": "above 15 %: listen before training", "over_20": "above 20 %: high risk"}


def reasons_in_words(
    finding: Mapping[str, Any], usual_letters_per_second: float | None, max_untranscribed_seconds: float
) -> list[str]:
    """Why this clip is low quality, with its own figures."""
    return [_reason(code, finding, usual_letters_per_second, max_untranscribed_seconds) for code in finding["reasons"]]


def _reason(code: str, row: Mapping[str, Any], usual: float | None, max_untranscribed_seconds: float) -> str:
    longest, speech = row["longest_untranscribed_s"], row["speech_coverage"]
    if code == "LOW_COVERAGE" and row["alignment_coverage"] == 0:
        return "none of the text is found in the audio"
    if code == "LOW_COVERAGE":
        return f"only {100 * row['alignment_coverage']:.0f} % of the text is found in the audio"
    if code == "UNTRANSCRIBED_SPEECH" and longest is not None and longest > max_untranscribed_seconds:
        return f"{longest:.1f} s of speech has no text"
    if code == "UNTRANSCRIBED_SPEECH" and speech is not None:
        return f"{100 * (1 - speech):.0f} % of the speech has no text"
    if code == "LENGTH_MISMATCH" and row["letters_per_second"] is not None and usual is not None:
        amount = "too much" if row["letters_per_second"] > usual else "too little"
        return (
            f"{amount} text: {row['letters_per_second']:.1f} letters per second of speech, {usual:.1f} are usual here"
        )
    if code == "NO_SPEECH" and row["speech_seconds"] is not None:
        return f"hardly any speech: {row['speech_seconds']:.1f} s"
    if row["error"]:
        return f"{REASONS[code]}: {row['error']}"
    return REASONS[code]
