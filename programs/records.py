"""Rows of the user's data, each with its file and line, and the problems of those that cannot be read."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")


@dataclass(frozen=True)
class Problem:
    """One error or warning about a task or an experiment file."""

    level: str
    """`error`: cannot run; `warning`: can run, but may mislead; `note`: what was taken for granted."""
    where: str
    """File and line, or the task's name."""
    what: str
    """What is wrong, with the value."""
    remedy: str
    """The next step for the user."""

    def __str__(self) -> str:
        """Return the problem in one line."""
        return f"{self.level}: {self.where}: {self.what}; {self.remedy}"


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


def parsed_json(text: str) -> Any:
    """Return what a JSON text holds.

    Raises:
        JSONDecodeError: it is no JSON, or holds half of a character, thousands of digits, or thousands of brackets.
    """
    try:
        value = json.loads(text)
        if HALF_CHARACTER.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError:
        raise
    except UnicodeEncodeError as e:
        raise json.JSONDecodeError(f"half of a character, \\u{ord(e.object[e.start]):x},", text, 0) from e
    except RecursionError as e:
        raise json.JSONDecodeError("nested too deeply", text, 0) from e
    except ValueError as e:
        raise json.JSONDecodeError("a number with thousands of digits", text, 0) from e
    return value
