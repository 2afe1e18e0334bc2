"""Count the demonstrations that fit the model's context."""

from collections.abc import Callable, Sequence
from typing import Any

import dspy

from crossover.models.engine import innermost
from crossover.models.prompt import first_messages, room
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
    return count_that_fit(program, examples, lambda p: _longest_prompt(p, longest, lm) <= free * share)


def _longest_prompt(program: dspy.Module, question: dspy.Example, lm: dspy.LM) -> int:
    """Return the tokens of the longest prompt among the program's steps, each without what earlier steps answer."""
    engine = innermost(lm)
    return max(int(engine.count_tokens(first_messages(program, question, p))) for p in program.predictors())


def fits_context(lm: dspy.LM) -> Callable[[dspy.Module, dict[str, Any]], bool]:
    """Return a test of whether a program's prompt for given inputs fits the model's context."""
    free = room(lm)

    def fits(candidate: dspy.Module, inputs: dict[str, Any]) -> bool:
        question = dspy.Example(**inputs).with_inputs(*inputs)
        return not free or _longest_prompt(candidate, question, lm) <= free

    return fits
