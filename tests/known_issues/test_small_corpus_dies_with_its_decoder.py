"""One file that crashed its decoder ended `caspi prepare` of fewer than 256 files, and any audit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from caspi.records import Rejected, Utterance, read_jsonl, write_jsonl

PLANTED = """
import os, signal, soundfile

original = soundfile.SoundFile.__init__

def init(self, file, *args, **kwargs):
    if isinstance(file, int) and os.readlink(f"/proc/self/fd/{file}").endswith("guilty.flac"):
        os.kill(os.getpid(), signal.SIGSEGV)
    original(self, file, *args, **kwargs)

soundfile.SoundFile.__init__ = init
"""
"""A decoder that dies of one file, in whatever process it runs."""
NAMES = ("a", "guilty", "b", "c")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "planted").mkdir()
    (folder / "planted" / "sitecustomize.py").write_text(PLANTED)
    rng = np.random.default_rng(0)
    for name in NAMES:
        soundfile.write(folder / f"{name}.flac", 0.1 * rng.standard_normal(24_000), 16_000)
    return folder


def caspi(corpus: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(corpus / "planted")}
    command = [sys.executable, "-m", "caspi", *arguments]
    ended = subprocess.run(command, cwd=corpus, env=environment, capture_output=True, text=True, check=False)
    assert "Traceback" not in ended.stderr, ended.stderr
    return ended


def test_prepare_counts_the_file_and_keeps_the_others(corpus: Path) -> None:
    rows = [{"id": name, "audio_filepath": f"{name}.flac", "text": "שלום", "domain": "kan_clean"} for name in NAMES]
    (corpus / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert caspi(corpus, "prepare", "--manifest", "m.jsonl").returncode == 0
    (rejected,) = read_jsonl(corpus / "data" / "quarantine.jsonl", Rejected)
    assert (rejected.id, rejected.reason) == ("guilty", "AUDIO_CRASHED_DECODER")
    assert "SIGSEGV" in rejected.detail


@pytest.mark.slow
def test_an_audit_counts_the_file_and_judges_the_others(corpus: Path) -> None:
    row = {"text": "שלום עולם", "duration": 1.5, "domain": "kan_clean"}
    rows = [Utterance(id=name, audio_filepath=f"{name}.flac", **row) for name in NAMES]  # type: ignore[arg-type]
    write_jsonl(corpus / "prepared.jsonl", rows)
    flags = ("--backend", "uniform", "--sample-rate", "1", "--num-processes", "1")
    ended = caspi(corpus, "audit", "--manifest", "prepared.jsonl", *flags)
    assert ended.returncode == 3, ended.stdout + ended.stderr
    report = json.loads((corpus / "phase0_audit_results" / "alignment_report.json").read_text())
    errors = {row["sample_id"]: row["error"] for row in report["detailed_metrics"]}
    assert errors.keys() == set(NAMES)
    assert "SIGSEGV" in errors.pop("guilty")
    assert not any("SIGSEGV" in str(error) for error in errors.values())
