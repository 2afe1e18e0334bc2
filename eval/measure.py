"""Measure a fitted program on the test split: accuracy, then latency, uncached."""

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import dspy

from eval.experiment import Cell
from eval.progress import Progress
from models.first_token import noting_first_token
from models.load import LoadedModel
from models.prompt import engine_of
from programs.score import Row, score_examples
from programs.task import Fitted, Spent, Task


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

    def summary(self) -> dict[str, Any]:
        """Return all but the rows, as JSON."""
        data = asdict(replace(self, rows=()))
        del data["rows"]
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
    left = [e for e in examples if str(e["id"]) not in done]
    progress.examples(len(done), len(examples))
    start, fresh, batch = time.perf_counter(), 0, list[Row]()
    with dspy.context(lm=fitted.lm, adapter=model.adapter):
        for row in score_examples(fitted.program, left, task.metric, price=model.price, threads=threads):
            batch.append(row)
            done[row.id] = row
            fresh += 1
            if len(batch) >= 32:
                append_rows(file, batch)
                batch = []
            progress.examples(len(done), len(examples))
    append_rows(file, batch)
    seconds = time.perf_counter() - start
    return [done[str(e["id"])] for e in examples], seconds * len(examples) / fresh if fresh else 0.0


@dataclass(frozen=True)
class Timing:
    """One uncached request, in seconds."""

    seconds: float
    retrieval: float
    """The part that finding the passages of the question took."""
    first_token: float | None
    """From the question to the beginning of the last answer; None where the model does not stream."""


@dataclass
class Probe:
    """One fitted arm, ready to answer single requests."""

    fitted: Fitted
    model: LoadedModel
    examples: Sequence[dspy.Example]
    retrieve: Callable[[dspy.Example], object] | None
    """Finds the passages of a question; timed with the answer, because a user waits for both."""
    rm: Callable[..., object] | None = None
    """What a program that writes queries of its own searches with."""
    warm: list[Timing] = field(default_factory=list)
    cold: list[Timing] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Ask the fitted model by its stream."""
        self._lm, self._engine = noting_first_token(self.fitted.lm)

    def ask(self, example: dspy.Example, *, forget: bool = False) -> Timing | None:
        """Time one request, None when it fails; `forget` drops what the model keeps of earlier prompts."""
        if forget and (engine := engine_of(self.fitted.lm)) is not None:
            engine.prefixes.clear()
        with dspy.context(lm=self._lm, adapter=self.model.adapter, rm=self.rm):
            start = time.perf_counter()
            try:
                if self.retrieve is not None:
                    self.retrieve(example)
                retrieved = time.perf_counter()
                self.fitted.program(**example.inputs())
            except Exception:  # the accuracy pass counts failures
                return None
            began = self._engine.began
            return Timing(time.perf_counter() - start, retrieved - start, None if began is None else began - start)

    def latency(self) -> Latency:
        """Return what was timed, one request at a time."""
        return Latency(
            tuple(t.seconds for t in self.warm), 1,
            first_token=tuple(t.first_token for t in self.warm if t.first_token is not None),
            cold=tuple(t.seconds for t in self.cold),
            cold_first_token=tuple(t.first_token for t in self.cold if t.first_token is not None),
        )  # fmt: skip


def measure_latency(probes: Sequence[Probe], *, requests: int, cold_requests: int = 0, warm_up: int = 2) -> None:
    """Time single requests, one at a time, uncached, the arms interleaved so that a slow minute hurts all alike.

    The first `warm_up` requests of each arm are dropped; after the others come `cold_requests` to each local model,
    with nothing kept of the prompts before. A request that fails is not timed.
    """
    for n in range(requests + warm_up):
        for p in probes:
            timing = p.ask(p.examples[n % len(p.examples)])
            if timing is not None and n >= warm_up:
                p.warm.append(timing)
    for n in range(cold_requests):
        for p in probes:
            if p.model.local and (timing := p.ask(p.examples[n % len(p.examples)], forget=True)) is not None:
                p.cold.append(timing)
