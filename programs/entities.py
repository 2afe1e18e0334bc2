"""Entities as text: one `type: words` a line, `none` when there is nothing to extract."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from crossover.programs.records import parsed_json

Entity = tuple[str, str]
"""Type and words, the words verbatim from the text."""
NONE = "none"


def entity_lines(entities: Iterable[Entity]) -> str:
    """Return entities in the form in which a program answers them."""
    return "\n".join(f"{kind}: {words}" for kind, words in entities) or NONE


def read_entities(text: str) -> list[Entity]:
    """Return the entities of an answer with single spaces; a line without a type is an entity without type.

    List markers, which models like to write, are ignored.
    """
    entities = []
    for line in text.splitlines():
        plain = " ".join(line.split()).removeprefix("- ").removeprefix("* ")
        kind, colon, words = plain.partition(":")
        if plain and plain.casefold().strip(".") != NONE:
            entities.append((kind.strip(), words.strip()) if colon else ("", plain))
    return entities


def entities_of(value: Any) -> str:
    """Return a data file's value as lines: from a list of `{type, text}`, the same as JSON text, or lines.

    Raises:
        ValueError: the value is none of these.
    """
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        value = parsed_json(value)
    if isinstance(value, dict):
        raise ValueError("one JSON object, not a list of {type, text}; its keys are fields of `program: record`")
    if isinstance(value, str):
        return entity_lines(read_entities(value))
    if not isinstance(value, list | tuple):
        raise ValueError("not a list of {type, text}")
    entities = []
    for part in value:
        kind, words = (part.get("type"), part.get("text")) if isinstance(part, dict) else (None, None)
        if not isinstance(kind, str) or not isinstance(words, str) or not kind.strip() or not words.strip():
            raise ValueError(f"{str(part)[:60]} is no {{type, text}}")
        entities.append((" ".join(kind.split()), " ".join(words.split())))
    return entity_lines(entities)


def entity_f1(predicted: str, gold: str) -> float:
    """Return the F1 of one text's entities, with type and words both right; 1.0 when neither answer has any.

    A repeated entity counts as often as it is repeated. Words are compared verbatim, types without regard to case.
    """
    ours, theirs = _counted(predicted), _counted(gold)
    if not ours or not theirs:
        return float(ours == theirs)
    return 2 * (ours & theirs).total() / (ours.total() + theirs.total())


def micro_f1(predicted: Sequence[str], gold: Sequence[str]) -> float:
    """Return the F1 over the entities of all texts together, as named-entity recognition reports it.

    A text without entities counts only if some are predicted. 1.0 when no text has any and none are predicted.
    """
    pairs = [(_counted(p), _counted(g)) for p, g in zip(predicted, gold, strict=True)]
    counted = sum(p.total() + g.total() for p, g in pairs)
    return 2 * sum((p & g).total() for p, g in pairs) / counted if counted else 1.0


def _counted(text: str) -> Counter[Entity]:
    return Counter((kind.casefold(), words) for kind, words in read_entities(text))
