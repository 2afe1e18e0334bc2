"""Fit and score one cell in a worker of a backend.

Workers write into the store of the run, which is on a file system that they share with it, as is the data: a cell that
its worker left unfinished is then taken up from its rows, answers and checkpoints by whichever process comes next, as
after any other kill. So does the run when all are scored: it finds the rows, and times all arms in turn.
"""

import contextlib
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from io import StringIO
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from crossover.eval.experiment.spec import Cell, Experiment
from crossover.eval.run.calibration import TimedPart, machine_kind, peak_mib
from crossover.eval.run.cell import try_to_fit
from crossover.eval.run.context import RunContext
from crossover.eval.run.progress import Progress
from crossover.eval.store.cells import is_fitted, load_result
from crossover.eval.store.faults import storing
from crossover.models.api_keys import redact
from crossover.models.errors import UserError
from crossover.models.limits import UsageLimits


@dataclass(frozen=True)
class Job:
    """A run, as its workers need to know it."""

    name: str
    """Different for every run: workers keep tasks and models from cell to cell of one run."""
    experiment: Experiment = field(compare=False)
    store: Path = field(compare=False)
    threads: int = field(compare=False)
    """Concurrent calls of each worker."""


class Outcome(NamedTuple):
    """What a worker reports of a cell, besides the files in the store."""

    key: str
    failure: str
    """Why the cell could not be fitted or scored; empty when it was."""
    part: TimedPart | None = None
    """How long it took; None for a cell that was begun before, which takes less."""


Backend = Callable[[Job, Mapping[str, Cell], UsageLimits], Iterator[Outcome]]
"""Scores cells, given by key, and yields an outcome for each in the order in which they are done.

It raises `Stopped` as soon as the limits do, and then ends what its workers are doing.
"""


def score_cell(job: Job, key: str, cell: Cell) -> Outcome:
    """Fit a cell and score it on test, unless it is finished in the store; an error becomes a failure.

    The lock keeps two workers from writing one cell: one that was taken for dead may still be at work.
    """
    locks = job.store / "locks"
    try:
        with storing(job.store):
            locks.mkdir(parents=True, exist_ok=True)
            with FileLock(locks / f"cell-{key}.lock"):
                began, whole = time.perf_counter(), not is_fitted(job.store, key)
                why = _score(_context(job), key, cell)
                seconds, kind = time.perf_counter() - began, machine_kind(cell.model)
                return Outcome(key, why, TimedPart(kind, seconds, peak_mib()) if whole else None)
    except Exception as e:
        why = str(e) if isinstance(e, UserError) else f"{type(e).__name__}: {e}"
        return Outcome(key, failure(cell, why))


def failure(cell: Cell, why: str) -> str:
    """Return the sentence that reports a cell as not measured."""
    return redact(f"{cell.task}, {cell.method.label}, seed {cell.seed} could not be measured: {why}")


def _score(context: RunContext, key: str, cell: Cell) -> str:
    """Score a cell, and return why it could not be fitted; empty when it was."""
    if context.keys.of(cell) != key:
        what = f"{socket.gethostname()} has other data, weights or code than the machine of the run"
        raise UserError(f"{what}; let both see the same files and the same version of crossover")
    before = load_result(context.store, key)
    if before is not None and before.dropped is None and context.is_whole(before):
        return ""
    _settle_format(context, cell)
    if (fitted_cell := try_to_fit(context, cell)) is None:
        return context.failures[-1]
    fitted_cell.score(context, fitted_cell.test)
    return ""


@lru_cache(maxsize=1)
def _context(job: Job) -> RunContext:
    """Return the context of a run, kept for the worker's next cell."""
    # Not a word of it: the run says the same when it takes the fitted cell over.
    progress = Progress(stream=StringIO(), enabled=False)
    return RunContext.of(job.experiment, store=job.store, threads=job.threads, progress=progress)


def _settle_format(context: RunContext, cell: Cell) -> None:
    """Choose the prompt format that the cell shares with others, one worker at a time, so that it is paid for once."""
    # An error comes again while the cell is fitted, and is reported there.
    with contextlib.suppress(Exception):
        context.model(cell.model)
        with FileLock(context.store / "locks" / "formats.lock"):
            context.prompt_format(cell)
