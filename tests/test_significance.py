import numpy as np
import pytest
import scipy.stats
from sclite_pair import sclite_pair

from caspi.speech.scoring.significance import (
    Blocks,
    Interval,
    bootstrap,
    effective_num_blocks,
    interval,
    matched_pairs_test,
    num_utterances_needed,
    permutation_p_value,
    segment_gaps,
    slot_errors,
    sum_by_block,
    verdict,
)

WORD_ERROR_RATE = 0.125
IMPROVEMENT = 0.08
"""Relative difference between the simulated systems."""


def simulate(rng: np.random.Generator, num_blocks: int, utterances_per_block: int, improvement: float) -> Blocks:
    """Systems with WERs of 0.125 (1 ± improvement / 2), on blocks that differ in difficulty (beta, mean 0.125)."""
    num_words = rng.integers(5, 20, size=(num_blocks, utterances_per_block))
    difficulty = rng.beta(2, 14, size=(num_blocks, 1))
    errors = [rng.binomial(num_words, np.clip(difficulty * (1 + side * improvement / 2), 0, 1)) for side in (1, -1)]
    return Blocks(errors[0].sum(1), errors[1].sum(1), num_words.sum(1))


def difference_interval(blocks: Blocks, num_draws: int, rng: np.random.Generator) -> Interval | None:
    draws = bootstrap([blocks], num_draws, rng)
    gaps = (draws.errors_2 - draws.errors_1)[:, 0] / draws.num_reference[:, 0]
    return interval(gaps, len(blocks.num_reference), 0.95)


@pytest.mark.parametrize(("num_blocks", "per_block"), [(17, 1), (20, 10), (40, 5), (100, 1)])
def test_the_95_percent_interval_covers_the_true_difference_93_to_97_times_in_100(
    num_blocks: int, per_block: int
) -> None:
    rng = np.random.default_rng(5)
    truth = -IMPROVEMENT * WORD_ERROR_RATE
    num_trials, num_covered = 1500, 0
    for _ in range(num_trials):
        found = difference_interval(simulate(rng, num_blocks, per_block, IMPROVEMENT), 400, rng)
        num_covered += found is not None and found.low <= truth <= found.high
    assert 0.93 <= num_covered / num_trials <= 0.97


def test_the_interval_agrees_with_scipys_bootstrap_where_blocks_are_many() -> None:
    blocks = simulate(np.random.default_rng(1), 800, 1, 0.3)
    ours = difference_interval(blocks, 20_000, np.random.default_rng(2))
    theirs = scipy.stats.bootstrap(
        tuple(blocks),
        lambda a, b, n, axis=-1: (b.sum(axis=axis) - a.sum(axis=axis)) / n.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=20_000,
        batch=1000,
        method="percentile",
        rng=np.random.default_rng(3),
    ).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=5e-4)


def test_a_true_difference_is_called_better_and_none_cannot_be_told() -> None:
    rng = np.random.default_rng(7)
    assert verdict(difference_interval(simulate(rng, 600, 1, 0.4), 2000, rng)) == "better"
    assert verdict(difference_interval(simulate(rng, 600, 1, -0.4), 2000, rng)) == "worse"
    assert verdict(difference_interval(simulate(rng, 600, 1, 0.0), 2000, rng)) == "cannot tell"


def test_clustering_by_speaker_widens_an_interval_that_takes_utterances_for_independent() -> None:
    rng = np.random.default_rng(3)
    num_speakers, per_speaker = 12, 30
    num_words = np.full(num_speakers * per_speaker, 10)
    speaker_effect = np.repeat(rng.normal(0.02, 0.04, num_speakers), per_speaker)
    errors_1 = rng.binomial(10, 0.2, size=len(num_words))
    errors_2 = rng.binomial(10, np.clip(0.2 - speaker_effect, 0, 1))
    widths = []
    for groups in (range(len(num_words)), np.repeat(range(num_speakers), per_speaker)):
        blocks = sum_by_block(errors_1.tolist(), errors_2.tolist(), num_words.tolist(), [str(one) for one in groups])
        found = difference_interval(blocks, 4000, rng)
        assert found
        widths.append(found.high - found.low)
    assert widths[1] > 1.5 * widths[0]


