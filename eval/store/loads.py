"""Keep load tests in the store, one file a level of load: a line for the level, then a line for each request."""

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from crossover.models.errors import UserError
from crossover.models.jsonl import append_lines, replacing

Loop = Literal["closed", "open"]
"""`closed`: a number of users, each of whom asks again once answered; `open`: requests come at a rate, whatever
becomes of those before."""


class LoadRequest(NamedTuple):
    """One request of a load test."""

    cell: str
    seconds: float
    """From its arrival until the whole answer, the wait for a free connection included."""
    first_token: float | None
    """Seconds from its arrival until the answer began; None for a model that does not stream."""
    tokens: int
    """Tokens of the answer."""
    failure: str
    """Why there is no answer; empty where there is one."""


@dataclass(frozen=True)
class LoadLevel:
    """All requests at one level of load."""

    task: str
    cells: tuple[str, ...]
    """Keys of the cells that were asked in turn."""
    loop: Loop
    load: float
    """Users at once of a closed loop, requests a second of an open one."""
    server: str
    """Address of the server, the provider of an API, or the machine that ran the models itself."""
    seconds: float
    """From the first arrival until the last answer."""
    requests: tuple[LoadRequest, ...]


def save_load(store: Path, level: LoadLevel) -> Path:
    """Write a level of load to a new file of the store and return the file."""
    folder = store / "load"
    number = 1 + max((int(f.stem) for f in folder.glob("*.jsonl") if f.stem.isdecimal()), default=0)
    head = {k: v for k, v in asdict(level).items() if k != "requests"}
    with replacing(folder / f"{number}.jsonl") as draft:
        append_lines(draft, (head, *(r._asdict() for r in level.requests)), fsync=True)
    return folder / f"{number}.jsonl"


def read_loads(store: Path, cells: Collection[str]) -> list[LoadLevel]:
    """Return the levels of load, oldest first, at which none but these cells were asked.

    Raises:
        UserError: a file is damaged.
    """
    files = [f for f in (store / "load").glob("*.jsonl") if f.stem.isdecimal()]
    levels = [_read(file) for file in sorted(files, key=lambda f: int(f.stem))]
    return [level for level in levels if set(level.cells) <= set(cells)]


def _read(file: Path) -> LoadLevel:
    try:
        head, *lines = (json.loads(line) for line in file.read_text(encoding="utf-8").rstrip("\n").split("\n"))
        values: dict[str, Any] = head | {"cells": tuple(head["cells"])}
        return LoadLevel(**values, requests=tuple(LoadRequest(**line) for line in lines))
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{file}: damaged ({type(e).__name__}); remove it, and `crossover load` again") from e
