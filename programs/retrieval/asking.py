"""Ask a server many things at once, and wait for it while it is away."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")
QUIET = 3.0
"""Seconds without an answer after which a line says that the server is waited for."""
PAUSE, LONGEST_PAUSE = 0.5, 4.0
"""Seconds between two tries of one request: the first pause, which doubles each time, and the longest."""


class NoAnswerError(Exception):
    """A server answered nothing for the whole time that it was waited for."""


def ask_all(
    ask: Callable[[Item], Answer],
    items: Sequence[Item],
    *,
    threads: int,
    seconds: float,
    temporary: Callable[[Exception], bool],
    note: Callable[[str], None],
) -> list[Answer]:
    """Return the answer to each item; a request that fails for a `temporary` reason is made again.

    Args:
        ask: Make one request; called in `threads` threads.
        items: What to ask for.
        threads: Requests under way at once.
        seconds: How long to wait for a server that answers no request.
        temporary: Return whether the same request may succeed later.
        note: Show a line, called once the server has been quiet for `QUIET` seconds.

    Raises:
        NoAnswerError: nothing was answered for `seconds`; the cause is the last failure, if a request failed at all.
        Exception: a failure that is not temporary.
    """
    ended, failures = threading.Event(), list[Exception]()
    answered, noted = time.monotonic(), False

    def answer(item: Item) -> Answer:
        nonlocal answered
        pause = PAUSE
        while True:
            try:
                result = ask(item)
            except Exception as e:
                failures.append(e)
                if not temporary(e) or ended.wait(pause):
                    raise
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                answered = time.monotonic()
                return result

    pool = ThreadPoolExecutor(threads)
    try:
        answers = list[Answer]()
        for future in [pool.submit(answer, item) for item in items]:
            while not wait([future], timeout=min(QUIET, seconds)).done:
                if time.monotonic() - answered >= seconds:
                    raise NoAnswerError(f"no answer for {seconds:g} s") from (failures[-1] if failures else None)
                if not noted and time.monotonic() - answered >= QUIET:
                    note(f"it does not answer; waiting for it up to {seconds:g} s")
                    noted = True
            answers.append(future.result())
        return answers
    finally:
        ended.set()
        pool.shutdown(wait=False, cancel_futures=True)
