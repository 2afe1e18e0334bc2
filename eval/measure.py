"""Measure a fitted program on the test split: accuracy, then latency, uncached."""

import json
import os
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any

import dspy

from eval.experiment import Cell
from eval.progress import Progress
from eval.store.rows import Rows, read_table
from models.lines import whole_lines
from models.load import LoadedModel
from models.meter import Meter
from programs.retrieval.base import silent
from programs.score import Row, score_examples
from programs.task import Fitted, Spent, Task, UserError

MOVE_AWAY = "move the cell's folder away and run again, or restore it"
"""What to do about a cell whose files were damaged: it is neither reused nor deleted."""


@dataclass(frozen=True)
class Latency:
    """Latencies of uncached requests after warm-up."""

    seconds: tuple[float, ...]
    """One a request, in the order asked."""
    concurrency: int
    first_token: tuple[float, ...] = ()
    """Seconds until the answer began, of the requests whose model streams."""
    cold: tuple[float, ...] = ()
    """As `seconds`, with no state of any prompt kept; only models that run here can be made to forget."""
    cold_first_token: tuple[float, ...] = ()


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
    fit: Spent
    local: bool
    """The model ran on this machine, so that its price is machine time."""
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
    dropped: dict[str, Any] | None = None
    """Set when the arm left a race: `after` so many examples `of` so many, beaten `by` the cells of the arm in lead."""

    def stands(self, *, racing: bool, planned: Collection[str]) -> bool:
        """Return whether the result counts in an experiment: one of a race only beside the arm that won over it."""
        return self.dropped is None or (racing and not set(self.dropped["by"]).isdisjoint(planned))

    def summary(self) -> dict[str, Any]:
        """Return all but the rows, as JSON."""
        data = asdict(replace(self, rows=()))
        del data["rows"], data["human"]
        return data


def _plain(value: object) -> object:
    """Return what a program answered with as JSON can hold it."""
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)


_ENCODER = json.JSONEncoder(ensure_ascii=False, default=_plain)


def append_rows(file: Path, rows: list[Row]) -> None:
    """Append rows as JSON lines and make sure they are on the disk."""
    with file.open("a", encoding="utf-8") as f:
        for r in rows:
            # Not `asdict`, which copies every row in depth before it is written.
            f.write(_ENCODER.encode(vars(r)) + "\n")
        f.flush()
        os.fsync(f.fileno())


def read_rows(file: Path, note: Callable[[str], None] = silent) -> Iterator[Row]:
    """Yield the rows of a file; a last line that a crash left torn is cut off, so that the next one stands alone.

    Raises:
        UserError: a line before the last is damaged, which no crash of ours does.
    """
    if not file.exists():
        return
    good = 0
    with file.open("rb") as f:
        for number, line in enumerate(f, 1):
            try:
                if not line.endswith(b"\n"):
                    raise ValueError("torn")
                row = Row(**json.loads(line))
            except (ValueError, TypeError) as e:
                if f.read(1):
                    raise UserError(f"{file}:{number}: damaged; {MOVE_AWAY}") from e
                break
            good += len(line)
            yield row
    if good < file.stat().st_size:
        note(f"warning: {file}: the last line was torn by a crash; it is cut off and measured again")
        os.truncate(file, good)


def measure_accuracy(
    fitted: Fitted,
    task: Task,
    examples: Sequence[dspy.Example],
    model: LoadedModel,
    *,
    file: Path,
    threads: int,
    progress: Progress,
) -> tuple[Rows, float]:
    """Score every example that `file` does not hold yet; return all its rows, and the seconds that `examples` take.

    The seconds are at the pace of all rows that were ever scored, whichever process did. The answers of a provider are
    kept one by one until all rows stand: a pass that was killed pays for none of them twice.
    """
    # Of a row that is on the disk the id is enough: a million rows as objects would be most of a gigabyte.
    done = {sys.intern(r.id) for r in read_rows(file, progress.note)}
    left, table = [e for e in examples if str(e["id"]) not in done], read_table(file)
    before = len(examples) - len(left)
    progress.examples(before, len(examples))
    fresh, batch, kept = 0, list[Row](), time.perf_counter()
    answers, paces = None if model.local else file.with_name("serving.jsonl"), file.with_name("pace.jsonl")
    lm = fitted.lm if answers is None else Meter(file=answers).metered(fitted.lm)
    try:
        # The rows tell what was asked and answered; DSPy would keep ten thousand prompts once more, and their traces.
        with dspy.context(lm=lm, adapter=model.adapter, disable_history=True, trace=None):
            for row in score_examples(fitted.program, left, task.metric, price=model.price, threads=threads):
                batch.append(row)
                table.append(vars(row))
                fresh += 1
                # A write waits for the disk: rows that come by the thousand are written ten times a second.
                if len(batch) >= 32 and time.perf_counter() - kept >= 0.1:
                    kept = _keep(file, batch, paces, kept)
                    batch = []
                progress.examples(before + fresh, len(examples))
    finally:
        _keep(file, batch, paces, kept)
    if answers is not None:
        # From here on the rows hold what was paid for.
        answers.unlink(missing_ok=True)
    pace = [(line["rows"], line["seconds"]) for line in whole_lines(paces)]
    if not pace and len(table):
        # Rows of before there was a pace: the threads shared their time.
        pace = [(len(table), sum(table.seconds) / threads)]
    timed = sum(rows for rows, _ in pace)
    return table, sum(seconds for _, seconds in pace) * len(examples) / timed if timed else 0.0


def _keep(file: Path, rows: list[Row], paces: Path, since: float) -> float:
    """Append rows, and how long they took since a time; return the time now."""
    append_rows(file, rows)
    now = time.perf_counter()
    if rows:
        with paces.open("a", encoding="utf-8") as f:
            f.write(json.dumps({"rows": len(rows), "seconds": now - since}) + "\n")
    return now
