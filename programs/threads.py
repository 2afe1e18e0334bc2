"""Apply a function to items in threads, and hand over what it returns as it comes."""

import contextlib
import contextvars
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import NamedTuple, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class _Raised(NamedTuple):
    """What ended a thread."""

    error: BaseException


class _Ended(NamedTuple):
    """A thread has ended."""


def in_threads(apply: Callable[[T], R], items: Iterable[T], threads: int) -> Generator[list[R], None, None]:
    """Yield what `apply` returns for each item, as lists of all that was returned since the one before.

    At most `threads` items are under way, each in the caller's context variables; one thread is the calling one.

    Raises:
        BaseException: the first that `apply` raised, after the results of the items under way.
    """
    if threads == 1:
        yield from ([apply(item)] for item in items)
        return
    waiting, lock, stopped = iter(items), threading.Lock(), threading.Event()
    # Each worker fetches its own next item: handing every one over from here costs two thread switches an item.
    handed: queue.SimpleQueue[R | _Raised | _Ended] = queue.SimpleQueue()

    def work() -> None:
        try:
            while not stopped.is_set():
                with lock:
                    item = next(waiting, None)
                if item is None:
                    break
                handed.put(apply(item))
        except BaseException as e:  # a spent budget is not an Exception
            handed.put(_Raised(e))
        finally:
            handed.put(_Ended())

    workers = max(1, min(threads, len(items)) if isinstance(items, Sequence) else threads)
    # DSPy's settings live in context variables, which plain threads do not inherit.
    running = [
        threading.Thread(target=contextvars.copy_context().run, args=(work,), daemon=True) for _ in range(workers)
    ]
    try:
        for w in running:
            w.start()
        raised = list[BaseException]()
        while workers:
            results = list[R]()
            for one in _all_of(handed):
                if isinstance(one, _Ended):
                    workers -= 1
                elif isinstance(one, _Raised):
                    raised.append(one.error)
                    stopped.set()
                else:
                    results.append(one)
            if results:
                yield results
        if raised:
            raise raised[0]
    finally:
        stopped.set()
        for w in running:
            if w.is_alive():
                w.join()


def _all_of(waiting: "queue.SimpleQueue[T]") -> list[T]:
    """Wait until the queue holds something, and take all of it."""
    taken = [waiting.get()]
    with contextlib.suppress(queue.Empty):
        while True:
            taken.append(waiting.get_nowait())
    return taken
