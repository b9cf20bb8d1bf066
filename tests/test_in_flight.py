import threading
import time

import pytest

from caspi.ops.comparison.in_flight import results_as_completed


def test_never_more_than_the_bound_are_worked_on_and_every_result_comes() -> None:
    lock = threading.Lock()
    running, most = 0, 0

    def work(item: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.005)
        with lock:
            running -= 1
        return item * item

    assert sorted(results_as_completed(work, range(40), 4)) == [item * item for item in range(40)]
    assert 1 < most <= 4


def test_with_one_everything_happens_here_and_in_order() -> None:
    threads = list(results_as_completed(lambda item: (item, threading.current_thread()), range(5), 1))
    assert threads == [(item, threading.current_thread()) for item in range(5)]


def test_items_are_taken_only_when_there_is_room() -> None:
    release = threading.Event()
    taken = []

    def items() -> object:
        for item in range(10):
            taken.append(item)
            yield item

    results = results_as_completed(lambda item: release.wait(30) and item, items(), 3)  # type: ignore[arg-type]
    threading.Timer(0.1, release.set).start()
    next(results)
    assert len(taken) <= 4
    results.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("num_concurrent", [1, 3])
def test_an_exception_ends_it(num_concurrent: int) -> None:
    begun = []

    def work(item: int) -> int:
        begun.append(item)
        if item == 2:
            raise RuntimeError("no")
        return item

    with pytest.raises(RuntimeError, match="no"):
        list(results_as_completed(work, range(1000), num_concurrent))
    assert len(begun) < 1000
