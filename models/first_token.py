"""Time the first token: ask an engine for a stream, and note when the answer began."""

import copy
import time
from collections.abc import Iterator
from typing import Any

import dspy
from dspy import lm15


class FirstTokenEngine:
    """An engine that asks another one by its stream and hands on the whole answer."""

    def __init__(self, inner: Any) -> None:
        """Stream from `inner`, as long as it can."""
        self.inner = inner
        self.began: float | None = None
        """`time.perf_counter()` when the first piece of the latest answer came; None before, or without a stream."""
        self.streams = hasattr(inner, "stream")

    def __deepcopy__(self, memo: dict[int, Any]) -> "FirstTokenEngine":
        """Return itself: copies of a model note the same time."""
        return self

    def __getattr__(self, name: str) -> Any:
        """Return what the engine below knows of its model."""
        return getattr(self.inner, name)

    def complete(self, request: lm15.Request) -> lm15.Response:
        """Answer one request; an engine that cannot stream is asked for the whole answer from then on."""
        self.began = None
        if self.streams:
            try:
                with lm15.ResponseStream(self._noting(self.inner.stream(request)), request) as stream:
                    return stream.response
            except (lm15.UnsupportedFeatureError, NotImplementedError):
                self.streams = False
        response: lm15.Response = self.inner.complete(request)
        return response

    def _noting(self, events: Iterator[Any]) -> Iterator[Any]:
        for event in events:
            if event.type == "delta" and self.began is None:
                self.began = time.perf_counter()
            yield event


def noting_first_token(lm: dspy.LM) -> tuple[dspy.LM, FirstTokenEngine]:
    """Return the same model, asked by its stream, and the engine that notes when each answer begins."""
    below: Any = lm.engine
    while "inner" in vars(below):
        below = below.inner
    noting = FirstTokenEngine(below)

    def around(engine: Any) -> Any:
        """Return the engines that count and limit, with the noting one at their heart."""
        if "inner" not in vars(engine):
            return noting
        outer = copy.copy(engine)
        outer.inner = around(engine.inner)
        return outer

    return lm.copy(engine=around(lm.engine)), noting
