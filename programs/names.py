"""Give the user's columns names that can stand in Python and in a DSPy signature."""

import keyword
import re
from collections.abc import Iterable

import dspy

ARGUMENTS = ("self", "base", "signature", "demos", "config", "lm", "prediction", "trace", "completions")
"""Arguments of DSPy's calls, which take a field of that name for themselves."""


def field_names(columns: Iterable[str], reserved: Iterable[str], *, own_program: bool) -> dict[str, str]:
    """Return a field name for each column: its own where that can be a field, else one made from it.

    `Queue (final)` becomes `queue_final`, `0` becomes `column_0`, `config` becomes `config_value`.

    Args:
        columns: The columns, each once.
        reserved: Names that no field may have.
        own_program: The program is the user's, which may itself take fields that DSPy's own classes shadow.
    """
    taken = {*reserved, "self", "base"}
    if not own_program:
        shadowed = {
            n for cls in (dspy.Example, dspy.Prediction, dspy.Signature, type(dspy.Signature)) for n in dir(cls)
        }
        taken |= {*ARGUMENTS, *shadowed}
    names: dict[str, str] = {}
    columns = list(columns)
    usable = [c for c in columns if c not in taken and _is_field(c)]
    taken |= set(usable)
    for column in columns:
        names[column] = column if column in usable else _free(_identifier(column), taken)
        taken.add(names[column])
    return names


def _is_field(name: str) -> bool:
    """Return whether pydantic takes the name for a field."""
    return name.isidentifier() and not keyword.iskeyword(name) and not name.startswith(("_", "model_"))


def _identifier(column: str) -> str:
    """Return the words of a column's name joined by underscores, in lower case."""
    name = re.sub(r"\W+", "_", column).strip("_").lower()
    name = name.removeprefix("model_") if name != "model_" else ""
    return name if _is_field(name) else f"column_{name}".rstrip("_")


def _free(name: str, taken: set[str]) -> str:
    """Return the name, with `_value` or a number behind it where it is taken."""
    numbered = (f"{name}_{n}" for n in range(2, len(taken) + 3))
    return next(n for n in (name, f"{name}_value", *numbered) if n not in taken)
