"""Record the text of a model's answers, so that the row of an example holds its last one as it came."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import dspy
from dspy import lm15

from crossover.models.engine import Engine, wrapped

_texts: ContextVar[list[str] | None] = ContextVar("texts", default=None)
"""The list of the `last_answer` block that the calling thread is in; DSPy hands context variables to its threads."""


class AnswerRecorder:
    """A hook that puts the text of each answer in the list of the `last_answer` block that asked for it.

    DSPy's own callback for this doubles the time that a row takes beside the model.
    """

    def complete(self, request: lm15.Request, inner: Engine) -> lm15.Response:
        """Answer one request by `inner`, and record the text."""
        response = inner.complete(request)
        if (texts := _texts.get()) is not None:
            texts[:] = [response.message.text or ""]
        return response


def recorded(lm: dspy.LM) -> dspy.LM:
    """Return the same model with its answers recorded."""
    return wrapped(lm, AnswerRecorder())


@contextmanager
def last_answer() -> Iterator[list[str]]:
    """Yield a list that holds the text of the last answer of a `recorded` model; empty before the first."""
    texts = list[str]()
    token = _texts.set(texts)
    try:
        yield texts
    finally:
        _texts.reset(token)
