"""Fit the cells of an experiment without measuring them; `run` and `eval` take up what was fitted."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from crossover.eval.experiment.spec import Cell, Experiment, Kind, kind_of, plan
from crossover.eval.report.table import money
from crossover.eval.run.cell import start_cell
from crossover.eval.run.interrupt import interruptible
from crossover.eval.run.progress import Progress, duration
from crossover.eval.run.work import Work
from crossover.eval.store.cells import cell_folder, is_finished
from crossover.eval.store.faults import refusal, storing
from crossover.eval.store.lock import holding
from crossover.models.errors import UserError
from crossover.models.limits import Stopped
from crossover.models.usage import Usage

WORDS: dict[Kind, str] = {"context": "in context", "weights": "in weights"}


@dataclass(frozen=True)
class Fits:
    """What came of fitting."""

    fitted: Sequence[tuple[Cell, Path, Usage]]
    """Each cell with the folder that holds its program and weights, and what fitting it took."""
    failures: Sequence[str]
    finished: int
    """Cells that were fitted and measured before."""
    missing: int
    """Cells that a limit or Ctrl-C left out."""
    stopped: str
    """What ended it early, or nothing."""


def fit_experiment(experiment: Experiment, kind: Kind, *, store: Path, threads: int, progress: Progress) -> Fits:
    """Fit the experiment's cells that adapt in context, or in weights, and are not finished.

    What was fitted is kept: `run` pays for no call and no training step of it again.

    Raises:
        UserError: the tasks have errors, no method is of this kind, another run measures the same cells, or the store
            cannot be written.
    """
    work = Work.of(experiment, store=store, threads=threads, progress=progress)
    wanted = {work.keys.of(c): c for c in plan(experiment) if kind_of(*(s.name for s in c.method.steps)) == kind}
    if not wanted:
        raise UserError(f"{experiment.name} has no method that adapts {WORDS[kind]}; `crossover ls methods` lists them")
    left = {k: c for k, c in wanted.items() if not is_finished(store, k)}
    progress.total_cells, fitted = len(left), list[tuple[Cell, Path, Usage]]()
    try:
        with holding(store, list(left), experiment.name), interruptible(work.allowance.stop), storing(store):
            for key, cell in left.items():
                work.begin(cell)
                if (started := start_cell(work, cell)) is not None:
                    fitted.append((cell, cell_folder(store, key), started.fitted.spent))
                progress.finish_cell()
    except Stopped as e:
        if refusal(e) is not None:
            raise
    missing = len(left) - len(fitted) - len(work.failures)
    return Fits(fitted, work.failures, len(wanted) - len(left), missing, work.allowance.stopped if missing else "")


def fits_lines(fits: Fits) -> list[str]:
    """Return a line for each cell, and what is to be said of the others."""
    lines = []
    for cell, folder, spent in fits.fitted:
        tokens = spent.prompt_tokens + spent.completion_tokens + spent.train_tokens
        paid = f"${money(spent.usd)} for APIs" if spent.usd is not None else "APIs of unknown price"
        took = f"{duration(spent.seconds)}, {tokens:,} tokens, {paid}"
        lines.append(f"{cell.task}  {cell.model.name}  {cell.title}: {took}  {folder}")
    if fits.finished:
        lines.append(f"{fits.finished} finished before")
    return lines
