"""Find the finished cells of an experiment in the store, without calling any model."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from eval.experiment import Experiment, plan
from eval.measure import Result
from eval.passages import Indexes, Passages
from eval.run import load_tasks
from eval.store import load_result, program_sha256
from models.load import EMBEDDED, load_model
from models.spec import ModelSpec
from models.weights import folder_sha256
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
    models = {m: model_sha256(m) for m in experiment.models}
    identities = {
        n: {"split_sha256": t.split_sha256(), "program_sha256": program_sha256(t.program())} for n, t in tasks.items()
    }
    cells, indexes = plan(experiment), Indexes(store)
    keys = [
        c.key(
            **identities[c.task],
            model_sha256=models[c.model],
            retriever=Passages(tasks[c.task], c.retrieval, indexes).identity(),
            limit=experiment.limit,
        )
        for c in cells
    ]
    results = tuple(r for k in keys if (r := load_result(store, k)) is not None)
    if not results:
        others = sum(1 for _ in store.glob("cells/*/result.json"))
        remedy = "give the same FILE, --limit, --set and --seeds as to `run`" if others else "`crossover run` first"
        what = f"{store}: none of the {len(keys)} cells of {experiment.name!r} is finished"
        raise UserError(f"{what}{f' ({others} of other settings are)' if others else ''}; {remedy}")
    return Finished(tasks, results, len(keys))


def model_sha256(spec: ModelSpec) -> str:
    """Return the hash by which cells know a model; weights in a folder are hashed without being loaded."""
    folder = EMBEDDED if spec.name == "embedded" else Path(spec.name.removeprefix("local:"))
    if spec.name != "embedded" and not spec.name.startswith("local:"):
        return spec.name
    if not folder.is_dir():
        return load_model(spec).sha256
    return folder_sha256(folder)
