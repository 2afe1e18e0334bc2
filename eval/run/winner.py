"""Find finished cells by the start of their key, or as the winner of a task."""

from pathlib import Path

from crossover.eval.analysis.compare import compare
from crossover.eval.store.recorded import find_cell, read_recorded
from crossover.eval.store.result import Result
from crossover.models.errors import UserError

WINNER = "winner"


def cell_named(store: Path, name: str) -> Result:
    """Return a finished cell by the start of its key; `winner` or `winner.TASK` is the one that the last run chose.

    Of several seeds it is the first, as in MLflow: the best one would be a choice made on test.

    Raises:
        UserError: no cell or several have that name, or the last run chose none.
    """
    if name != WINNER and not name.startswith(f"{WINNER}."):
        return find_cell(store, name)
    run = read_recorded(store)
    found = compare(run.results, needs=run.needs, prices=run.prices, experiment=run.experiment, unit=run.compare)
    wanted = name.removeprefix(WINNER).removeprefix(".")
    verdicts = [v for v in found.verdicts if wanted in ("", v.task)]
    if len(verdicts) != 1:
        names = ", ".join(f"{WINNER}.{v.task}" for v in found.verdicts)
        raise UserError(f"{name}: {run.experiment} has no such task, or several; use one of {names}")
    (verdict,) = verdicts
    arm = found.chosen(verdict)
    if arm is None:
        raise UserError(f"{name}: the last run chose no arm ({verdict.because}); name a cell, see `crossover ls runs`")
    return next(r for r in run.results if r.key == arm.cells[0])
