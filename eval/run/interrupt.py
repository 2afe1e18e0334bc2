"""Let the first Ctrl-C end a run in order, and the second at once."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

INTERRUPTED = "Ctrl-C"
"""The reason of a stop that Ctrl-C asked for."""
EXIT_INTERRUPTED = 130
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
            # An ordinary exit would wait for threads that wait for a provider; everything finished is on disk already.
            os.write(STDERR, b"\ninterrupted: what was measured is kept; the same command goes on\n")
            os._exit(EXIT_INTERRUPTED)
        asked = True
        stop(INTERRUPTED)
        # Not through sys.stderr: the signal may have come in the middle of a write to it.
        os.write(STDERR, b"\nwarning: Ctrl-C: finishing what is under way and saving it; once more ends at once\n")

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
