"""Looking early: how often it is right, what it saves, and that it changes nothing where it must not."""

import json
from pathlib import Path

import numpy as np
import pytest
from made_audit import made_corpus, run_made_audit

from caspi.config import Audit
from caspi.ops.audit.decision import Verdict, is_settled
from caspi.speech.alignment.looks import at_level_of_look, look_sizes
from caspi.speech.alignment.sampling import Stratum, estimate_share

POPULATION, FULL_SIZE = 73_579, 7358
SETTINGS = Audit()


def simulate(share_bad: float, repetitions: int = 150) -> tuple[float, float]:
    """Share of audits that prove less than 10 %, and mean number of samples."""
    rng = np.random.default_rng(round(1000 * share_bad))
    sizes = look_sizes(FULL_SIZE, POPULATION, SETTINGS)
    estimation = at_level_of_look(SETTINGS, len(sizes)).estimation
    groups = tuple(map(str, range(FULL_SIZE)))
    proven, used = 0, 0
    for _ in range(repetitions):
        hits = rng.permutation(POPULATION)[:FULL_SIZE] < round(share_bad * POPULATION)
        for size in sizes:
            interval = estimate_share({"a": Stratum(POPULATION, hits[:size], groups[:size])}, estimation, 1)
            bands = [(value >= 10) + (value > 15) for value in (interval.lower, interval.upper)]
            if bands[0] == bands[1]:
                break
        proven += interval.upper < 10
        used += size
    return proven / repetitions, used / repetitions


@pytest.mark.parametrize(
    ("share", "proven", "samples"),
    [(0.05, 1.0, 800), (0.08, 1.0, 1883), (0.09, 0.82, 5231)],
)
def test_clean_data_are_proven_with_a_fraction_of_the_sample(share: float, proven: float, samples: int) -> None:
    """AUDIT section 6: 8 % is proven always, with 1,883 samples on average; 9 % in 82 % of audits, with 5,231."""
    found, used = simulate(share)
    assert found == pytest.approx(proven, abs=0.08)
    assert used == pytest.approx(samples, rel=0.15)


def test_ten_percent_is_called_less_no_more_often_than_with_one_look() -> None:
    assert simulate(0.10, 300)[0] <= 0.05 + 1.645 * np.sqrt(0.05 * 0.95 / 300)


@pytest.mark.parametrize(
    ("num_samples", "population", "sizes"),
    [
        (7358, 73_579, [800, 1600, 3200, 7358]),
        (3199, 31_990, [800, 3199]),
        (1600, 16_000, [800, 1600]),
        (1599, 16_000, [1599]),
        (200, 2000, [200]),
        (7358, 7358, [7358]),
    ],
)
def test_looks_save_at_least_half_and_a_census_has_none(num_samples: int, population: int, sizes: list[int]) -> None:
    assert look_sizes(num_samples, population, SETTINGS) == sizes


def test_the_point_rule_and_an_empty_list_look_once() -> None:
    for changes in ({"gate": "point"}, {"looks": ()}):
        assert look_sizes(7358, 73_579, SETTINGS.model_copy(update=changes)) == [7358]


def test_the_looks_share_the_error() -> None:
    assert at_level_of_look(SETTINGS, 1).estimation.confidence_fraction == pytest.approx(0.90)
    assert at_level_of_look(SETTINGS, 4).estimation.confidence_fraction == pytest.approx(0.975)


@pytest.mark.parametrize(
    ("code", "certainty", "expected"),
    [
        ("AUDIT_INVALID", "borderline", True),
        ("PROVEN_BELOW_10", "confirmed", True),
        ("DATA_QUALITY", "confirmed", True),
        ("DATA_QUALITY", "borderline", False),
        ("BETWEEN_10_15", "confirmed", True),
        ("BETWEEN_10_15", "borderline", False),
        ("NOT_PROVEN_BELOW_10", "borderline", False),
        ("REVIEW_FIRST", "confirmed", False),
        ("DEGRADED_ALIGNER", "confirmed", False),
    ],
)
def test_what_more_samples_could_change_is_not_settled(code: str, certainty: str, expected: bool) -> None:
    assert is_settled(Verdict("CAUTION", code, certainty, [])) is expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("num_bad", "expected"),
    [
        (72, [140, 300]),
        pytest.param(0, [140], marks=pytest.mark.slow),
        pytest.param(600, [140], marks=pytest.mark.slow),
    ],
)
def test_an_audit_stops_when_it_knows(
    num_bad: int, expected: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """600 clips, a look at 140 of 300: nothing wrong and everything wrong are known at once, 12 % not."""
    from test_audit import read_report

    manifest = made_corpus(tmp_path / "corpus", 600, num_sounds=1)
    bad = frozenset(f"clip-{i:05}" for i in np.random.default_rng(1).permutation(600)[:num_bad])
    run_made_audit(manifest, tmp_path, bad, monkeypatch, sample_rate=0.5, looks=(140, 200))
    report = read_report(tmp_path)
    looks = report["estimate"]["looks"]
    assert [look["num_samples"] for look in looks] == expected
    assert [look["is_settled"] for look in looks[:-1]] == [False] * (len(expected) - 1)
    assert report["total_samples"] == expected[-1]
    assert report["estimate"]["raw"]["level"] == pytest.approx(0.95)
    lines = (tmp_path / "samples.jsonl").read_text("utf-8").splitlines()
    assert len({json.loads(line)["sample_id"] for line in lines}) == expected[-1]
