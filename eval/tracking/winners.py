"""Register what a comparison came to: the chosen arms as models that MLflow alone can load, and all instructions."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from crossover.eval.analysis.arm import Arm
from crossover.eval.analysis.compare import Comparison
from crossover.eval.report.text import dollars
from crossover.eval.store.cells import cell_folder, load_result
from crossover.eval.tracking.addresses import registered_name
from crossover.eval.tracking.package import NotPortableError, copy_package, write_package
from crossover.eval.tracking.pending import tracked_run
from crossover.eval.tracking.registry import register, register_instructions, unregister
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


def register_prompts(
    tracker: Tracker, store: Path, parent: str, comparison: Comparison, runs: Mapping[str, str]
) -> None:
    """Register the instructions of the arms of each task, by their first seeds, as versions of one prompt.

    `runs` maps keys of cells to their run ids.

    Raises:
        TrackingError: MLflow could not be reached or written.
    """
    for verdict in comparison.verdicts:
        name, chosen = registered_name(comparison.experiment, verdict.task), comparison.chosen(verdict)
        cells = [a.cells[0] for a in comparison.arms if a.task == verdict.task and a.cells[0] in runs]
        texts = {runs[key]: instructions for key in cells if (instructions := _instructions(store, key))}
        winner = runs.get(chosen.cells[0], "") if chosen else ""
        plain = re.sub(r"[^a-zA-Z0-9_.-]", "_", f"{name}.instructions")
        register_instructions(tracker, plain, parent, texts, winner)


def _instructions(store: Path, key: str) -> str:
    """Return the instructions of each step of a fitted program, a line between them."""
    found: dict[str, None] = {}

    def look(value: Any) -> None:
        if isinstance(value, dict):
            if "instructions" in value and "fields" in value:
                found[str(value["instructions"])] = None
            for part in value.values():
                look(part)
        elif isinstance(value, list):
            for part in value:
                look(part)

    look(json.loads((cell_folder(store, key) / "program.json").read_text(encoding="utf-8")))
    return "\n\n---\n\n".join(found)


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