def test_blocks_are_sums_by_group_in_order_of_appearance() -> None:
    blocks = sum_by_block([1, 2, 3], [0, 1, 0], [10, 20, 30], ["b", "a", "b"])
    assert [column.tolist() for column in blocks] == [[4, 2], [0, 1], [40, 20]]
    assert blocks.difference == pytest.approx(-5 / 60)


def test_no_interval_without_spread_or_with_one_block() -> None:
    assert interval(np.zeros(100), 50, 0.95) is None
    assert interval(np.arange(100.0), 1, 0.95) is None
    assert verdict(None) == "cannot tell"


def test_effective_blocks_of_a_sum_lie_between_the_smallest_stratum_and_all_blocks() -> None:
    assert effective_num_blocks([20], [0.3]) == pytest.approx(20)
    assert effective_num_blocks([5, 500], [1.0, 1e-9]) == pytest.approx(5)
    assert effective_num_blocks([21, 21], [1.0, 1.0]) == pytest.approx(41)
    assert effective_num_blocks([1, 500], [0.0, 1.0]) == 1


def test_the_permutation_p_value_agrees_with_scipys_exact_test() -> None:
    gaps = np.array([-3, -1, 2, -4, 0, -2, 1, -5, -1, -2])
    blocks = Blocks(np.full(10, 10), 10 + gaps, np.full(10, 50))
    exact = scipy.stats.permutation_test((gaps,), np.sum, permutation_type="samples", n_resamples=2**10).pvalue
    ours = permutation_p_value([blocks], [1 / 500], 100_000, np.random.default_rng(0))
    assert ours == pytest.approx(exact, abs=0.005)


def test_equal_systems_have_a_p_value_of_one() -> None:
    blocks = Blocks(np.array([1, 2]), np.array([1, 2]), np.array([5, 5]))
    assert permutation_p_value([blocks], [0.1], 100, np.random.default_rng(0)) == 1


def test_the_needed_number_of_utterances_gives_the_promised_power() -> None:
    """With 80 % power the true difference lies 1.960 + 0.842 standard errors from 0."""
    assert num_utterances_needed(100, 0.01, 0.01, 0.95, 0.8) == pytest.approx(100 * 2.8016**2, abs=1)
    assert num_utterances_needed(100, 0.0, 0.01, 0.95, 0.8) is None


def test_the_matched_pairs_test_equals_nists_sc_stats() -> None:
    """Recorded from sc_stats 1.3 (Debian sctk 2.4.10), `-t mapsswe -v`: 584 segments, 0.211, 0.940, Z 5.415."""
    found = matched_pairs_test(*sclite_pair())
    assert found
    assert found.num_segments == 584
    assert found.mean_difference == pytest.approx(0.211, abs=5e-4)
    assert found.standard_deviation == pytest.approx(0.940, abs=5e-4)
    assert found.z == pytest.approx(5.415, abs=5e-4)
    assert found.p_value == pytest.approx(2 * scipy.stats.norm.sf(5.4149), rel=1e-3)


def test_segments_are_cut_where_both_systems_get_two_words_right() -> None:
    """By hand: a wrong word, two right ones, an insertion and a wrong word one apart, then only right ones."""
    reference = "a b c d e f g h"
    first = slot_errors(reference, "X b c d i e f g h")
    second = slot_errors(reference, "a b c d e Y g h")
    assert first == [0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]
    assert second == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0]
    assert segment_gaps(first, second, 2) == [1, 0]


def test_the_matched_pairs_test_says_nothing_about_equal_systems_and_takes_empty_texts() -> None:
    assert matched_pairs_test(["a b", "c"], ["a b", "c"], ["a b", "c"]) is None
    found = matched_pairs_test(["a b", "", "c d e", "f"], ["", "x", "c d e", "g"], ["a b", "", "c e", "f"])
    assert found
    assert (found.num_segments, found.mean_difference) == (4, pytest.approx((2 + 1 - 1 + 1) / 4))
