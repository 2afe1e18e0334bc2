"""Run an experiment: every missing cell is fitted and measured, then all are compared."""

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from eval.cell import Models, Work, finish_group, measure_cell
from eval.compare import Comparison, compare
from eval.experiment import Cell, Experiment, TaskSpec, plan
from eval.judging import judged
from eval.keys import Keys
from eval.measure import Probe, Result
from eval.passages import Indexes
from eval.progress import Progress
from eval.race import race_group
from eval.recorded import record
from eval.safe_tracker import SafeTracker
from eval.store import load_result
from models.load import EMBEDDED, LoadedModel, load_model, model_sha256
from models.spec import ModelSpec
from programs.data import load_and_check
from programs.task import Problem, Task, UserError


def load_tasks(
    specs: tuple[TaskSpec, ...], load: Callable[[ModelSpec], LoadedModel] = load_model
) -> tuple[dict[str, Task], list[Problem]]:
    """Load and check every task; all problems of all tasks come back together. `load` brings the model of a judge."""
    tasks, problems = {}, []
    for spec in specs:
        task, found = load_and_check(spec)
        problems += found
        if task is not None:
            tasks[spec.name] = judged(task, spec, load)
    return tasks, problems


def check_models(experiment: Experiment) -> list[Problem]:
    """Return what keeps the models from being called, without calling them."""
    problems = []
    judges = [t.judge.model for t in experiment.tasks if t.judge]
    for spec in [*experiment.models, *([experiment.teacher] if experiment.teacher else []), *judges]:
        if spec.name == "embedded" or spec.name.startswith("local:"):
            folder = EMBEDDED if spec.name == "embedded" else Path(spec.name.removeprefix("local:"))
            if folder.is_absolute() and not list(folder.glob("*.safetensors")):
                problems.append(
                    Problem("error", str(folder), "no weights (*.safetensors) here", "give a model's folder")
                )
            continue
        if spec.api_base or spec.api_key:
            continue
        key = f"{spec.name.partition('/')[0].upper()}_API_KEY"
        if spec.name.startswith(("openai/", "anthropic/", "gemini/")) and not os.environ.get(key):
            problems.append(Problem("error", spec.name, f"{key} is not set", f"export {key}=…"))
    return problems


def prepare(experiment: Experiment, *, store: Path, threads: int, progress: Progress) -> Work:
    """Load and check the data and hash the models; the problems that forbid nothing go to the progress.

    Raises:
        UserError: the tasks have errors.
    """
    models = Models()
    tasks, problems = load_tasks(experiment.tasks, models)
    for p in problems:
        if p.level == "warning":
            progress.note(str(p))
    if errors := [p for p in problems if p.level == "error"]:
        raise UserError("\n".join(str(e) for e in errors))
    specs = {*experiment.models, *([experiment.teacher] if experiment.teacher else [])}
    indexes = Indexes(store, progress.note)
    keys = Keys(experiment, tasks, {m: model_sha256(m) for m in specs}, indexes)
    return Work(experiment, store, threads, progress, tasks, indexes, keys, models)


def run_experiment(
    experiment: Experiment, *, store: Path, tracking_uri: str | None, threads: int, progress: Progress
) -> Comparison:
    """Run what is missing, compare everything, and track it.

    Raises:
        UserError: the tasks have errors, or no cell could be measured.
    """
    # DSPy logs a warning for every answer cut at max_tokens; the rows tell the same.
    logging.getLogger("dspy").setLevel(logging.ERROR)
    work = prepare(experiment, store=store, threads=threads, progress=progress)
    cells = plan(experiment)
    keys = [work.keys.of(c) for c in cells]
    found = {k: load_result(store, k) for k in keys}
    results = {k: r for k, r in found.items() if r is not None and r.stands(racing=experiment.racing, planned=keys)}
    missing = [c for c, k in zip(cells, keys, strict=True) if k not in results]
    progress.total_cells = len(missing)
    track = SafeTracker(experiment, store, tracking_uri, progress) if missing else None
    stopped = ""
    for group in groups_of(missing, racing=experiment.racing):
        if experiment.racing:
            rivals = [r for r in results.values() if r.cell.task == group[0].task]
            measured, stopped = race_group(work, group, rivals)
        else:
            measured, stopped = measure_group(work, group)
        finish_group(work, measured, track)
        results |= {r.key: r for r, _ in measured}
        if stopped:
            break
    if stopped:
        progress.note(f"warning: stopped at {stopped}, {len(results)} of {len(cells)} cells done: the table is partial")
    if not results:
        raise UserError(
            f"no cell was measured{f' before the limit of {stopped}' if stopped else ''}; see the notes above"
        )
    record(store, experiment, [k for k in keys if k in results])
    comparison = compare(
        [results[k] for k in keys if k in results],
        needs=experiment.needs,
        prices=experiment.prices,
        experiment=experiment.name,
    )
    if track is not None:
        track.verdict(comparison)
        track.winners(comparison, results, work.tasks)
    return comparison


def groups_of(cells: Sequence[Cell], *, racing: bool) -> list[list[Cell]]:
    """Return the cells that are timed side by side: those of a task and model, in a race all of a task."""
    groups: dict[tuple[object, ...], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.task,) if racing else (cell.task, cell.model), []).append(cell)
    return list(groups.values())


def measure_group(work: Work, cells: Sequence[Cell]) -> tuple[list[tuple[Result, Probe | None]], str]:
    """Return the cells that were measured one after the other, and the limit that was reached, if any."""
    measured: list[tuple[Result, Probe | None]] = []
    for cell in cells:
        if stopped := work.limit_reached():
            return measured, stopped
        work.progress.start_cell(work.next_number(), f"{cell.task} {cell.method.label} seed={cell.seed}")
        if (pair := measure_cell(work, cell)) is not None:
            measured.append(pair)
        work.progress.finish_cell()
    return measured, ""
