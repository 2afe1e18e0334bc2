"""What is measured of one cell, and its rows on disk."""

import json
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any, Self

from crossover.eval.experiment.spec import Cell
from crossover.eval.store.facts import flat_notes
from crossover.models.jsonl import LineWriter, append_lines, read_lines, replacing
from crossover.models.usage import Usage
from crossover.programs.retrieval.base import silent
from crossover.programs.score import Row
from crossover.programs.task import FitFacts, Task

MOVE_AWAY = "move the cell's folder away and run again, or restore it"
"""What to do about a cell whose files were damaged: it is neither reused nor deleted."""


@dataclass(frozen=True)
class Latency:
    """Latencies of uncached requests after warm-up."""

    seconds: tuple[float, ...]
    """One a request, in the order asked."""
    concurrency: int
    ids: tuple[str, ...] = ()
    """Example id of each of `seconds`; empty in results of earlier versions, whose seeds asked the same questions."""
    first_token: tuple[float, ...] = ()
    """Seconds until the answer began, of the requests whose model streams."""
    cold: tuple[float, ...] = ()
    """As `seconds`, with no state of any prompt kept; only models that run here can be made to forget."""
    cold_first_token: tuple[float, ...] = ()
    batched: tuple[float, ...] = ()
    """Seconds a request in batches, one number a block, all arms in turn; empty for an API and in earlier results."""
    batch: int = 0
    """Requests in each batch, asked all at once with the arm's own prefix kept."""


@dataclass
class Result:
    """Everything measured of one cell."""

    key: str
    cell: Cell
    split_sha256: str
    rows: Sequence[Row]
    """One a test example, in the order in which they were answered."""
    serve_seconds: float
    """Wall time of the accuracy pass."""
    latency: Latency
    fit: Usage
    local: bool
    """The model ran on this machine, so that its price is machine time."""
    facts: FitFacts = field(default_factory=FitFacts)
    notes: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    integrity: list[str] = field(default_factory=list)
    """Checks of a fair comparison that failed; a verdict never recommends such an arm."""
    clusters: dict[str, str] = field(default_factory=dict)
    """Example id to cluster, where the task names one."""
    hits: dict[str, bool] = field(default_factory=dict)
    """Example id to whether retrieval found all its gold passages; empty where nothing was retrieved."""
    mlflow_run_id: str = ""
    rows_sha256: str = ""
    """Hash of the file of rows, by which a changed one is found out."""
    human: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Example id to what people graded its answer, by criterion; kept in a file of its own."""
    finished_on: str = ""
    """Day on which the result was saved, such as `2026-11-27`; empty in results of earlier versions."""
    dropped: dict[str, Any] | None = None
    """Set when the arm left a race: `after` so many examples `of` so many, beaten `by` the cells of the arm in lead."""

    def stands(self, *, racing: bool, planned: Collection[str]) -> bool:
        """Return whether the result counts in an experiment: one of a race only beside the arm that won over it."""
        return self.dropped is None or (racing and not set(self.dropped["by"]).isdisjoint(planned))

    def summary(self) -> dict[str, Any]:
        """Return all but the rows, as JSON."""
        data = asdict(replace(self, rows=()))
        del data["rows"], data["human"], data["facts"]
        data["notes"] = flat_notes(self.facts, data["notes"])
        return data


@dataclass(frozen=True)
class Finished:
    """What the store holds of an experiment."""

    tasks: Mapping[str, Task]
    results: tuple[Result, ...]
    """In the order of the plan."""
    planned: int
    """Cells of the experiment."""


def _plain(value: object) -> object:
    """Return a value of an answer in a form that JSON can hold."""
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)


def append_rows(file: Path, rows: list[Row]) -> None:
    """Append rows as JSON lines and make sure they are on the disk."""
    with row_writer(file) as writer:
        # Not `asdict`, which copies every row in depth before it is written.
        writer.write(map(vars, rows))
        writer.sync()


def row_writer(file: Path) -> LineWriter:
    """Return what appends `vars(row)` of each row to a file of rows."""
    return LineWriter(file, _plain)


class RowLog:
    """Write rows to a file as they are answered, and beside it the pace at which they come."""

    def __init__(self, file: Path) -> None:
        """Open the file to append to it."""
        self.paces = file.with_name("pace.jsonl")
        """One object a sync: `rows` that were answered since the one before, in `seconds`."""
        self._writer = row_writer(file)
        self._unsynced, self._synced = list[Row](), time.perf_counter()

    def __enter__(self) -> Self:
        """Return the log."""
        return self

    def __exit__(self, *error: object) -> None:
        """Sync the last rows and close the file."""
        with self._writer:
            self._sync()

    def add(self, rows: Sequence[Row]) -> None:
        """Write rows, which from then on outlive this process."""
        self._writer.write(map(vars, rows))
        self._unsynced += rows
        # A sync waits for the disk: rows that come by the thousand share ten a second.
        if time.perf_counter() - self._synced >= 0.1:
            self._sync()

    def _sync(self) -> None:
        """Sync the rows, and record the seconds since the last sync, less the share of failed rows."""
        self._writer.sync()
        now, rows = time.perf_counter(), self._unsynced
        answered, total = [r for r in rows if not r.failure], sum(r.seconds for r in rows)
        if answered:
            share = sum(r.seconds for r in answered) / total if total else 1.0
            append_lines(self.paces, [{"rows": len(answered), "seconds": (now - self._synced) * share}])
        self._unsynced, self._synced = [], now


def read_rows(file: Path, note: Callable[[str], None] = silent) -> Iterator[Row]:
    """Yield the rows of a file; a last line that a crash left torn is cut off, so that the next one stands alone.

    Raises:
        UserError: a line before the last is damaged, which no crash of ours does.
    """
    return read_lines(file, lambda line: Row(**json.loads(line)), note=note, remedy=MOVE_AWAY)


def drop_failed_rows(file: Path, note: Callable[[str], None] = silent) -> None:
    """Replace a file of rows by one without those that failed; a file without any stays as it is.

    Raises:
        UserError: a line before the last is damaged.
    """
    if not any(row.failure for row in read_rows(file, note)):
        return

    def scored(line: bytes) -> bytes:
        return b"" if Row(**json.loads(line)).failure else line

    with replacing(file) as draft, draft.open("wb") as f:
        f.writelines(read_lines(file, scored))
        f.flush()
        os.fsync(f.fileno())
