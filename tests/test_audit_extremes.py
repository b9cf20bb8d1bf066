"""From a folder of odd clips to a decision, through the command line: everything is counted, nothing crashes."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caspi.cli import main
from caspi.records import read_jsonl, write_jsonl
from caspi.speech.corpora.audio import write_audio
from caspi.speech.synthetic.synth_corpus import CorpusRow, plan_audit_corpus, write_corpus

pytestmark = pytest.mark.espeak

NO_CONTROLS = [
    f"--calibration.num-{name}" for name in ("control-utterances=0", "dose-utterances=0", "self-test-sentences=0")
]


def speak(folder: Path, count: int, defects: float, seed: int) -> list[CorpusRow]:
    plans = plan_audit_corpus(count, defects, seed, domain_shares={"kan_clean": 1.0}, num_words=(4, 6))
    return list(read_jsonl(write_corpus(folder, plans, num_processes=1), CorpusRow))


def prepare_and_audit(rows: list[CorpusRow], folder: Path) -> tuple[int, dict[str, Any], list[dict[str, Any]]]:
    """Exit code and report of the audit, and what `prepare` had put aside."""
    write_jsonl(folder / "corpus.jsonl", rows)
    data, output = folder / "data", folder / "audit"
    assert main(["prepare", "--manifest", str(folder / "corpus.jsonl"), "--output", str(data)]) == 0
    flags = ["--manifest", str(data / "manifest.jsonl"), "--output", str(output), "--backend", "tts-dtw"]
    code = main(
        ["audit", *flags, "--sample-rate", "1.0", "--num-processes", "1", "--embed-audio", "none", *NO_CONTROLS]
    )
    quarantined = (data / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()
    report = json.loads((output / "alignment_report.json").read_text(encoding="utf-8"))
    return code, report, [json.loads(line) for line in quarantined]


def test_a_good_aligner_on_forty_percent_bad_data_says_stop_and_not_that_it_cannot_tell(tmp_path: Path) -> None:
    code, report, _ = prepare_and_audit(speak(tmp_path, 50, 0.4, 31), tmp_path)
    assert (code, report["decision"], report["decision_code"]) == (1, "STOP", "DATA_QUALITY")
    assert report["audit_valid"]
    assert report["calibration"]["separable_mass"] >= 0.5
    assert 30 <= report["low_quality_percentage"] <= 50


def test_clips_without_length_of_ten_minutes_of_one_word_and_without_text_are_counted(tmp_path: Path) -> None:
    rows = speak(tmp_path, 36, 0.0, 32)
    template = rows[0]
    write_audio(tmp_path / "audio/nothing.wav", np.zeros(0, dtype=np.float32))
    noise = np.random.default_rng(0).normal(0, 0.01, 600 * 16_000).astype(np.float32)
    write_audio(tmp_path / "audio/ten-minutes.wav", noise)
    one_word = [
        row.model_copy(update={"id": f"one-word-{i}", "text": row.text.split()[0], "domain": "one_word"})
        for i, row in enumerate(rows[:3])
    ]
    odd = {
        "zero-seconds": {"audio_filepath": "audio/nothing.wav"},
        "ten-minutes": {"audio_filepath": "audio/ten-minutes.wav"},
        "no-text": {"text": " "},
        "only-dashes": {"text": "- -"},
    }
    rows += one_word + [template.model_copy(update={"id": id_, **changes}) for id_, changes in odd.items()]
    _, report, quarantined = prepare_and_audit(rows, tmp_path)

    put_aside = {line["id"]: line["reason"] for line in quarantined}
    assert put_aside == {
        "zero-seconds": "AUDIO_EMPTY",
        "no-text": "EMPTY_TRANSCRIPT",
        "only-dashes": "NO_LETTERS",
    }
    found = {row["sample_id"]: row for row in report["detailed_metrics"]}
    assert len(found) + len(put_aside) == len(rows)
    assert report["total_samples"] == len(found)
    assert found["ten-minutes"]["reasons"] == ["TOO_LONG"]
    assert all(found[row.id]["words"] == 1 and found[row.id]["low_quality"] for row in one_word)
    low = Counter(row["domain"] for row in report["detailed_metrics"] if row["low_quality"])
    assert {d: row["low_quality_count"] for d, row in report["domain_statistics"].items()} == {
        "kan_clean": low["kan_clean"],
        "one_word": 3,
    }


def test_a_domain_too_small_to_be_judged_counts_as_bad_in_the_upper_bound(tmp_path: Path) -> None:
    rows = speak(tmp_path, 40, 0.0, 33)
    small = [row.model_copy(update={"domain": "podcast"}) for row in rows[:4]]
    code, report, _ = prepare_and_audit(small + rows[4:], tmp_path)
    podcast = report["domain_statistics"]["podcast"]
    assert podcast["status"] == "too_small"
    assert podcast["small_stratum"]
    estimate = report["estimate"]
    unknown_pct = 4 / 40 * (100 - podcast["low_quality_pct"])
    expected = pytest.approx(estimate["raw"]["upper"] + unknown_pct, abs=1e-4)
    assert estimate["upper_with_unjudged_domains"] == expected
    assert (code, report["decision"], report["decision_code"]) == (0, "CAUTION", "NOT_PROVEN_BELOW_10")
