"""The kinds of a record's fields: told from the values of train, and read from the cells of a data file."""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from crossover.models.errors import UserError
from crossover.programs.entities import NONE
from crossover.programs.load import unknown
from crossover.programs.records import Record, parsed_json
from crossover.programs.spec import TaskSpec

KINDS = ("text", "number", "boolean", "one of", "list")
MOST_CHOICES = 50
"""A field with more different values is a text."""
CODE = re.compile(r"[-+]?0\d.*|[-+]?\d{16,}")
"""Digits that are a name: a postcode with its zeros in front, or an id longer than a number keeps apart."""
YES_NO = {"yes": "yes", "true": "yes", "no": "no", "false": "no"}


class Kind(NamedTuple):
    """What a field of a record may hold."""

    name: str
    """One of KINDS."""
    choices: tuple[str, ...] = ()
    """The values of `one of`."""
    optional: bool = False
    """Whether the answer may be `none`, as it is for an empty cell."""

    @property
    def annotation(self) -> Any:
        """Return the type of the field in a DSPy signature.

        None is the word `none` rather than null: DSPy reads a choice such as `38` back as a number where the field may
        be null.
        """
        if self.name in ("boolean", "one of"):
            choices = ("yes", "no") if self.name == "boolean" else self.choices
            return Literal[(*choices, NONE)] if self.optional else Literal[choices]
        if self.name == "number":
            return float | Literal["none"] if self.optional else float
        return list[str] if self.name == "list" else str

    @property
    def description(self) -> str:
        """Return what the type does not say about the field."""
        return f"`{NONE}` if it is not there" if self.name == "text" and self.optional else ""

    def value(self, cell: Any) -> Any:
        """Return the gold answer that a cell stands for: `none` where it is empty, an empty list for a list.

        Raises:
            ValueError: the cell does not fit the kind.
        """
        if self.name == "list":
            return _items(cell)
        text = "" if cell is None else str(cell).strip()
        if text in ("", NONE):
            return NONE
        if self.name == "boolean":
            if text.casefold() not in YES_NO:
                raise ValueError(f"{text!r} is neither yes nor no")
            return YES_NO[text.casefold()]
        if self.name == "number":
            if (number := _number(text)) is None:
                raise ValueError(f"{text!r} is not a number")
            return number
        return text


def kind_of(values: Iterable[Any], name: str = "") -> Kind:
    """Return the kind of a field from its values in train, and from its name in the experiment file if it stands there.

    Told from the values: a list, yes or no, a number, one of at most 50 texts that recur, or a text.

    Raises:
        UserError: there is no kind of that name.
    """
    cells = list(values)
    filled = [c for c in cells if c is not None and str(c).strip() not in ("", NONE)]
    texts = [str(c).strip() for c in filled]
    distinct = tuple(sorted(set(texts)))
    tests: dict[str, Callable[[], bool]] = {
        "list": lambda: all(isinstance(c, list) for c in filled),
        "boolean": lambda: all(t.casefold() in YES_NO for t in texts),
        "number": lambda: all(_number(t) is not None and not CODE.fullmatch(t) for t in texts),
        "one of": lambda: len(distinct) <= min(MOST_CHOICES, len(texts) / 2),
    }
    if name and name not in KINDS:
        raise unknown("kind of field", name, KINDS)
    told = name or next((kind for kind, holds in tests.items() if filled and holds()), "text")
    return Kind(told, distinct if told == "one of" else (), len(filled) < len(cells))


def unfolded(spec: TaskSpec, records: dict[str, list[Record]]) -> tuple[TaskSpec, dict[str, list[Record]]]:
    """Return a record's task and rows with one column for each field, where one column holds whole JSON objects.

    Raises:
        UserError: a field of the objects has the name of another column.
    """
    outputs = [*spec.output, *(c for c, role in spec.fields.items() if role == "output")]
    if spec.program != "record" or len(outputs) != 1:
        return spec, records
    (column,) = outputs
    objects = {id(r): _object(r.values.get(column)) for rows in records.values() for r in rows}
    if not objects or any(o is None for o in objects.values()):
        return spec, records
    names = list(dict.fromkeys(name for o in objects.values() for name in o or ()))
    rows = [r for split in records.values() for r in split]
    if taken := next((n for n in names if n != column and any(n in r.values for r in rows)), ""):
        raise UserError(f"{taken!r} is a column and a field of {column!r}; rename one of them")

    def whole(record: Record) -> Record:
        others = {c: v for c, v in record.values.items() if c != column}
        return replace(record, values=others | {n: (objects[id(record)] or {}).get(n) for n in names})

    fields = {c: role for c, role in spec.fields.items() if c != column}
    return replace(spec, fields=fields, output=dict.fromkeys(names, "")), {
        name: [whole(r) for r in split] for name, split in records.items()
    }


def _object(value: Any) -> dict[str, Any] | None:
    """Return a JSON object, also of one written as text; None for anything else."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = parsed_json(value)
        except ValueError:
            return None
    return value if isinstance(value, dict) else None


def _items(cell: Any) -> list[str]:
    """Return the items of a list, of one written as JSON, or of a text with semicolons or commas between them."""
    if isinstance(cell, str) and cell.strip().startswith("["):
        cell = parsed_json(cell)
    text = "" if cell is None else str(cell)
    parts = cell if isinstance(cell, list) else text.split(";" if ";" in text else ",")
    return [text for part in parts if (text := str(part).strip()) and text != NONE]


def _number(text: str) -> int | float | None:
    """Return the number that the whole text is, with or without commas between thousands, or None."""
    try:
        number = float(re.sub(r"(?<=\d),(?=\d{3}(\D|$))", "", text))
    except ValueError:
        return None
    if not math.isfinite(number):
        return None
    return int(number) if number.is_integer() else number
