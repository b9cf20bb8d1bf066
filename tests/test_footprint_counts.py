"""Memory, FLOPs and launches of the full-size step, counted on tensors without contents, equal the closed forms."""

import pytest

from benchmarks import saved_bytes, step_counts
from benchmarks.measure import Timing, alternate, ratios


@pytest.mark.parametrize("stage", ["B", "A"])
def test_saved_bytes_of_the_full_size_step_are_predicted_to_two_percent(stage: str) -> None:
    counted = saved_bytes.count(stage, num_clips=8, mean_seconds=5.7)
    assert counted.counted_bytes > 3e9
    assert counted.error_fraction == pytest.approx(0.0, abs=0.02)


@pytest.mark.parametrize("stage", ["B", "A"])
def test_flops_of_the_full_size_step_are_predicted_to_two_percent(stage: str) -> None:
    assert step_counts.count_flops(stage)["ratio"] == pytest.approx(1.0, abs=0.02)


def test_a_packed_step_launches_fifteen_times_less_than_micro_batches_of_two_and_never_waits() -> None:
    counts = step_counts.count_operations("B", num_clips=64)
    ours, stock = counts["ours, packed"], counts["stock class, 2 x 32"]
    assert ours["syncs"] == 0
    assert stock["syncs"] > 0
    assert stock["operations"] > 15 * ours["operations"]


def test_subjects_are_timed_in_turn_and_compared_round_by_round() -> None:
    order: list[str] = []
    timings = alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, num_rounds=2, num_warmups=1)
    assert "".join(order) == "ababab"
    assert set(timings) == {"a", "b"}
    assert ratios({"a": Timing((4.0, 9.0, 2.0)), "b": Timing((2.0, 3.0, 2.0))}, ours="b") == {"a": 2.0}
