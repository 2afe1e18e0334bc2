"""Assign roles to the columns of the user's data, and turn its rows into examples."""

import hashlib
import json
import keyword
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dspy

from crossover.models.errors import UserError
from crossover.programs.entities import entities_of
from crossover.programs.load import is_reference, unknown
from crossover.programs.records import Record, fault, few
from crossover.programs.task import Problem

RETRIEVING = ("rag", "multihop", "dialogue")
"""Programs whose examples carry passages."""
HISTORY = "history"
"""The only input that may be empty: a conversation starts without history."""
ROLES = ("input", "output", "gold", "id", "ignored")
OBVIOUS = {
    "text": "input",
    "question": "input",
    "label": "output",
    "answer": "output",
    "answers": "output",
    "gold_passage_ids": "gold",
    "id": "id",
}
"""Roles of well-known columns, for a task that names no fields."""
RESERVED = ("id", "gold", "cluster", "passages")
"""Field names that every example uses itself."""


@dataclass(frozen=True)
class Columns:
    """The role of each column."""

    inputs: tuple[str, ...]
    outputs: dict[str, str]
    """Column to output field."""
    gold: str = ""
    id: str = ""
    cluster: str = ""
    entities: bool = False
    """Whether the outputs hold entities, `{type, text}` each."""

    def needed(self, split: str) -> list[str]:
        """Return the columns that every row of a split must have."""
        extra = [self.gold, self.id, self.cluster if split == "test" else ""]
        return [*self.inputs, *self.outputs, *(c for c in extra if c)]


def columns_of(
    fields: Mapping[str, str], present: Iterable[str], *, program: str, metric: str, cluster: str
) -> Columns:
    """Return the role of each column: from `fields`, or inferred from well-known names."""
    for name, role in fields.items():
        if role not in ROLES:
            raise unknown(f"role of field {name!r}:", role, ROLES)
    roles = dict(fields) or {c: OBVIOUS[c] for c in present if c in OBVIOUS}
    if "id" in present:
        roles.setdefault("id", "id")
    by_role = {role: [c for c, r in roles.items() if r == role] for role in ROLES}
    inputs, outputs = by_role["input"], by_role["output"]
    if not fields and (len(inputs) != 1 or len(outputs) != 1):
        columns = ", ".join(present)
        raise UserError(f"cannot tell inputs from outputs among columns {columns}; add `fields: {{column: input, …}}`")
    if not inputs or not outputs:
        raise UserError(f"`fields` names no {'output' if inputs else 'input'}; give one column that role")
    if len(outputs) > 1 and not (is_reference(program) and is_reference(metric)):
        raise UserError(f"outputs {', '.join(outputs)}; use one, or a program and a metric of your own")
    for role in ("gold", "id"):
        if len(by_role[role]) > 1:
            raise UserError(f"`fields` gives the role {role} to {' and '.join(by_role[role])}; keep one")
    named = {c: "answer" if c == "answers" and program in RETRIEVING else c for c in outputs}
    for name in (*inputs, *named.values()):
        if name in RESERVED or keyword.iskeyword(name) or not name.isidentifier():
            raise UserError(f"column {name!r} cannot be a field name; rename it in the data")
    gold, key = (next(iter(by_role[role]), "") for role in ("gold", "id"))
    return Columns(tuple(inputs), named, gold, key, cluster, entities=program == "extract")


def examples_of(
    records: Sequence[Record], columns: Columns, *, split: str, where: dict[str, str], problems: list[Problem]
) -> list[dspy.Example]:
    """Return the usable rows as examples, and fill `where` with their file and line, `problems` with the others."""
    absent = [c for c in columns.needed(split) if records and not any(c in r.values for r in records)]
    if absent:
        file = records[0].where.rpartition(":")[0]
        have = ", ".join(dict.fromkeys(c for r in records[:100] for c in r.values))
        problems += [fault(file, f"no column {c!r} among {have}", "correct `fields` or the file") for c in absent]
        return []
    examples, faults, copies = list[dspy.Example](), list[Problem](), Counter[str]()
    for record in records:
        wrong = next((w for c in columns.needed(split) if (w := _fault_of(record, c, columns))), "")
        if wrong:
            faults.append(fault(record.where, wrong, "fill it or delete the row"))
            continue
        key = text_of(record.values[columns.id]) if columns.id else _content_id(record, split, copies)
        if key in where:
            what = f"id {key!r} also stands in {where[key]}"
            faults.append(fault(record.where, what, "give every row its own id, or set `id: ignored` in `fields`"))
            continue
        where[key] = record.where
        examples.append(_example(record, columns, key))
    problems += few(faults)
    return examples


def _example(record: Record, columns: Columns, key: str) -> dspy.Example:
    """Return one row as an example with its inputs marked."""
    row = record.values
    values: dict[str, Any] = {"id": key} | {c: text_of(row[c]) for c in columns.inputs}
    for column, field in columns.outputs.items():
        if columns.entities:
            values[field] = entities_of(row[column])
            continue
        values[field] = [text_of(v) for v in row[column]] if isinstance(row[column], list) else text_of(row[column])
    if columns.gold:
        values["gold"] = [text_of(v) for v in answers_of(row[columns.gold])]
    if columns.cluster and columns.cluster in row:
        values["cluster"] = text_of(row[columns.cluster])
    return dspy.Example(**values).with_inputs(*columns.inputs)


def _fault_of(record: Record, column: str, columns: Columns) -> str:
    """Return the fault of one value of a row, or an empty string."""
    value = record.values.get(column)
    if columns.entities and column in columns.outputs:
        return _entity_fault(value, column)
    values = answers_of(value)
    for part in [value, *values]:
        if isinstance(part, dict) or (isinstance(part, list) and (column in columns.inputs or part is not value)):
            return f"{column!r} holds a {type(part).__name__}, not text"
    filled = bool(values) and all(text_of(v).strip() for v in values)
    return "" if filled or (column == HISTORY and column in columns.inputs) else f"{column!r} is empty"


def _entity_fault(value: Any, column: str) -> str:
    """Return why a value cannot be read as entities, or an empty string; an empty list is valid."""
    try:
        entities_of(value)
    except ValueError as e:
        return f"{column!r}: {e}"
    return ""


def answers_of(value: Any) -> list[Any]:
    """Return the right answers in an output field: the entries of a list, else the value itself."""
    return list(value) if isinstance(value, list | tuple) else [value]


def text_of(value: Any) -> str:
    """Return a value as text; None and NaN are empty."""
    return "" if value is None or value != value else str(value)


def _content_id(record: Record, split: str, copies: Counter[str]) -> str:
    """Return an id made from the row's content, which does not depend on its place in the file."""
    content = json.dumps(dict(record.values), sort_keys=True, ensure_ascii=False, default=str)
    key = f"{split}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"
    copies[key] += 1
    return key if copies[key] == 1 else f"{key}-{copies[key]}"
