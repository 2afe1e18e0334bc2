"""Entities as text: one `type: words` a line, `none` when there is nothing to extract."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

Entity = tuple[str, str]
"""Type and words, as they stand in the text."""
NONE = "none"


def entity_lines(entities: Iterable[Entity]) -> str:
    """Return entities as a program answers them."""
    return "\n".join(f"{kind}: {words}" for kind, words in entities) or NONE


def read_entities(text: str) -> list[Entity]:
    """Return the entities of an answer, spaces made single; a line without a type is an entity without one.

    A list marker before the type is what models like to write; it is passed over.
    """
    found = []
    for line in text.splitlines():
        plain = " ".join(line.split()).removeprefix("- ").removeprefix("* ")
        kind, colon, words = plain.partition(":")
        if plain and plain.casefold().strip(".") != NONE:
            found.append((kind.strip(), words.strip()) if colon else ("", plain))
    return found


def entities_of(value: Any) -> str:
    """Return a data file's value as lines: a list of `{type, text}`, also as JSON in a text column, or lines already.

    Raises:
        ValueError: it is none of these.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = json.loads(value)
    if isinstance(value, str):
        return entity_lines(read_entities(value))
    if not isinstance(value, list | tuple):
        raise ValueError("not a list of {type, text}")
    found = []
    for part in value:
        kind, words = (part.get("type"), part.get("text")) if isinstance(part, dict) else (None, None)
        if not isinstance(kind, str) or not isinstance(words, str) or not kind.strip() or not words.strip():
            raise ValueError(f"{str(part)[:60]} is no {{type, text}}")
        found.append((" ".join(kind.split()), " ".join(words.split())))
    return entity_lines(found)


def entity_f1(predicted: str, gold: str) -> float:
    """Return the F1 of the entities of one text, type and words both right; two answers of none agree.

    An entity that stands twice counts twice. Words are compared as they stand, types without regard to case.
    """
    ours, theirs = _counted(predicted), _counted(gold)
    if not ours or not theirs:
        return float(ours == theirs)
    return 2 * (ours & theirs).total() / (ours.total() + theirs.total())


def micro_f1(predicted: Sequence[str], gold: Sequence[str]) -> float:
    """Return the F1 over the entities of all texts together, as named-entity recognition reports it.

    A text without entities adds nothing unless something is found in it. 1.0 when no text has any and none is found.
    """
    pairs = [(_counted(p), _counted(g)) for p, g in zip(predicted, gold, strict=True)]
    counted = sum(p.total() + g.total() for p, g in pairs)
    return 2 * sum((p & g).total() for p, g in pairs) / counted if counted else 1.0


def _counted(text: str) -> Counter[Entity]:
    return Counter((kind.casefold(), words) for kind, words in read_entities(text))
