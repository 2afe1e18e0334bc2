"""Find the finished cells of an experiment in the store, without calling any model."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from eval.experiment import Experiment, plan
from eval.keys import Keys
from eval.measure import Result
from eval.passages import Indexes
from eval.run import load_tasks
from eval.store import load_result
from models.load import model_sha256
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
    tasks, problems = load_tasks(experiment.tasks)
    if errors := [p for p in problems if p.level == "error"]:
        raise UserError("\n".join(str(e) for e in errors))
    specs = {*experiment.models, *([experiment.teacher] if experiment.teacher else [])}
    keyed = Keys(experiment, tasks, {m: model_sha256(m) for m in specs}, Indexes(store))
    keys = [keyed.of(c) for c in plan(experiment)]
    found = [r for k in keys if (r := load_result(store, k)) is not None]
    results = tuple(r for r in found if r.stands(racing=experiment.racing, planned=keys))
    if not results:
        others = sum(1 for _ in store.glob("cells/*/result.json"))
        remedy = "give the same FILE, --limit, --set and --seeds as to `run`" if others else "`crossover run` first"
        what = f"{store}: none of the {len(keys)} cells of {experiment.name!r} is finished"
        raise UserError(f"{what}{f' ({others} of other settings are)' if others else ''}; {remedy}")
    return Finished(tasks, results, len(keys))
