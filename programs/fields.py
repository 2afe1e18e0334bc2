"""Assign roles to the columns of the user's data, and turn its rows into examples."""

import ast
import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dspy

from crossover.models.errors import UserError
from crossover.programs.entities import entities_of
from crossover.programs.load import is_reference, unknown
from crossover.programs.names import field_names
from crossover.programs.records import Problem, Record, fault, few
from crossover.programs.spec import TaskSpec

RETRIEVING = ("rag", "multihop", "dialogue")
"""Programs whose examples carry passages."""
HISTORY = "history"
"""An input that may be empty even alone: a conversation starts without history."""
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
WHOLE = 1e15
"""Below it a float tells every whole number from the next."""


@dataclass(frozen=True)
class Columns:
    """The role of each column."""

    inputs: Mapping[str, str]
    """Column to input field."""
    outputs: Mapping[str, str]
    """Column to output field."""
    gold: str = ""
    id: str = ""
    cluster: str = ""
    unused: tuple[str, ...] = ()
    program: str = ""

    @property
    def entities(self) -> bool:
        """Return whether the outputs hold entities, `{type, text}` each."""
        return self.program == "extract"

    @property
    def record(self) -> bool:
        """Return whether an output may be empty, as fields of a record may."""
        return self.program == "record"

    def needed(self, split: str) -> list[str]:
        """Return the columns that every row of a split must have."""
        extra = [self.gold, self.id, "" if split in ("train", "val") else self.cluster]
        return [*self.inputs, *self.outputs, *(c for c in extra if c)]


def columns_of(spec: TaskSpec, present: Sequence[str]) -> Columns:
    """Return the role of each column that is present: by the task's own keys, or inferred from well-known names.

    Raises:
        UserError: the keys contradict each other, or no input or output can be told.
    """
    roles = _roles(spec, present)
    by_role = {role: [c for c, r in roles.items() if r == role] for role in ROLES}
    inputs, outputs = by_role["input"], by_role["output"]
    own = is_reference(spec.program)
    if len(outputs) > 1 and spec.program != "record" and not own:
        remedy = "use one, `program: record`, or a program of your own"
        raise UserError(f"outputs {', '.join(outputs)}; {remedy}")
    for role in ("gold", "id"):
        if len(by_role[role]) > 1:
            raise UserError(f"`fields` gives the role {role} to {' and '.join(by_role[role])}; keep one")
    names = field_names([*inputs, *outputs], RESERVED, own_program=own)
    if spec.program in RETRIEVING and "answers" in outputs and "answer" not in names.values():
        names["answers"] = "answer"
    return Columns(
        inputs={c: names[c] for c in inputs},
        outputs={c: names[c] for c in outputs},
        gold=next(iter(by_role["gold"]), ""),
        id=next(iter(by_role["id"]), ""),
        cluster=spec.cluster,
        unused=tuple(c for c in present if c not in roles and c != spec.cluster),
        program=spec.program,
    )


def _roles(spec: TaskSpec, present: Sequence[str]) -> dict[str, str]:
    """Return the role of each column that has one, with at least one input and one output."""
    roles = dict(spec.fields)
    for name, role in roles.items():
        if role not in ROLES:
            raise unknown(f"role of field {name!r}:", role, ROLES)
    for role, columns in (("input", spec.input), ("output", spec.output)):
        for column in columns:
            if roles.setdefault(column, role) != role:
                raise UserError(f"column {column!r} is {role} and {roles[column]}; keep one")
    named = set(roles.values())
    obvious = {c: OBVIOUS[c] for c in present if c in OBVIOUS and c not in roles}
    if not spec.fields:
        roles |= {c: r for c, r in obvious.items() if r not in named}
    if "id" in present:
        roles.setdefault("id", "id")
    counts = Counter(roles.values())
    if not named and (counts["input"] != 1 or counts["output"] != 1):
        columns = ", ".join(present)
        raise UserError(f"cannot tell inputs from outputs among columns {columns}; add `input: […]`, `output: […]`")
    if not counts["input"] or not counts["output"]:
        missing = "output" if counts["input"] else "input"
        raise UserError(f"`fields` names no {missing}; give one column that role, or write `{missing}: [COLUMN]`")
    return roles


