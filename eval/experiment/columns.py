"""Describe the columns of a data file: of which kind their values are, and which part of a task they look like."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from crossover.programs.entities import entities_of
from crossover.programs.fields import text_of
from crossover.programs.records import Record

DATE = re.compile(r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}([T ].*)?|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}([T ].*)?")
NUMBER = re.compile(r"[-+]?\d+([.,]\d+)*")
YES_NO = {"yes", "no", "true", "false", "y", "n", "0", "1"}
MOST_LABELS, ROWS_A_LABEL, LABEL_LENGTH = 50, 4, 60
"""A column of labels has at most so many, each at least so often on average, and none is longer."""
ID_LENGTH = 40
ID_WORDS = re.compile(r"\b(id|key|no|nr|number|uuid|guid|sku|index|ref|row)\b")
GROUP_WORDS = re.compile(r"\b(customer|client|user|author|account|patient|session|thread|group|cluster)\b")
INPUT_WORDS = re.compile(
    r"\b(text|question|input|prompt|message|body|description|title|subject|content|query|instruction|sentence|review"
    r"|comment|document|context|ticket|email|request|history)\b"
)
OUTPUT_WORDS = re.compile(
    r"\b(labels?|class|category|answers?|output|target|queue|intent|topic|sentiment|completion|response|result|gold"
    r"|expected|solution|summary|translation|tag|team|department|priority|entities)\b"
)


@dataclass
class Column:
    """One column of a data file, and what a task takes it for."""

    name: str
    kind: str
    """text, label, yes/no, number, date, id, group, spans, list, object or empty."""
    distinct: int
    example: str
    role: str = "ignored"
    """input, output, gold, id, group or ignored."""

    @property
    def words(self) -> str:
        """Return the words of its name, in lower case."""
        return re.sub(r"[\W_]+|(?<=[a-z])(?=[A-Z])", " ", self.name).lower()


def columns_in(records: Sequence[Record]) -> list[Column]:
    """Return the columns of the rows in their order, without roles."""
    names = dict.fromkeys(c for r in records for c in r.values)
    return [_described(name, [r.values.get(name) for r in records]) for name in names]


def _described(name: str, values: Sequence[Any]) -> Column:
    """Return a column by its values."""
    filled = [v for v in values if text_of(v).strip()]
    texts = [text_of(v).strip() for v in filled]
    example = max(texts[:20], key=len, default="") if texts and len(texts[0]) > ID_LENGTH else next(iter(texts), "")
    column = Column(name, "", len(set(texts)), example)
    column.kind = _kind(column, filled, texts, len(values))
    return column


def _kind(column: Column, filled: Sequence[Any], texts: Sequence[str], rows: int) -> str:
    """Return the kind of a column's values."""
    if not filled:
        return "empty"
    if _are_spans(filled):
        return "spans"
    if any(isinstance(v, dict) for v in filled):
        return "object"
    if any(isinstance(v, list) for v in filled):
        return "list"
    if sum(bool(DATE.fullmatch(t)) for t in texts) > 0.9 * len(texts):
        return "date"
    plain = all(" " not in t and len(t) <= ID_LENGTH for t in texts)
    if column.distinct == rows and plain and (ID_WORDS.search(column.words) or all(re.search(r"\d", t) for t in texts)):
        return "id" if ID_WORDS.search(column.words) or not all(NUMBER.fullmatch(t) for t in texts) else "number"
    if {t.lower() for t in texts} <= YES_NO and column.distinct > 1:
        return "yes/no"
    if GROUP_WORDS.search(column.words) and plain and column.distinct < rows:
        return "group"
    short = max(map(len, texts)) <= LABEL_LENGTH
    if short and column.distinct <= min(MOST_LABELS, len(texts) / ROWS_A_LABEL):
        return "label"
    return "number" if all(NUMBER.fullmatch(t) for t in texts) else "text"


def _are_spans(values: Sequence[Any]) -> bool:
    """Return whether the values are lists of `{type, text}`, also written as JSON."""
    lists = [v for v in values if isinstance(v, list) or (isinstance(v, str) and v.lstrip().startswith("[{"))]
    if not any(lists) or len(lists) < len(values) / 2:
        return False
    try:
        return any(entities_of(v) != "none" for v in lists)
    except ValueError:
        return False
