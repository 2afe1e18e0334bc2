"""Time the first token: ask an engine for a stream, and note when the answer began."""

import time
from collections.abc import Iterator
from typing import Any

import dspy
from dspy import lm15

from crossover.models.engine import Engine, Streams, wrapped_innermost


class FirstTokenTimer:
    """Ask the engine for a stream, note when it began, and return the whole answer."""

    def __init__(self) -> None:
        """Expect streams until an engine refuses one."""
        self.began: float | None = None
        """`time.perf_counter()` when the first piece of the latest answer came; None before, or without a stream."""
        self.streams = True

    def complete(self, request: lm15.Request, inner: Engine) -> lm15.Response:
        """Answer one request; an engine that cannot stream is asked for the whole answer from then on."""
        self.began = None
        if self.streams and isinstance(inner, Streams):
            try:
                with lm15.ResponseStream(self._timed(inner.stream(request)), request) as stream:
                    return stream.response
            except (lm15.UnsupportedFeatureError, NotImplementedError):
                self.streams = False
        return inner.complete(request)

    def _timed(self, events: Iterator[Any]) -> Iterator[Any]:
        for event in events:
            if event.type == "delta" and self.began is None:
                self.began = time.perf_counter()
            yield event


def timing_first_token(lm: dspy.LM) -> tuple[dspy.LM, FirstTokenTimer]:
    """Return the same model, asked by its stream, and the timer that notes when each answer begins."""
    timer = FirstTokenTimer()
    # Innermost, so that the calls are counted and limited as any other.
    return wrapped_innermost(lm, timer), timer
