"""Types of output fields: the values they may take, their JSON schemas, and both in words for a prompt."""

import enum
import json
import types
from collections.abc import Iterable, Sequence
from typing import Any, Literal, Union, get_args, get_origin

import dspy
import pydantic
from dspy.adapters.types import Reasoning
from pydantic.fields import FieldInfo

MOST_LABELS_SHOWN = 150
"""With more labels than this, the list of them would be most of the prompt."""

WORDS: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number"}
"""A value's type in a prompt."""
LISTS: dict[Any, str] = {str: "a list of texts, as JSON", int: "a list of whole numbers, as JSON"}
"""The type of a list, by that of its items."""


def labels_of(field: FieldInfo) -> list[str]:
    """Return the texts that an output field may take: its `labels`, or the values of a Literal or an enumeration.

    Empty for any other field. A member of an enumeration is written as its value if that is a text, else as its name,
    because DSPy reads no other form back.
    """
    kind: Any = field.annotation
    if labels := _extra(field).get("labels"):
        return [str(label) for label in labels]
    if get_origin(kind) is Literal:
        return [str(value) for value in get_args(kind)]
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return [m.value if isinstance(m.value, str) else m.name for m in kind]
    return []


def is_text(field: FieldInfo) -> bool:
    """Return whether DSPy takes any text as the value of an output field, as it stands."""
    kind = field.annotation
    if labels_of(field):
        return False
    if kind is str or str in alternatives(kind):
        return True
    return isinstance(kind, type) and issubclass(kind, dspy.Type | Reasoning)


def alternatives(kind: Any) -> tuple[Any, ...]:
    """Return the types of a union; empty for any other type."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else ()


def json_schema(field: FieldInfo) -> dict[str, Any]:
    """Return the JSON schema of an output field's value; that of a text where pydantic knows none."""
    if labels := _extra(field).get("labels"):
        return {"enum": list(labels)}
    kind: Any = field.annotation
    try:
        return pydantic.TypeAdapter(kind).json_schema()
    except (pydantic.PydanticInvalidForJsonSchema, pydantic.PydanticSchemaGenerationError):
        return {"type": "string"}


def described(name: str, field: FieldInfo) -> str:
    """Return an output field's description and type in words; empty for a text that has no description."""
    labels, description = labels_of(field), str(_extra(field).get("desc") or "")
    known = description in (f"${{{name}}}", one_of(labels))
    if labels:
        words = one_of(labels) if len(labels) <= MOST_LABELS_SHOWN else ""
    else:
        words = "" if is_text(field) else _in_words(field)
    return "; ".join(filter(None, ("" if known else description, words)))


def one_of(labels: Sequence[str]) -> str:
    """Return the labels as a prompt lists them, with bars between them where one holds a comma."""
    return f"one of: {(' | ' if has_commas(labels) else ', ').join(labels)}"


def has_commas(labels: Iterable[str]) -> bool:
    """Return whether a list of the labels with commas between them would read as more labels."""
    return any("," in label for label in labels)


def _in_words(field: FieldInfo) -> str:
    """Return the type of a value that is no text."""
    kind: Any = field.annotation
    parts = alternatives(kind)
    if parts and all(p in WORDS or get_origin(p) is Literal for p in parts):
        return " or ".join(WORDS.get(p) or " or ".join(map(str, get_args(p))) for p in parts)
    item = get_args(kind)[0] if get_origin(kind) is list else None
    schema = json.dumps(json_schema(field), ensure_ascii=False)
    return WORDS.get(kind) or LISTS.get(item) or f"JSON that fits the schema {schema}"


def _extra(field: FieldInfo) -> dict[str, Any]:
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
