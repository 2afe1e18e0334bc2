"""Ctrl-C once lets a run end in order, twice ends it at once."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

INTERRUPTED = "Ctrl-C"
"""Why a run stopped that the person at the keyboard ended."""
EXIT_CANNOT_RUN, EXIT_INTERRUPTED = 2, 130
STDERR = 2
"""File descriptor."""


@contextlib.contextmanager
def interruptible(stop: Callable[[str], None]) -> Iterator[None]:
    """Call `stop` on the first Ctrl-C; a second one ends the process where it stands, as a crash would."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield
        return
    asked = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            # Threads that wait for a provider would hold an ordinary exit up; all that is kept is on the disk.
            os.write(STDERR, b"\ninterrupted: what was measured is kept; the same command goes on\n")
            os._exit(EXIT_INTERRUPTED)
        asked = True
        stop(INTERRUPTED)
        # Past Python's stream, in whose middle the signal may have come.
        os.write(STDERR, b"\nwarning: Ctrl-C: finishing what is under way and saving it; once more ends at once\n")

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
