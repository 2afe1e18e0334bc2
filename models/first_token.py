"""Time the first token: ask an engine for a stream, and note when the answer began."""

import time
from collections.abc import Iterator
from typing import Any

import dspy
from dspy import lm15

from crossover.models.engine import AttemptFailedError, Engine, Streams, wrapped_innermost

STREAM_REFUSED = (lm15.InvalidRequestError, lm15.StreamAssemblyError)
"""Failures that a server's refusal to stream shows as; another may be behind them, so that the whole answer tells."""


class FirstTokenTimer:
    """Ask the engine for a stream, note when it began, and return the whole answer."""

    def __init__(self) -> None:
        """Expect streams until an engine refuses one."""
        self.began: float | None = None
        """`time.perf_counter()` when the first piece of the latest answer came; None before, or without a stream."""
        self.streams = True
        self._asks_whole = False

    def complete(self, request: lm15.Request, inner: Engine) -> lm15.Response:
        """Answer one request; an engine that cannot stream is asked for the whole answer from then on.

        Raises:
            AttemptFailedError: the request failed; `changed` where it did as a stream alone, as far as can be told.
        """
        self.began = None
        if not self.streams or self._asks_whole or not isinstance(inner, Streams):
            # A failure of the whole answer too shows that it was not the stream.
            asked_whole, self._asks_whole = self._asks_whole, False
            response = inner.complete(request)
            self.streams = self.streams and not (asked_whole and response.message.text)
            return response
        try:
            with lm15.ResponseStream(self._timed(inner.stream(request)), request) as stream:
                response = stream.response
        except AttemptFailedError as e:
            if self.began is None and isinstance(e.error, STREAM_REFUSED):
                self._asks_whole = e.changed = True
            raise
        if self.began is None and not response.message.text:
            # Some servers answer whole all the same, which nobody can read as a stream.
            self._asks_whole = True
            raise AttemptFailedError(lm15.StreamAssemblyError("no stream came"), paid=response.usage, changed=True)
        return response

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
