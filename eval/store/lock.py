"""Hold the cells that a run will write, so that no other run writes them at the same time.

One file a run, locked by the kernel for as long as the process lives: a lock is stale as soon as its owner is dead,
whoever has got its pid since then. What the file says (pid, host, experiment, cells) is for people and for the overlap.
"""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from crossover.eval.store.faults import storing
from crossover.models.errors import UserError


@contextlib.contextmanager
def holding(store: Path, cells: Sequence[str], experiment: str) -> Iterator[None]:
    """Hold the cells while the block runs; the locks of dead processes are taken over.

    Raises:
        UserError: a living run holds one of the cells, or the store cannot be written.
    """
    folder = store / "locks"
    with storing(store):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "gate").open("a") as gate:
            fcntl.flock(gate, fcntl.LOCK_EX)
            for owner in _living(folder):
                if both := set(cells) & set(owner["cells"]):
                    raise UserError(_taken(owner, len(both)))
            file = folder / f"{os.getpid()}-{time.monotonic_ns()}.json"
            own = file.open("x", encoding="utf-8")
            fcntl.flock(own, fcntl.LOCK_EX)
            facts = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
            json.dump(facts | {"experiment": experiment, "cells": list(cells)}, own)
            own.flush()
    try:
        yield
    finally:
        # The name first: a file that nobody holds would look like that of a dead run.
        file.unlink(missing_ok=True)
        own.close()


def _living(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield what the living runs hold, and remove the files of dead ones."""
    for file in sorted(folder.glob("*.json")):
        try:
            with file.open("r+", encoding="utf-8") as other:
                if not _free(other):
                    yield json.load(other)
                    continue
        except FileNotFoundError:  # its run has ended since
            continue
        file.unlink(missing_ok=True)


def _free(file: IO[str]) -> bool:
    """Return whether no living process holds the file."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _taken(owner: dict[str, Any], both: int) -> str:
    who = f"pid {owner['pid']} on {owner['host']}, since {owner['since']}"
    what = f"{owner['experiment']!r} is being run already ({who}) and measures {both} of the same cells"
    return f"{what}; wait for it, or end it and run again, which goes on from there"
