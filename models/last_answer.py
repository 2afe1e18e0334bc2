"""Record a model's answers, so that the row of an example holds the last one as it came, and how it ended."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import dspy
from dspy import lm15

from crossover.models.engine import Engine, wrapped


@dataclass
class Answers:
    """The answers that the model gave for one example."""

    text: str | None = None
    """The last one as it came; None before the first."""
    ending: str = ""
    """Why the last one is not whole: `length`, `refusal`, `reasoning` (nothing else came) or `empty`."""
    tokens_estimated: bool = False
    """The tokens of one of them were counted here, not by the provider."""


_answers: ContextVar[Answers | None] = ContextVar("answers", default=None)
"""The answers of the `last_answer` block that the calling thread is in; DSPy hands context variables to its threads."""


class AnswerRecorder:
    """A hook that notes each answer for the `last_answer` block that asked for it.

    DSPy's own callback for this doubles the time that a row takes beside the model.
    """

    def complete(self, request: lm15.Request, inner: Engine) -> lm15.Response:
        """Answer one request by `inner`, and note the answer."""
        response = inner.complete(request)
        if (answers := _answers.get()) is not None:
            answers.text, answers.ending = response.message.text or "", ending_of(response)
            answers.tokens_estimated = answers.tokens_estimated or is_estimated(response)
        return response


def recorded(lm: dspy.LM) -> dspy.LM:
    """Return the same model with its answers recorded."""
    return wrapped(lm, AnswerRecorder())


@contextmanager
def last_answer() -> Iterator[Answers]:
    """Yield the answers of a `recorded` model inside the block."""
    answers = Answers()
    token = _answers.set(answers)
    try:
        yield answers
    finally:
        _answers.reset(token)


def note_estimated() -> None:
    """Note that tokens were estimated for a request of the running example that brought no answer."""
    if (answers := _answers.get()) is not None:
        answers.tokens_estimated = True


def is_estimated(response: lm15.Response) -> bool:
    """Return whether the tokens of a response were counted here."""
    return bool((response.provider_data or {}).get("tokens_estimated"))


def ending_of(response: lm15.Response) -> str:
    """Return why an answer is not whole, as in `Answers.ending`; empty for one that is."""
    if response.finish_reason == "length":
        return "length"
    known = (response.provider_data or {}).get("ending")
    return str(known or ("" if (response.message.text or "").strip() else "empty"))
