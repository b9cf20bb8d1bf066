"""Work on many items at once, a bounded number of them, in threads."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def results_as_completed(
    work: Callable[[Item], Result], items: Iterable[Item], num_concurrent: int
) -> Iterator[Result]:
    """Results in the order in which they are ready; never more than `num_concurrent` items are being worked on.

    With one, everything happens in the calling thread. An exception of `work` ends it; items that had begun are
    finished first, no further one begins.
    """
    if num_concurrent == 1:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(num_concurrent, thread_name_prefix="in-flight") as pool:
        running: set[Future[Result]] = set()
        for item in items:
            running.add(pool.submit(work, item))
            if len(running) == num_concurrent:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
