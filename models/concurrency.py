"""Limit the concurrent requests to a provider: additive increase, multiplicative decrease."""

import threading
import time


class AdaptiveLimit:
    """A limit on concurrent requests that grows while answers come and halves when the provider pushes back.

    The rule is TCP's (Chiu and Jain 1989): every answer adds 1/limit, every refusal halves, at most once for the
    requests that were under way together, so that one burst of refusals counts as one.
    """

    def __init__(self, start: float = 8.0, *, most: float = 64.0) -> None:
        """Allow `start` requests at first, and never more than `most` or less than one."""
        self.limit, self.most = start, most
        self._busy = 0
        self._shrunk_at = self._closed_until = 0.0
        self._changed = threading.Condition()

    def enter(self, patience: float) -> float | None:
        """Wait for a free slot and for the end of any pause, `patience` seconds at most.

        Return the time at which the request begins, None where it has to wait longer.
        """
        with self._changed:
            until = time.monotonic() + patience
            while (now := time.monotonic()) <= until:
                pause = self._closed_until - now
                if pause <= 0 and self._busy < int(self.limit):
                    self._busy += 1
                    return now
                self._changed.wait(timeout=min(until - now, pause) if pause > 0 else until - now)
            return None

    def answered(self) -> None:
        """Free the slot after an answer, and let the limit grow."""
        with self._changed:
            self._busy -= 1
            self.limit = min(self.most, self.limit + 1 / self.limit)
            self._changed.notify_all()

    def refused(self, began: float, *, pause: float = 0.0) -> None:
        """Free the slot of a refused request that began at `began`; no request starts before `pause` is over."""
        with self._changed:
            self._busy -= 1
            now = time.monotonic()
            if began >= self._shrunk_at:
                self.limit, self._shrunk_at = max(1.0, self.limit / 2), now
            self._closed_until = max(self._closed_until, now + pause)
            self._changed.notify_all()

    def left(self) -> None:
        """Free the slot after a failure that has nothing to do with the provider's load."""
        with self._changed:
            self._busy -= 1
            self._changed.notify_all()
