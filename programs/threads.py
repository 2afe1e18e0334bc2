"""Apply a function to items in threads, and hand over what it returns as it comes."""

import contextlib
import contextvars
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import NamedTuple, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class _Raised(NamedTuple):
    """What ended a thread."""

    error: BaseException


class _Ended(NamedTuple):
    """A thread has ended."""


class _HeldUp(NamedTuple):
    """A thread took longer for an item than computing alone takes."""


HELD_UP = 0.02
"""Seconds for an item after which the threads that are started when needed are."""


def in_threads(
    apply: Callable[[T], R], items: Iterable[T], threads: int, *, when_needed: bool = False
) -> Generator[list[R], None, None]:
    """Yield what `apply` returns for each item, as lists of all that was returned since the one before.

    At most `threads` items are under way, each in the caller's context variables; one thread is the calling one. With
    `when_needed`, all but one thread are started only if items have to wait: those that compute hinder each other.

    Raises:
        BaseException: the first that `apply` raised, after the results of the items under way.
    """
    if threads == 1:
        yield from ([apply(item)] for item in items)
        return
    waiting, lock, stopped = iter(items), threading.Lock(), threading.Event()
    # Each worker fetches its own next item: handing every one over from here costs two thread switches an item.
    handed: queue.SimpleQueue[R | _Raised | _HeldUp | _Ended] = queue.SimpleQueue()

    def work() -> None:
        try:
            while not stopped.is_set():
                with lock:
                    item = next(waiting, None)
                if item is None:
                    break
                began = time.perf_counter()
                handed.put(apply(item))
                if when_needed and time.perf_counter() - began > HELD_UP:
                    handed.put(_HeldUp())
        except BaseException as e:  # a spent budget is not an Exception
            handed.put(_Raised(e))
        finally:
            handed.put(_Ended())

    workers = max(1, min(threads, len(items)) if isinstance(items, Sequence) else threads)
    # DSPy's settings live in context variables, which plain threads do not inherit.
    pool = [threading.Thread(target=contextvars.copy_context().run, args=(work,), daemon=True) for _ in range(workers)]
    started = pool[:1] if when_needed else pool
    try:
        for w in started:
            w.start()
        raised, working = list[BaseException](), len(started)
        while working:
            results = list[R]()
            for one in _all_of(handed):
                if isinstance(one, _HeldUp):
                    for w in pool[len(started) :]:
                        w.start()
                    working += len(pool) - len(started)
                    started = pool
                elif isinstance(one, _Ended):
                    working -= 1
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
        for w in pool:
            if w.is_alive():
                w.join()


def _all_of(waiting: "queue.SimpleQueue[T]") -> list[T]:
    """Wait until the queue holds something, and take all of it."""
    taken = [waiting.get()]
    with contextlib.suppress(queue.Empty):
        while True:
            taken.append(waiting.get_nowait())
    return taken
