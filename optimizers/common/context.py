"""Count the demonstrations that fit the model's context."""

from collections.abc import Callable, Sequence
from typing import Any

import dspy

from crossover.models.prompt import prompt_tokens, room
from crossover.programs.demos import count_that_fit


def leading_that_fit(
    program: dspy.Module,
    examples: Sequence[dspy.Example],
    questions: Sequence[dspy.Example],
    lm: dspy.LM,
    *,
    share: float = 1.0,
) -> int:
    """Return how many of the leading examples fit beside the longest question; all, if the context is unknown.

    The prompt may fill this share of the context without the answer.
    """
    free = room(lm)
    if not free:
        return len(examples)
    longest = max(questions, key=lambda e: len(str(e.inputs().toDict())))
    return count_that_fit(program, examples, lambda p: prompt_tokens(p, longest, lm) <= free * share)


def fits_context(lm: dspy.LM) -> Callable[[dspy.Module, dict[str, Any]], bool]:
    """Return a test of whether a program's prompt for given inputs fits the model's context."""
    free = room(lm)

    def fits(candidate: dspy.Module, inputs: dict[str, Any]) -> bool:
        question = dspy.Example(**inputs).with_inputs(*inputs)
        return not free or prompt_tokens(candidate, question, lm) <= free

    return fits
