"""Put examples into a program's prompts as demonstrations."""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dspy

from crossover.programs.splits import fold


def drawn(examples: Sequence[dspy.Example], seed: int, count: int | None = None) -> list[dspy.Example]:
    """Return `count` examples in an order drawn by `seed`; all of them for None or where there are fewer."""
    return random.Random(seed).sample(list(examples), len(examples) if count is None else min(count, len(examples)))


def last_output(program: dspy.Module) -> str:
    """Return the field name of the program's answer: the last output of its last predictor."""
    return str([n for _, p in program.named_predictors() for n in p.signature.output_fields][-1])


def fields_of(example: dspy.Example, predictor: dspy.Predict) -> dict[str, Any] | None:
    """Return the example as a demonstration for the predictor, or None when a field is missing.

    An output that holds a list of right answers shows the first.
    """
    demo = {}
    for name in predictor.signature.fields:
        if name not in example:
            return None
        value = example[name]
        if name in predictor.signature.output_fields and isinstance(value, list):
            value = value[0]
        demo[name] = value
    return demo


def with_demos(program: dspy.Module, examples: Sequence[dspy.Example]) -> dspy.Module:
    """Return a copy of the program whose every predictor shows the examples that have its fields, in this order.

    Raises:
        ValueError: no predictor has fields that the examples carry.
    """
    adapted = program.deepcopy()
    shown = 0
    for _, predictor in adapted.named_predictors():
        predictor.demos = [d for e in examples if (d := fields_of(e, predictor)) is not None]
        shown += len(predictor.demos)
    if examples and not shown:
        raise ValueError("no predictor of the program has all its fields in the training examples")
    return adapted


def question_key(inputs: Mapping[str, Any]) -> str:
    """Return a key that equal questions share: all inputs, normalised, but passages, which depend on retrieval."""
    return "\n".join(f"{k}: {fold(str(v))}" for k, v in sorted(inputs.items()) if k != "passages")


def count_that_fit(program: dspy.Module, examples: Sequence[dspy.Example], fits: Callable[[dspy.Module], bool]) -> int:
    """Return how many of the first examples fit, by bisection; `fits` is asked for a program that shows them."""
    low, high = 0, len(examples)
    while low < high:
        middle = (low + high + 1) // 2
        if fits(with_demos(program, examples[:middle])):
            low = middle
        else:
            high = middle - 1
    return low
