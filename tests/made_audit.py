"""A whole audit in seconds: real sound files and every file that `caspi audit` writes, from a simulated aligner.

The aligner's power is planted: true words score `SEPARATION` above wrong ones.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caspi import audit
from caspi.config import Audit, AuditPage, Calibration, Recipe
from caspi.model.aligners import Workers
from caspi.model.aligners.battery import Task
from caspi.records import Utterance, write_jsonl
from caspi.speech.alignment.quality import Alignment, Outcome, Pair
from caspi.speech.corpora.audio import SAMPLE_RATE_HZ, write_audio
from caspi.speech.seeds import seeded_generator
from caspi.speech.text import num_letters

SEPARATION = 4.0
WORD_SECONDS, LEAD_SECONDS = 0.30, 0.25
LETTERS = "אבגדהוזחטיכלמנסעפצקרשת"
CALIBRATION = Calibration(num_control_utterances=20, num_dose_utterances=10, num_self_test_sentences=0)


def made_text(number: int) -> str:
    """Six words that no other number has."""
    rng = np.random.default_rng(number)
    return " ".join("".join(rng.choice(list(LETTERS), 4)) + LETTERS[number % 22] for _ in range(6))


def made_corpus(folder: Path, count: int, texts: Mapping[int, str] | None = None, num_sounds: int = 12) -> Path:
    """A manifest of `count` utterances in two domains over a few different sound files; some texts may be given."""
    for number in range(num_sounds):
        write_audio(folder / f"{number}.flac", made_sound(number))
    duration = 2 * LEAD_SECONDS + 6 * WORD_SECONDS
    utterances = [
        Utterance(
            id=f"clip-{number:05}",
            audio_filepath=f"{number % num_sounds}.flac",
            text=(texts or {}).get(number, made_text(number)),
            duration=duration,
            domain=("kan_clean", "whatsapp_noisy")[number % 2],
        )
        for number in range(count)
    ]
    write_jsonl(folder / "manifest.jsonl", utterances)
    return folder / "manifest.jsonl"


def made_sound(number: int) -> np.ndarray:
    """Six bursts of a voice-like tone with pauses."""
    rng = np.random.default_rng(number)
    time = np.arange(round(WORD_SECONDS * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    words = []
    for _ in range(6):
        pitch = rng.uniform(110, 220)
        tone = sum(np.sin(2 * np.pi * pitch * k * time) / k for k in range(1, 15))
        words.append(0.2 * tone * np.hanning(len(time)))
    lead = np.zeros(round(LEAD_SECONDS * SAMPLE_RATE_HZ))
    samples = np.concatenate([lead, *words, lead])
    return (samples + rng.normal(0, 0.001, len(samples))).astype(np.float32)


def simulated_aligner(bad: frozenset[str]) -> Any:
    """Stands in for `audit.align`; the utterances named are wrongly transcribed."""

    def align(tasks: Sequence[Task], workers: Workers, recipe: Recipe) -> dict[str, Outcome]:
        return {task.id: outcome(task, task.id in bad) for task in tasks}

    return align


def outcome(task: Task, is_bad: bool) -> Outcome:
    """What is missing from the audio or from the text stays missing: words keep the places they were spoken at."""
    spoken = next(plan.words for plan in task.planned if plan.control == "original")
    places = {word: index for index, word in enumerate(spoken)}
    mask = np.zeros(round(100 * task.duration_seconds), dtype=bool)
    mask[25:-25] = True
    pairs = {}
    for plan in task.planned:
        rng = seeded_generator(5, plan.control, task.id)
        heard = 0 if is_bad or plan.distortion == "reversed" or plan.control == "K5_order" else len(spoken)
        if plan.distortion == "truncated":
            heard = int(plan.amount * heard)
        is_part = len(plan.words) < len(spoken)
        count = len(spoken) if is_part else len(plan.words)
        slots = [places.get(word, i) if is_part else i for i, word in enumerate(plan.words)]
        step = 6 * WORD_SECONDS / count
        spans = tuple((LEAD_SECONDS + i * step, LEAD_SECONDS + (i + 1) * step) for i in slots)
        is_heard = [places.get(word, heard) < heard for word in plan.words]
        scores = [float(rng.normal(SEPARATION if one else 0.0, 1)) for one in is_heard]
        alignment = Alignment(spans, tuple(scores), float(np.mean(scores)))
        letters = tuple(num_letters(word) for word in plan.words)
        pairs[plan.control] = Pair(letters, len(" ".join(plan.words)), task.duration_seconds, mask, alignment)
    return Outcome(task.id, pairs, {}, float(mask.sum() / 100), 30.0)


def run_made_audit(
    manifest: Path, output: Path, bad: frozenset[str], monkeypatch: pytest.MonkeyPatch, **changes: Any
) -> tuple[int, Recipe]:
    """Exit code of `caspi audit` with the simulated aligner, and its recipe."""
    settings: dict[str, Any] = {"manifest": manifest, "output": output, "sample_rate": 1.0, "backend": "uniform"}
    settings["page"] = AuditPage(max_clips=2)
    recipe = Recipe(audit=Audit(**(settings | {"calibration": CALIBRATION} | changes)))
    with monkeypatch.context() as patch:
        patch.setattr(audit, "align", simulated_aligner(bad))
        return audit.run(recipe), recipe
