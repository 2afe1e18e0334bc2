"""Measure a fitted program on the test split: accuracy, then latency, uncached."""

import json
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import dspy

from eval.experiment import Cell
from eval.progress import Progress
from models.load import LoadedModel
from programs.score import Row, score_examples
from programs.task import Fitted, Spent, Task


@dataclass(frozen=True)
class Latency:
    """Latencies of uncached requests after warm-up."""

    seconds: tuple[float, ...]
    """One a request, in the order asked."""
    concurrency: int


@dataclass
class Result:
    """Everything measured of one cell."""

    key: str
    cell: Cell
    split_sha256: str
    rows: Sequence[Row]
    """One a test example, in the order of the split."""
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


def append_rows(file: Path, rows: list[Row]) -> None:
    """Append rows as JSON lines and make sure they are on the disk."""
    with file.open("a", encoding="utf-8") as f:
        for r in rows:
            f.write(json.dumps(asdict(r), ensure_ascii=False, default=str) + "\n")
        f.flush()
        os.fsync(f.fileno())


def read_rows(file: Path) -> list[Row]:
    """Read rows back; a line that a crash left torn is cut off, so that what follows starts on a line of its own."""
    if not file.exists():
        return []
    rows, good = [], 0
    with file.open("rb") as f:
        for line in f:
            try:
                rows.append(Row(**json.loads(line)))
            except (ValueError, TypeError):
                break
            good += len(line)
    if good < file.stat().st_size:
        with file.open("r+b") as f:
            f.truncate(good)
    return rows


def measure_accuracy(
    fitted: Fitted,
    task: Task,
    examples: Sequence[dspy.Example],
    model: LoadedModel,
    *,
    file: Path,
    threads: int,
    progress: Progress,
) -> tuple[list[Row], float]:
    """Score every example that `file` does not hold yet; return all rows in order, and the seconds that it took.

    The seconds are scaled to all examples when a resumed pass scored only some.
    """
    done = {r.id: r for r in read_rows(file)}
    return score_missing(fitted, task, examples, model, done, file=file, threads=threads, progress=progress)


def score_missing(
    fitted: Fitted,
    task: Task,
    examples: Sequence[dspy.Example],
    model: LoadedModel,
    done: dict[str, Row],
    *,
    file: Path,
    threads: int,
    progress: Progress,
) -> tuple[list[Row], float]:
    """Score the examples that are not done, adding them to `done` and to the file; return as `measure_accuracy`."""
    left = [e for e in examples if str(e["id"]) not in done]
    progress.examples(len(examples) - len(left), len(examples))
    start, fresh, batch = time.perf_counter(), 0, list[Row]()
    with dspy.context(lm=fitted.lm, adapter=model.adapter):
        for row in score_examples(fitted.program, left, task.metric, price=model.price, threads=threads):
            batch.append(row)
            done[row.id] = row
            fresh += 1
            if len(batch) >= 32:
                append_rows(file, batch)
                batch = []
            progress.examples(len(examples) - len(left) + fresh, len(examples))
    append_rows(file, batch)
    seconds = time.perf_counter() - start
    return [done[str(e["id"])] for e in examples], seconds * len(examples) / fresh if fresh else 0.0


@dataclass
class Probe:
    """One fitted arm, ready to answer single requests."""

    fitted: Fitted
    model: LoadedModel
    examples: Sequence[dspy.Example]
    retrieve: Callable[[dspy.Example], object] | None
    """Finds the passages of a question; timed with the answer, because a user waits for both."""
    seconds: list[float] = field(default_factory=list)
    retrieval_seconds: list[float] = field(default_factory=list)
    """The part of `seconds` that finding the passages of the question took."""
    rm: Callable[..., object] | None = None
    """What a program that writes queries of its own searches with."""


def measure_latency(probes: Sequence[Probe], *, requests: int, warm_up: int = 2) -> None:
    """Time single requests, one at a time, uncached, the arms interleaved so that a slow minute hurts all alike.

    The first `warm_up` requests of each arm are dropped. A request that fails is not timed.
    """
    for n in range(requests + warm_up):
        for p in probes:
            example = p.examples[n % len(p.examples)]
            with dspy.context(lm=p.fitted.lm, adapter=p.model.adapter, rm=p.rm):
                start = time.perf_counter()
                try:
                    if p.retrieve is not None:
                        p.retrieve(example)
                    retrieved = time.perf_counter() - start
                    p.fitted.program(**example.inputs())
                except Exception:  # the accuracy pass counts failures
                    continue
                seconds = time.perf_counter() - start
            if n >= warm_up:
                p.seconds.append(seconds)
                p.retrieval_seconds.append(retrieved)
