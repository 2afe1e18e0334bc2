"""Fit the cells of an experiment without measuring them; `run` and `eval` go on from the fitted cells."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from crossover.eval.experiment.spec import Cell, Experiment, Kind, plan
from crossover.eval.report.text import money
from crossover.eval.run.cell import try_to_fit
from crossover.eval.run.context import RunContext
from crossover.eval.run.interrupt import interruptible
from crossover.eval.run.progress import Progress, duration
from crossover.eval.store.cells import cell_folder, is_finished
from crossover.eval.store.faults import refusal, storing
from crossover.eval.store.lock import holding
from crossover.models.errors import UserError
from crossover.models.limits import Stopped
from crossover.models.usage import Usage

WORDS: dict[Kind, str] = {"context": "in context", "weights": "in weights"}


@dataclass(frozen=True)
class FitSummary:
    """The outcome of the verbs `compile` and `finetune`."""

    fitted: Sequence[tuple[Cell, Path, Usage]]
    """Each cell with the folder of its program and weights, and the usage of its fit."""
    failures: Sequence[str]
    finished: int
    """Cells that were fitted and measured before."""
    missing: int
    """Cells that a limit or Ctrl-C left out."""
    stopped: str
    """The limit that ended it early; empty for none."""


def fit_experiment(experiment: Experiment, kind: Kind, *, store: Path, threads: int, progress: Progress) -> FitSummary:
    """Fit the experiment's cells that adapt in context, or in weights, and are not finished.

    The fits stay in the store, so that `run` repeats no call and no training step of them.

    Raises:
        UserError: the tasks have errors, no method is of this kind, another run measures the same cells, or the store
            cannot be written.
    """
    context = RunContext.of(experiment, store=store, threads=threads, progress=progress)
    cells = {context.keys.of(c): c for c in plan(experiment) if c.method.trains == (kind == "weights")}
    if not cells:
        raise UserError(f"{experiment.name} has no method that adapts {WORDS[kind]}; `crossover ls methods` lists them")
    left = {k: c for k, c in cells.items() if not is_finished(store, k)}
    context.check(list(left.values()))
    progress.total_cells, fitted = len(left), list[tuple[Cell, Path, Usage]]()
    try:
        with holding(store, list(left), experiment.name), interruptible(context.allowance.stop), storing(store):
            for key, cell in left.items():
                context.begin(cell)
                if (fitted_cell := try_to_fit(context, cell)) is not None:
                    fitted.append((cell, cell_folder(store, key), fitted_cell.fitted.spent))
                progress.finish_cell()
    except Stopped as e:
        if refusal(e) is not None:
            raise
    missing = len(left) - len(fitted) - len(context.failures)
    return FitSummary(
        fitted, context.failures, len(cells) - len(left), missing, context.allowance.stopped if missing else ""
    )


def summary_lines(summary: FitSummary) -> list[str]:
    """Return a line for each fitted cell, and one that counts those that needed no fit."""
    lines = []
    for cell, folder, spent in summary.fitted:
        tokens = spent.prompt_tokens + spent.completion_tokens + spent.train_tokens
        paid = f"${money(spent.usd)} for APIs" if spent.usd is not None else "APIs of unknown price"
        took = f"{duration(spent.seconds)}, {tokens:,} tokens, {paid}"
        lines.append(f"{cell.task}  {cell.model.name}  {cell.title}: {took}  {folder}")
    if summary.finished:
        lines.append(f"{summary.finished} already finished")
    return lines
