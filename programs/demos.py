"""Put examples into a program's prompts as demonstrations."""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_origin

import dspy
from pydantic.fields import FieldInfo

from crossover.models.errors import UserError
from crossover.programs.splits import fold


def drawn(examples: Sequence[dspy.Example], seed: int, count: int | None = None) -> list[dspy.Example]:
    """Return `count` examples in an order drawn by `seed`; all of them for None or where there are fewer."""
    return random.Random(seed).sample(list(examples), len(examples) if count is None else min(count, len(examples)))


def answer_fields(program: dspy.Module, examples: Sequence[dspy.Example]) -> list[str]:
    """Return the output fields of the program's predictors that the examples hold answers to, in order."""
    names = dict.fromkeys(n for _, p in program.named_predictors() for n in p.signature.output_fields)
    return [n for n in names if any(n in e and n not in e.inputs() for e in examples[:1])]


def demo_of(example: dspy.Example, predictor: dspy.Predict) -> dict[str, Any] | None:
    """Return the example as a demonstration for the predictor, or None if it has no input or no output of it.

    As in DSPy, the other fields may be missing, such as the reasoning of a ChainOfThought: the prompt says so. Of
    several right answers, the first is shown.
    """
    signature = predictor.signature
    demo = {name: example[name] for name in signature.fields if name in example}
    if demo.keys().isdisjoint(signature.input_fields) or demo.keys().isdisjoint(signature.output_fields):
        return None
    return demo | {n: one_answer(demo[n], f) for n, f in signature.output_fields.items() if n in demo}


def one_answer(value: Any, field: FieldInfo) -> Any:
    """Return the first of several right answers to an output field; the list itself if the field's type is a list."""
    several = isinstance(value, list) and bool(value) and not is_list(field.annotation)
    return value[0] if several else value


def is_list(annotation: Any) -> bool:
    """Return whether an output field's type is a list, with or without the type of its items."""
    return annotation is list or get_origin(annotation) is list


def list_outputs(program: dspy.Module) -> set[str]:
    """Return the output fields of a program whose value is a list; in any other, a list holds several right answers."""
    fields = {n: f for p in program.predictors() for n, f in p.signature.output_fields.items()}
    return {name for name, field in fields.items() if is_list(field.annotation)}


def with_demos(program: dspy.Module, examples: Sequence[dspy.Example]) -> dspy.Module:
    """Return a copy of the program whose every predictor shows the examples that are demonstrations of it, in order.

    Raises:
        UserError: no example is a demonstration of any predictor.
    """
    adapted = program.deepcopy()
    shown = 0
    for predictor in adapted.predictors():
        predictor.demos = [d for e in examples if (d := demo_of(e, predictor)) is not None]
        shown += len(predictor.demos)
    if examples and not shown:
        columns = ", ".join(k for k in examples[0] if k != "id")
        raise UserError(
            f"no train example can be shown: the program has no step with an input and an output among {columns}; name "
            "its fields as the columns"
        )
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
