"""Rows of the user's data, each with its file and line, and the problems of those that cannot be read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crossover.programs.task import Problem


@dataclass(frozen=True)
class Record:
    """One row of the user's data."""

    values: Mapping[str, Any]
    where: str
    """`file:line`; `file:row`, from 1, for JSON arrays, parquet and Hugging Face."""


Read = tuple[list[Record], list[Problem]]
"""The rows that could be read, and the problems of the others."""


def fault(where: str, what: str, remedy: str) -> Problem:
    """Return a problem of level `error`."""
    return Problem("error", where, what, remedy)


def few(problems: Sequence[Problem], limit: int = 5) -> list[Problem]:
    """Return the first problems of one kind and one that counts the rest."""
    if len(problems) <= limit + 1:
        return list(problems)
    last = problems[limit]
    return [
        *problems[:limit],
        Problem(last.level, last.where, f"the same here and {len(problems) - limit - 1} times more", last.remedy),
    ]


def one_line(error: Exception, most: int) -> str:
    """Return the start of an error's text on one line."""
    return " ".join(str(error).split())[:most]
