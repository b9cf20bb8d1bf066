"""Nested stratified sampling, and whether the intervals hold what they promise."""

import itertools

import numpy as np
import pytest

from caspi.config import Estimation
from caspi.speech.alignment.sampling import (
    Stratum,
    clopper_pearson,
    design_effect,
    draw_sample,
    estimate_share,
    largest_remainder,
    samples_needed,
    wilson,
)

SHARES = {"whatsapp_noisy": 0.4, "kan_clean": 0.4, "long_tail": 0.2}
SETTINGS = Estimation()


def population(noisy: int, clean: int, tail: int) -> tuple[list[str], list[str]]:
    domains = ["whatsapp_noisy"] * noisy + ["kan_clean"] * clean + ["long_tail"] * tail
    return [f"u{i}" for i in range(len(domains))], domains


def strata(*parts: tuple[int, int, int]) -> dict[str, Stratum]:
    """(population, audited, hits) of each domain, every item its own group."""
    made = {}
    for number, (size, audited, hits) in enumerate(parts):
        groups = tuple(f"{number}-{i}" for i in range(audited))
        made[f"d{number}"] = Stratum(size, np.arange(audited) < hits, groups)
    return made


def test_a_larger_sample_contains_the_smaller_one() -> None:
    ids, domains = population(400, 500, 100)
    samples = [set(draw_sample(ids, domains, n, SHARES, 7).indices) for n in (50, 100, 200, 400, 1000)]
    assert all(small < large for small, large in itertools.pairwise(samples))


def test_the_order_of_the_manifest_does_not_matter() -> None:
    ids, domains = population(40, 50, 10)
    forward = {ids[i] for i in draw_sample(ids, domains, 30, SHARES, 7).indices}
    backward_ids = ids[::-1]
    backward = {backward_ids[i] for i in draw_sample(backward_ids, domains[::-1], 30, SHARES, 7).indices}
    assert forward == backward


def test_the_guides_shares_are_kept_to_the_last_utterance() -> None:
    ids, domains = population(5000, 5000, 5000)
    assert draw_sample(ids, domains, 2500, SHARES, 1).drawn == {
        "kan_clean": 1000,
        "long_tail": 500,
        "whatsapp_noisy": 1000,
    }


def test_a_short_domain_is_taken_whole_and_the_rest_goes_to_the_others() -> None:
    ids, domains = population(300, 300, 5)
    sample = draw_sample(ids, domains, 100, SHARES, 1)
    assert sample.drawn == {"kan_clean": 48, "long_tail": 5, "whatsapp_noisy": 47}
    assert sample.redistributed == {"kan_clean": 8, "long_tail": -15, "whatsapp_noisy": 7}
    assert len(sample.indices) == 100


def test_a_domain_without_a_share_gets_its_share_of_the_population() -> None:
    sample = draw_sample([str(i) for i in range(100)], ["podcast"] * 60 + ["radio"] * 40, 10, SHARES, 1)
    assert sample.drawn == {"podcast": 6, "radio": 4}


def test_everything_is_taken_when_everything_is_asked_for() -> None:
    ids, domains = population(9, 1, 3)
    assert draw_sample(ids, domains, 99, SHARES, 1).indices == list(range(13))


def test_largest_remainders_add_up() -> None:
    assert largest_remainder(7358, SHARES) == {"whatsapp_noisy": 2943, "kan_clean": 2943, "long_tail": 1472}


def test_the_estimate_weighs_domains_by_their_population() -> None:
    """The guide's own rates: 7.7 % of the sample, but 4.7 % of a population with one noisy utterance in ten."""
    interval = estimate_share(strata((1000, 100, 12), (8700, 100, 4), (300, 50, 3)), SETTINGS, 1)
    assert interval.point == pytest.approx(100 * (0.1 * 0.12 + 0.87 * 0.04 + 0.03 * 0.06))
    assert interval.lower < interval.point < interval.upper


