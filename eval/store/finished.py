"""Find the finished cells of an experiment in the store, without calling any model."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from eval.experiment import Experiment, plan
from eval.measure import Result
from eval.prepare import prepare
from eval.store.cells import load_standing
from programs.task import Task, UserError


@dataclass(frozen=True)
class Finished:
    """What the store holds of an experiment."""

    tasks: Mapping[str, Task]
    results: tuple[Result, ...]
    """In the order of the plan."""
    planned: int
    """Cells of the experiment."""


def finished(experiment: Experiment, *, store: Path) -> Finished:
    """Return the tasks of an experiment and the results that the store holds of it.

    Raises:
        UserError: the tasks have errors, or no cell is finished.
    """
    keyed = prepare(experiment, store=store)
    keys = [keyed.of(c) for c in plan(experiment)]
    results = tuple(load_standing(store, keys, racing=experiment.racing, planned=keys).values())
    if not results:
        others = sum(1 for _ in store.glob("cells/*/result.json"))
        remedy = "give the same FILE, --limit, --set and --seeds as to `run`" if others else "`crossover run` first"
        what = f"{store}: none of the {len(keys)} cells of {experiment.name!r} is finished"
        raise UserError(f"{what}{f' ({others} of other settings are)' if others else ''}; {remedy}")
    return Finished(keyed.tasks, results, len(keys))
