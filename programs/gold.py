"""Give gold answers the types that a program's answers have, so that both can be compared."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

import dspy
from dspy.adapters.utils import parse_value

from crossover.models.answer_types import is_text
from crossover.models.errors import one_line
from crossover.programs.demos import is_list
from crossover.programs.kinds import Kind, kind_of
from crossover.programs.records import Problem, fault, few

Reader = Callable[[Any], Any]
"""Turns a gold answer as the data holds it into one of the program's type; raises ValueError where it is none."""


def kinds_of(train: Sequence[dspy.Example], outputs: Mapping[str, str], named: Mapping[str, str]) -> dict[str, Kind]:
    """Return the kind of each field of a record, by the values in train.

    Args:
        train: The train examples, their gold answers as the data holds them.
        outputs: Column to output field.
        named: Column to the name of its kind; empty or absent for one told from the values.
    """
    return {field: kind_of([e[field] for e in train], named.get(column, "")) for column, field in outputs.items()}


def output_types(
    kinds: Mapping[str, Kind], build: Callable[[], dspy.Module], outputs: Sequence[str]
) -> dict[str, Reader]:
    """Return how the gold answers to each output field are read; fields whose gold answers stay texts are absent."""
    if kinds:
        return {name: kind.value for name, kind in kinds.items()}
    try:
        predictors = build().predictors()
    except Exception:  # of any kind; `validate` reports a program that cannot be built
        return {}
    fields = {n: f for p in predictors for n, f in p.signature.output_fields.items() if n in outputs}
    return {n: _reader(f.annotation) for n, f in fields.items() if not is_text(f) and not _is_choice(f.annotation)}


def _is_choice(annotation: Any) -> bool:
    """Return whether a type is a Literal of texts, which are compared as the data holds them."""
    return get_origin(annotation) is Literal and all(isinstance(v, str) for v in get_args(annotation))


def _reader(annotation: Any) -> Reader:
    """Return how gold answers of a type are read: several right answers one by one, unless the type is a list."""

    def read(value: Any) -> Any:
        if isinstance(value, list) and not is_list(annotation):
            return [parse_value(v, annotation) for v in value]
        if isinstance(value, list) and get_args(annotation):
            # Items that are objects come as JSON.
            return [parse_value(v, get_args(annotation)[0]) for v in value]
        return parse_value(value, annotation)

    return read


def with_types(
    examples: Sequence[dspy.Example], readers: Mapping[str, Reader], where: Mapping[str, str], problems: list[Problem]
) -> list[dspy.Example]:
    """Return the examples with their gold answers as `readers` read them; those that cannot be go to `problems`."""
    typed, faults = list[dspy.Example](), list[Problem]()
    for e in examples:
        try:
            typed.append(e.copy(**{n: read(e[n]) for n, read in readers.items()}) if readers else e)
        except ValueError as error:
            at = where.get(str(e["id"]), str(e["id"]))
            reason = one_line(error, 120)
            faults.append(fault(at, f"a gold answer is not of the program's type: {reason}", "correct the row"))
    problems += few(faults)
    return typed
