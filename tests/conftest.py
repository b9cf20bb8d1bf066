"""What all tests share: one thread, no network, and synthetic Hebrew corpora made once per session."""

import importlib.util
import os
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

# Before torch is imported: on small machines one thread is several times faster than two.
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

HAS_ESPEAK = importlib.util.find_spec("espeakng_loader") is not None
WITHOUT_ESPEAK = "the espeak-ng engine is not installed: uv sync --extra demo"


class Corpus(NamedTuple):
    """A synthetic corpus on disk; truth by utterance id (`synth_corpus.SyntheticTruth`)."""

    folder: Path
    manifest: Path
    truth: dict


class AsrCorpus(NamedTuple):
    """A training corpus of 40 words (splits train and validation) and the manifests of the four test sets by name."""

    folder: Path
    manifest: Path
    truth: dict
    test_sets: dict[str, Path]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "espeak: needs the espeak-ng engine of the extra `demo`; skipped without it")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not HAS_ESPEAK:
        for item in items:
            if item.get_closest_marker("espeak"):
                item.add_marker(pytest.mark.skip(reason=WITHOUT_ESPEAK))


@pytest.fixture(scope="session")
def audit_corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """30 utterances: 12 clean, 12 noisy, 6 long; 6 of them with a defect, one of each kind."""
    if not HAS_ESPEAK:
        pytest.skip(WITHOUT_ESPEAK)
    from caspi.speech.synthetic.defects import DEFECTS
    from caspi.speech.synthetic.synth import Domain
    from caspi.speech.synthetic.synth_corpus import plan_audit_corpus, read_truth, write_corpus

    shares: dict[Domain, float] = {"kan_clean": 0.4, "whatsapp_noisy": 0.4, "long_tail": 0.2}
    folder = tmp_path_factory.mktemp("audit_corpus")
    plans = plan_audit_corpus(30, 0.2, seed=11, domain_shares=shares, kinds=DEFECTS)
    return Corpus(folder, write_corpus(folder, plans, num_processes=1), read_truth(folder))


@pytest.fixture(scope="session")
def asr_corpus(tmp_path_factory: pytest.TempPathFactory) -> AsrCorpus:
    """32 training and 8 validation utterances of 1 to 4 words, half of them noisy; 6 utterances per test set."""
    if not HAS_ESPEAK:
        pytest.skip(WITHOUT_ESPEAK)
    from caspi.speech.synthetic.synth import Domain
    from caspi.speech.synthetic.synth_corpus import plan_test_sets, plan_training_corpus, read_truth, write_corpus

    folder = tmp_path_factory.mktemp("asr_corpus")
    shares: dict[Domain, float] = {"kan_clean": 0.5, "whatsapp_noisy": 0.5}
    plans = plan_training_corpus(32, 8, seed=12, vocabulary_size=40, num_words=(1, 4), domain_shares=shares)
    manifest = write_corpus(folder / "train", plans, num_processes=1)
    sets = plan_test_sets(6, seed=12, vocabulary_size=40)
    test_sets = {name: write_corpus(folder / name, plans, num_processes=1) for name, plans in sets.items()}
    return AsrCorpus(folder, manifest, read_truth(folder / "train"), test_sets)


@pytest.fixture
def without_espeak(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which the engine is not installed."""
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
