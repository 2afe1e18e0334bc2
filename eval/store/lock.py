"""Hold the cells that a run will write, so that no other run writes them at the same time.

One lock file a run, held by the kernel for as long as the process lives: a lock is stale as soon as its owner is dead,
whoever has got its pid since then. The JSON beside it (pid, host, experiment, cells) is for people and for the overlap.
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from crossover.eval.store.faults import storing
from crossover.models.errors import UserError
from crossover.models.jsonl import write_json


@contextlib.contextmanager
def holding(store: Path, cells: Sequence[str], experiment: str) -> Iterator[None]:
    """Hold the cells while the block runs; the locks of dead processes are taken over.

    Raises:
        UserError: a living run holds one of the cells, or the store cannot be written.
    """
    folder = store / "locks"
    file = folder / f"{os.getpid()}-{time.monotonic_ns()}.json"
    own = FileLock(file.with_suffix(".lock"))
    with storing(store):
        folder.mkdir(parents=True, exist_ok=True)
        # Looking at the others and joining them is one step, or two runs could both find the cells free.
        with FileLock(folder / "gate"):
            for owner in _living(folder):
                if both := set(cells) & set(owner["cells"]):
                    raise UserError(_taken(owner, len(both)))
            own.acquire(timeout=0)
            facts = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
            write_json(file, facts | {"experiment": experiment, "cells": list(cells)})
    try:
        yield
    finally:
        # The name first: a record that nobody holds would look like that of a dead run.
        _remove(file)
        own.release()


def _living(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of living runs, and remove those of dead ones; the caller holds the gate."""
    for file in sorted(folder.glob("*.json")):
        try:
            with FileLock(file.with_suffix(".lock"), timeout=0):
                _remove(file)
        except Timeout:
            # A run that ended in between has taken its record along.
            with contextlib.suppress(FileNotFoundError):
                yield json.loads(file.read_text(encoding="utf-8"))


def _remove(file: Path) -> None:
    file.unlink(missing_ok=True)
    file.with_suffix(".lock").unlink(missing_ok=True)


def _taken(owner: dict[str, Any], both: int) -> str:
    who = f"pid {owner['pid']} on {owner['host']}, since {owner['since']}"
    what = f"{owner['experiment']!r} is being run already ({who}) and measures {both} of the same cells"
    return f"{what}; wait for it, or end it and run again, which goes on from there"