def test_a_census_has_no_sampling_error() -> None:
    interval = estimate_share(strata((100, 100, 9), (50, 50, 1)), SETTINGS, 1)
    assert (interval.lower, interval.upper) == (interval.point, interval.point)
    assert interval.method == "census"


def test_decoys_leave_uncertainty_even_in_a_census() -> None:
    interval = estimate_share(strata((300, 300, 0)), SETTINGS, 1, finite=False)
    assert interval.point == 0
    assert 0.5 < interval.upper < 1.5


def test_known_intervals_come_out() -> None:
    """Wilson: Newcombe 1998, table I, 81 of 263; Clopper-Pearson: rule 1 - alpha/2 ** (1/n) at zero hits."""
    assert wilson(81 / 263, 263, 0.05) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert clopper_pearson(0, 50, 0.10) == pytest.approx((0, 1 - 0.05 ** (1 / 50)))
    assert clopper_pearson(50, 50, 0.10)[1] == 1.0


@pytest.mark.parametrize(
    ("sizes", "audited", "shares"),
    [
        ((7000, 64_000, 2579), (1000, 1000, 500), (0.123, 0.038, 0.062)),
        ((400, 300, 60), (60, 60, 30), (0.10, 0.10, 0.10)),
        ((60_000, 12_000, 1579), (120, 120, 60), (0.10, 0.03, 0.06)),
        ((500, 9000, 500), (120, 120, 60), (0.30, 0.015, 0.10)),
        ((3000, 66_000, 2000), (80, 80, 40), (0.20, 0.03, 0.10)),
        ((60_000, 12_000, 1579), (40, 40, 20), (0.10, 0.03, 0.06)),
    ],
    ids=["the guide", "small corpus", "mostly noisy", "heavy and nearly clean", "heavy with few hits", "tiny sample"],
)
def test_the_interval_covers_the_truth_as_often_as_it_promises(
    sizes: tuple[int, ...], audited: tuple[int, ...], shares: tuple[float, ...]
) -> None:
    rng = np.random.default_rng(5)
    bad = [round(n * p) for n, p in zip(sizes, shares, strict=True)]
    truth = 100 * sum(bad) / sum(sizes)
    repetitions, covered, below_upper = 1500, 0, 0
    for _ in range(repetitions):
        hits = [rng.hypergeometric(b, n - b, m) for b, n, m in zip(bad, sizes, audited, strict=True)]
        interval = estimate_share(strata(*zip(sizes, audited, hits, strict=True)), SETTINGS, 1)
        covered += interval.lower <= truth <= interval.upper
        below_upper += truth <= interval.upper
    assert covered / repetitions >= 0.88
    assert below_upper / repetitions >= 0.94


def test_utterances_of_one_recording_count_for_less() -> None:
    hits = np.repeat([True] * 4 + [False] * 36, 10)
    together = tuple(f"g{i // 10}" for i in range(400))
    alone = tuple(f"g{i}" for i in range(400))
    clustered = design_effect({"d": Stratum(4000, hits, together)}, 2000, 1)
    assert clustered == pytest.approx(10, rel=0.15)  # identical items in groups of 10
    assert design_effect({"d": Stratum(4000, hits, alone)}, 2000, 1) == 1.0
    wide = estimate_share({"d": Stratum(4000, hits, together)}, SETTINGS, 1)
    narrow = estimate_share({"d": Stratum(4000, hits, alone)}, SETTINGS, 1)
    assert wide.upper - wide.lower > 2 * (narrow.upper - narrow.lower)


@pytest.mark.parametrize(("share", "needed"), [(5, 239), (6, 398), (7, 748), (8, 1769), (9, 7400)])
def test_the_sample_size_that_proves_less_than_ten_percent_is_the_published_one(share: float, needed: int) -> None:
    assert samples_needed(share, 10, 10**9, SETTINGS, 1.0) == pytest.approx(needed, abs=1)


def test_a_finite_population_needs_fewer_samples() -> None:
    assert samples_needed(9.5, 10, 73_579, SETTINGS, 1.0) == pytest.approx(21_424, abs=2)
