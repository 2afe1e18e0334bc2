"""Items are worked on in as many threads as they need, and results come in lists of all that is there."""

import threading
import time
from itertools import chain

import pytest

from crossover.programs.threads import HELD_UP, in_threads


@pytest.mark.parametrize("threads", [1, 2, 8])
@pytest.mark.parametrize("when_needed", [False, True])
def test_every_item_is_worked_on_once(threads: int, when_needed: bool) -> None:
    results = in_threads(lambda n: -n, range(1, 501), threads, when_needed=when_needed)
    assert sorted(chain.from_iterable(results)) == list(range(-500, 0))


def test_items_that_only_compute_get_one_thread() -> None:
    began: list[threading.Thread] = []

    def apply(n: int) -> None:
        if threading.current_thread() not in began:
            began.append(threading.current_thread())

    assert sum(map(len, in_threads(apply, range(500), 8, when_needed=True))) == 500
    assert len(began) == 1


def test_items_that_wait_get_all_threads() -> None:
    together = threading.Barrier(8)

    def apply(n: int) -> int:
        if n == 0:
            time.sleep(2 * HELD_UP)
        elif n > 1:
            # Passed by eight threads at once alone.
            together.wait(timeout=60)
        return n

    assert sorted(chain.from_iterable(in_threads(apply, range(10), 8, when_needed=True))) == list(range(10))


def test_the_first_error_ends_the_work_after_what_is_under_way() -> None:
    both, seen = threading.Barrier(2), list[int]()

    def apply(n: int) -> int:
        if n < 2:
            both.wait(timeout=60)
        if n == 0:
            raise KeyboardInterrupt
        return n

    with pytest.raises(KeyboardInterrupt):
        seen.extend(chain.from_iterable(in_threads(apply, range(10**9), 2)))
    assert 1 in seen
    assert len(seen) < 10**6