def examples_of(
    records: Sequence[Record], columns: Columns, *, split: str, where: dict[str, str], problems: list[Problem]
) -> list[dspy.Example]:
    """Return the usable rows as examples, and fill `where` with their file and line, `problems` with the others."""
    absent = [c for c in columns.needed(split) if records and not any(c in r.values for r in records)]
    if absent:
        file = records[0].where.rpartition(":")[0]
        have = ", ".join(dict.fromkeys(c for r in records[:100] for c in r.values))
        problems += [fault(file, f"no column {c!r} among {have}", "correct the task or the file") for c in absent]
        return []
    examples, faults, copies = list[dspy.Example](), list[Problem](), Counter[str]()
    for record in records:
        wrong = next((w for c in columns.needed(split) if (w := _fault_of(record, c, columns))), None)
        if wrong:
            faults.append(fault(record.where, *wrong))
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
    values: dict[str, Any] = {"id": key} | {f: text_of(row.get(c)) for c, f in columns.inputs.items()}
    values |= {f: _answer(row.get(c), columns) for c, f in columns.outputs.items()}
    if columns.gold:
        values["gold"] = [text_of(v) for v in _ids(row[columns.gold])]
    if columns.cluster and columns.cluster in row:
        values["cluster"] = text_of(row[columns.cluster])
    return dspy.Example(**values).with_inputs(*columns.inputs.values())


def _answer(value: Any, columns: Columns) -> Any:
    """Return a gold answer: a text without space around it, or a list of texts."""
    if columns.entities:
        return entities_of(value)
    value = _unwrapped(value, columns)
    if isinstance(value, list):
        return [text_of(v).strip() for v in value]
    return text_of(value).strip()


def _unwrapped(value: Any, columns: Columns) -> Any:
    """Return the right answers of SQuAD's `{text: […], answer_start: […]}` or of a JSON list in a cell as a list.

    Any other value stays as it is; a record and a program of the user's read lists themselves.
    """
    if isinstance(value, dict) and {"text", "answer_start"} == set(value):
        return value["text"]
    if (
        isinstance(value, str)
        and value.lstrip().startswith('["')
        and not (columns.record or is_reference(columns.program))
    ):
        with contextlib.suppress(ValueError):
            return json.loads(value)
    return value


def _ids(value: Any) -> list[Any]:
    """Return passage ids: the entries of a list, also of one written as text in a CSV cell, or the value itself."""
    if isinstance(value, str) and value.strip().startswith("["):
        try:
            value = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return [value]
    return answers_of(value)


def _fault_of(record: Record, column: str, columns: Columns) -> tuple[str, str] | None:
    """Return what is wrong with one value of a row, and the remedy; None where nothing is."""
    value = record.values.get(column)
    is_input, is_output = column in columns.inputs, column in columns.outputs
    if columns.entities and is_output:
        return _entity_fault(value, column)
    value = _unwrapped(value, columns) if is_output else value
    values = answers_of(value)
    if is_input and isinstance(value, list):
        return f"{column!r} holds a list, not text", "join its parts into one text"
    json_allowed = is_output and is_reference(columns.program)
    for part in [value, *values]:
        if (isinstance(part, dict) and not json_allowed) or (isinstance(part, list) and part is not value):
            return f"{column!r} holds a {type(part).__name__}, not text", "write the text that is meant in its place"
    optional = is_output and columns.record
    if is_input:  # instructions often have a second part that may be empty
        optional = column == HISTORY or any(text_of(record.values.get(c)).strip() for c in columns.inputs)
    if optional or (values and all(text_of(v).strip() for v in values)):
        return None
    return f"{column!r} is empty", "fill it or delete the row"


def _entity_fault(value: Any, column: str) -> tuple[str, str] | None:
    """Return why a value cannot be read as entities, and the remedy, or None; an empty list is valid."""
    try:
        entities_of(value)
    except ValueError as e:
        return f"{column!r}: {e}", "fill it or delete the row"
    return None


def answers_of(value: Any) -> list[Any]:
    """Return the right answers in an output field: the entries of a list, else the value itself."""
    return list(value) if isinstance(value, list | tuple) else [value]


def right_answers(value: Any, *, is_list: bool) -> list[Any]:
    """Return the right answers to a field; `is_list` says that an answer is a list, so that a list is one of them."""
    return [value] if is_list else answers_of(value)


def text_of(value: Any) -> str:
    """Return a value as text; None and NaN are empty, an object is JSON, and 1.0 is 1, as pandas writes either."""
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, float) and value.is_integer() and abs(value) < WHOLE:
        return str(int(value))
    return "" if value is None or value != value else str(value)


def _content_id(record: Record, split: str, copies: Counter[str]) -> str:
    """Return an id made from the row's content, which does not depend on its place in the file."""
    content = json.dumps(dict(record.values), sort_keys=True, ensure_ascii=False, default=str)
    key = f"{split}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"
    copies[key] += 1
    return key if copies[key] == 1 else f"{key}-{copies[key]}"


def unlabelled_fields(program: dspy.Module, outputs: Sequence[str]) -> set[str]:
    """Return the fields that the program writes and the data has no answer for, such as a reasoning."""
    return {f for p in program.predictors() for f in p.signature.output_fields} - set(outputs)
