"""Rows by the hundred thousand: columns in place of objects, so that a dozen arms of a large test set fit in memory.

Pyarrow does not build them: its JSON reader gives up a file for a torn last line, and for a field of an answer that
changes its type from row to row.
"""

import json
import math
import re
import sys
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import orjson

from crossover.programs.score import Row

_COUNTS = ("prompt_tokens", "cached_tokens", "completion_tokens", "calls")
# Made once: `json.dumps` with options makes an encoder for every row.
_write, _read = json.JSONEncoder(ensure_ascii=False, default=str).encode, json.JSONDecoder().decode
_FIELDS = {f.name for f in fields(Row)}
_REQUIRED = {f.name for f in fields(Row) if f.default is MISSING and f.default_factory is MISSING}
"""Rows of methodology 4 and before have no other fields."""
CHUNK, LONG = 1 << 14, re.compile(rb"[0-9]{19}")
"""Bytes of rows that are read at once; digits of a number that may have more than 64 bits."""


class Rows(Sequence[Row]):
    """A sequence of rows that keeps columns and makes a `Row` when one is asked for."""

    def __init__(self) -> None:
        """Start without rows."""
        self.ids: list[str] = []
        self.scores = array("d")
        """NaN for a failed row."""
        self.usd = array("d")
        """NaN for an unknown price."""
        self.seconds = array("d")
        # Four bytes: a request of two billion tokens is a broken row.
        self.counts = {name: array("i") for name in _COUNTS}
        """Tokens and calls, by the field's name."""
        self._failures: dict[int, str] = {}
        self._unparsed = bytearray()
        """1 for an unparsed answer, else 0."""
        self._estimated = bytearray()
        """1 for a row whose tokens were counted here, else 0."""
        self._endings: dict[int, str] = {}
        self._outputs: list[str] = []
        self._raws: list[str] = []
        self.fields: dict[str, array[float]] = {}
        """Scores of parts, by name: 0 for an unparsed answer, NaN for a failed row."""

    @classmethod
    def of(cls, rows: Sequence[Row]) -> "Rows":
        """Return rows as columns; those that are columns already come back as they are."""
        if isinstance(rows, cls):
            return rows
        table = cls()
        for row in rows:
            table.append(vars(row))
        return table

    def append(self, row: dict[str, Any]) -> None:
        """Add one row by its fields; ids and answers that stood before are not kept twice.

        Raises:
            TypeError: a field is missing, unknown or of a wrong type.
        """
        whole = isinstance(row, dict) and _REQUIRED <= row.keys() <= _FIELDS
        if not whole or not isinstance(row["id"], str) or not isinstance(row["output"], dict):
            raise TypeError(f"not a row: {row}")
        raw = sys.intern(row.get("raw", ""))
        score, usd = (math.nan if row[name] is None else float(row[name]) for name in ("score", "usd"))
        seconds, counts = float(row["seconds"]), array("i", [row[name] for name in _COUNTS])
        fields = {name: float(value) for name, value in row.get("fields", {}).items()}
        # Nothing below can fail, so that the columns stay of one length.
        for name in [name for name in fields if name not in self.fields]:
            self.fields[name] = array("d", [0.0 if wrong else math.nan for wrong in self._unparsed])
        for name, values in self.fields.items():
            values.append(fields.get(name, 0.0 if row.get("unparsed") else math.nan))
        if row["failure"]:
            self._failures[len(self.ids)] = str(row["failure"])
        if row.get("ending"):
            self._endings[len(self.ids)] = str(row["ending"])
        self.scores.append(score)
        self.usd.append(usd)
        self.seconds.append(seconds)
        for column, count in zip(self.counts.values(), counts, strict=True):
            column.append(count)
        self._unparsed.append(bool(row.get("unparsed")))
        self._estimated.append(bool(row.get("tokens_estimated")))
        self._outputs.append(sys.intern(_write(row["output"])))
        self._raws.append(raw)
        self.ids.append(sys.intern(row["id"]))

    def extend(self, rows: Sequence[Any]) -> bool:
        """Add rows by their fields, column by column, and return True; add none and return False where they differ.

        They differ where one has other fields than another, scores of parts, or is broken: `append` takes those.
        """
        columns = None if self.fields else _columns_of(rows)
        if columns is None:
            return False
        start, numbers = len(self.ids), columns.numbers
        self._failures |= {start + n: str(row["failure"]) for n, row in enumerate(rows) if row["failure"]}
        self._endings |= {start + n: str(row["ending"]) for n, row in enumerate(rows) if row.get("ending")}
        self.scores += numbers["score"]
        self.usd += numbers["usd"]
        self.seconds += numbers["seconds"]
        for name, column in self.counts.items():
            column += numbers[name]
        self._unparsed += bytes(bool(row.get("unparsed")) for row in rows)
        self._estimated += bytes(bool(row.get("tokens_estimated")) for row in rows)
        self._outputs += columns.outputs
        self._raws += columns.raws
        self.ids += columns.ids
        return True

    def __len__(self) -> int:
        """Return how many rows there are."""
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        """Return one row, or a list of several."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[index]
        score, usd = self.scores[i], self.usd[i]
        return Row(
            id=self.ids[i],
            score=None if math.isnan(score) else score,
            failure=self._failures.get(i, ""),
            seconds=self.seconds[i],
            usd=None if math.isnan(usd) else usd,
            output=json.loads(self._outputs[i]),
            unparsed=bool(self._unparsed[i]),
            raw=self._raws[i],
            ending=self._endings.get(i, ""),
            tokens_estimated=bool(self._estimated[i]),
            fields={name: column[i] for name, column in self.fields.items() if not math.isnan(column[i])},
            **{name: counts[i] for name, counts in self.counts.items()},
        )

    def __iter__(self) -> Iterator[Row]:
        """Return the rows one after the other."""
        return (self[i] for i in range(len(self)))

    def scored(self) -> Iterable[tuple[str, float]]:
        """Return id and score of the rows that did not fail."""
        # Most scores are 0 or 1: one object for each value, not one for each row.
        same: dict[float, float] = {}
        return ((i, same.setdefault(s, s)) for i, s in zip(self.ids, self.scores, strict=True) if s == s)

    def scored_field(self, name: str) -> dict[str, float]:
        """Return the scores of one part by id, without the rows that failed."""
        return {i: s for i, s in zip(self.ids, self.fields.get(name, ()), strict=False) if s == s}

    @property
    def failed(self) -> int:
        """Return how many rows have no score, for reasons outside the model."""
        return int(np.isnan(self.scores).sum())

    @property
    def charged(self) -> int:
        """Return how many rows are requests: they have a score, or made a call that counts."""
        return int((~np.isnan(self.scores) | (np.asarray(self.counts["calls"]) > 0)).sum())

    @property
    def first_failure(self) -> str:
        """Return the reason of the first failed row, or an empty string."""
        return next(iter(self._failures.values()), "")

    @property
    def unparsed(self) -> int:
        """Return how many answers could not be parsed, were empty, or were none of the labels."""
        return sum(self._unparsed)

    @property
    def endings(self) -> Counter[str]:
        """Return how many answers are not whole, by the reason, as in `Row.ending`."""
        return Counter(self._endings.values())

    @property
    def tokens_estimated(self) -> bool:
        """Return whether the tokens of a row were counted here, not by the provider."""
        return any(self._estimated)


class _Columns(NamedTuple):
    """Rows of the same fields as columns."""

    numbers: "dict[str, array[Any]]"
    ids: list[str]
    outputs: list[str]
    raws: list[str]


def _columns_of(rows: Sequence[Any]) -> _Columns | None:
    """Return rows as columns; None where they differ in their fields, have scores of parts, or one is broken."""
    names = rows[0].keys() if rows and isinstance(rows[0], dict) else set()
    if not _REQUIRED <= names <= _FIELDS:
        return None
    for row in rows:
        alike = isinstance(row, dict) and row.keys() == names and not row.get("fields")
        if not alike or not isinstance(row["id"], str) or not isinstance(row["output"], dict):
            return None
    try:
        numbers: dict[str, array[Any]] = {name: array("i", [row[name] for row in rows]) for name in _COUNTS}
        for name in ("score", "usd"):
            numbers[name] = array("d", [math.nan if (value := row[name]) is None else value for row in rows])
        numbers["seconds"] = array("d", [row["seconds"] for row in rows])
        outputs = [sys.intern(orjson.dumps(row["output"]).decode()) for row in rows]
        raws = [sys.intern(row.get("raw", "")) for row in rows]
    except (TypeError, OverflowError):
        return None
    return _Columns(numbers, [sys.intern(row["id"]) for row in rows], outputs, raws)


def read_table(file: Path) -> Rows:
    """Read a file of rows as columns, up to the first line that is not whole."""
    table = Rows()
    if file.exists():
        with file.open("rb") as f:
            while lines := f.readlines(CHUNK):
                if table.extend(_decoded(lines)):
                    continue
                try:
                    for line in lines:
                        table.append(_read(line.decode()))
                except (ValueError, TypeError, OverflowError):
                    break
    return table


def _decoded(lines: Sequence[bytes]) -> list[Any]:
    """Return the lines read by orjson, in a third of json's time; none where one is torn, or json reads another value.

    Orjson rounds whole numbers of more than 64 bits, and refuses NaN.
    """
    if LONG.search(b"".join(lines)):
        return []
    try:
        return [orjson.loads(line) for line in lines]
    except ValueError:
        return []
