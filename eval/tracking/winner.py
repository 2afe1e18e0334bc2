"""Register in MLflow the arm that a verdict chose, as a model that runs elsewhere."""

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from crossover.eval.analysis.compare import Comparison
from crossover.eval.store.result import Result
from crossover.eval.tracking.outbox import is_tracked
from crossover.eval.tracking.portable import NotPortableError, copy_package, pack
from crossover.eval.tracking.tracker import Tracker, registered_name
from crossover.programs.task import Task


def register_winners(
    tracker: Tracker,
    store: Path,
    comparison: Comparison,
    results: Mapping[str, Result],
    tasks: Mapping[str, Task],
    note: Callable[[str], None],
) -> None:
    """Register the arm that each verdict chose, by its first seed: the best one would be a choice made on test.

    Raises:
        TrackingError: MLflow could not be reached or written.
    """
    for verdict in comparison.verdicts:
        name = registered_name(comparison.experiment, verdict.task)
        chosen = [a for a in comparison.arms if a.task == verdict.task and a.name == verdict.choose]
        if not chosen:
            tracker.unregister(name)
            continue
        result = results[chosen[0].cells[0]]
        try:
            version = _register(tracker, store, name, result, tasks[verdict.task])
        except (NotPortableError, OSError) as e:
            note(f"warning: {name} is not registered in MLflow: {e}")
        else:
            note(f"registered in MLflow: models:/{name}/{version}, alias winner")


def _register(tracker: Tracker, store: Path, name: str, result: Result, task: Task) -> str:
    if not is_tracked(store, result.key, tracker):
        raise NotPortableError("its run is in another tracking store")
    with TemporaryDirectory(prefix="crossover-model-") as folder:
        arm, rooms, work = (Path(folder) / part for part in ("arm", "rooms", "work"))
        for part in (arm, rooms, work):
            part.mkdir()
        pack(store, result, task, arm)
        return tracker.register(name, result.mlflow_run_id, result.key, arm, [str(copy_package(rooms))], work)
