"""Register the arm that each verdict chose as a model that MLflow alone can load."""

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from crossover.eval.analysis.arm import Arm
from crossover.eval.analysis.compare import Comparison
from crossover.eval.report.text import dollars
from crossover.eval.store.cells import load_result
from crossover.eval.tracking.addresses import registered_name
from crossover.eval.tracking.package import NotPortableError, copy_package, write_package
from crossover.eval.tracking.pending import tracked_run
from crossover.eval.tracking.registry import register, unregister
from crossover.eval.tracking.tracker import Tracker
from crossover.models.errors import UserError
from crossover.programs.task import Task


def register_winners(
    tracker: Tracker, store: Path, comparison: Comparison, tasks: Mapping[str, Task], note: Callable[[str], None]
) -> None:
    """Register the arm that each verdict chose, by its first seed: the best one would be a choice made on test.

    Raises:
        TrackingError: MLflow could not be reached or written.
    """
    for verdict in comparison.verdicts:
        name = registered_name(comparison.experiment, verdict.task)
        chosen = comparison.chosen(verdict)
        if chosen is None:
            unregister(tracker, name)
            continue
        try:
            version = _register(tracker, store, name, chosen, tasks.get(verdict.task))
        except (UserError, OSError) as e:
            note(f"warning: {name} is not registered in MLflow: {e}")
        else:
            note(f"registered in MLflow: models:/{name}/{version}, alias winner")


def _register(tracker: Tracker, store: Path, name: str, arm: Arm, task: Task | None) -> str:
    """Register the first seed of an arm under a name and return its version."""
    key = arm.cells[0]
    result, run_id = load_result(store, key), tracked_run(store, key, tracker.uri)
    if result is None or not run_id:
        raise NotPortableError("its run is in another tracking store")
    if task is None:
        raise NotPortableError("its data cannot be read; `crossover run` registers it when it can")
    with TemporaryDirectory(prefix="crossover-model-") as folder:
        package, code, work = (Path(folder) / part for part in ("arm", "code", "work"))
        for part in (code, work):
            part.mkdir()
        write_package(store, result, package, task=task)
        about = _about(arm, name, task)
        return register(tracker, name, run_id, package, code=[str(copy_package(code))], work=work, about=about)


def _about(arm: Arm, name: str, task: Task) -> str:
    """Return the description of a registered arm, as Markdown: what it is, its figures, and how to load it."""
    score, inputs = arm.score, [*task.inputs, *(["passages"] if task.corpus else [])]
    question = {i: ["…"] if i == "passages" else "…" for i in inputs}
    p95 = f", p95 {arm.latency.p95.mean:,.0f} ms" if arm.latency.n else ""
    return f"""**{arm.name}** of {arm.model} on {arm.task}: {task.metric_name} {score.mean:.3f} \
[{score.low:.3f}, {score.high:.3f}] on {score.n} test examples, {dollars(arm.cost.per_1k_requests)} per 1,000 \
requests{p95}, {dollars(arm.cost.fit)} to fit.

```python
import mlflow

model = mlflow.pyfunc.load_model("models:/{name}@winner")
model.predict([{question!r}])  # → [{{{", ".join(f"{o!r}: …" for o in task.outputs)}}}]
```
"""
