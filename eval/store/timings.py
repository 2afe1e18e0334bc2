"""Keep how long the parts of runs took beside their forecasts, so that the next forecast is scaled by them."""

from pathlib import Path
from typing import NamedTuple

from crossover.models.jsonl import append_lines, read_lines


class Timed(NamedTuple):
    """The cells of one task and model that a run measured, all of them and from their beginning."""

    machine: str
    """Kind of machine, such as `Linux x86_64, 2 cores`."""
    model: str
    work: float
    """Tokens that the cells were expected to compute, weighted by how long each takes."""
    seconds: float
    expected: float | None
    """Seconds by the forecast; None where nothing of this model was timed on such a machine before."""
    mib: float
    """Most memory that the process has had so far."""


def save_timed(store: Path, timed: Timed) -> None:
    """Append a record to the store."""
    append_lines(store / "timings.jsonl", [timed._asdict()])


def read_timed(store: Path) -> list[Timed]:
    """Return the records of the store, oldest first.

    Raises:
        UserError: a line before the last is damaged.
    """
    return [Timed(**line) for line in read_lines(store / "timings.jsonl")]
