"""Send to MLflow what the store holds and MLflow lacks; a second time it does nothing."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter

from crossover.eval.analysis.compare import Comparison, compare
from crossover.eval.analysis.cost import cost_of
from crossover.eval.experiment.spec import Experiment, Prices, params_of, plan
from crossover.eval.report.data import ReportData
from crossover.eval.store.cells import TRACKED, cell_folder, check_fitted, is_finished, load_result
from crossover.eval.store.lock import holding
from crossover.eval.store.recorded import read_recorded, recorded_facts
from crossover.eval.store.result import Finished, Result
from crossover.eval.tracking.addresses import store_uri
from crossover.eval.tracking.comparison import log_comparison
from crossover.eval.tracking.logged import cost_metrics
from crossover.eval.tracking.package import recorded_task
from crossover.eval.tracking.pending import UNSENT, PendingRun, pending_cells, pending_runs, tracked_run
from crossover.eval.tracking.traces import RequestsOf, log_dataset, log_traces, no_requests
from crossover.eval.tracking.tracker import Tracker, TrackingError, typed
from crossover.eval.tracking.winners import register_prompts, register_winners
from crossover.models.api_keys import redact
from crossover.models.errors import UserError
from crossover.models.jsonl import write_json
from crossover.programs.retrieval.base import silent
from crossover.programs.task import Task


class Conclusion(NamedTuple):
    """A run that reached its verdict."""

    experiment: Experiment
    comparison: Comparison
    tasks: Mapping[str, Task]
    """Tasks by name, without those whose data is gone; a winner of a missing one is not registered."""


def sync(
    store: Path,
    uri: str | None,
    *,
    known: Conclusion | None = None,
    note: Callable[[str], None] = silent,
    requests: RequestsOf = no_requests,
) -> int | None:
    """Send what MLflow lacks, deleted runs included; return the number of cells sent, or None when it lacks nothing.

    A run passes its own conclusion as `known`, and sends the runs of its experiment alone. A run of a living process
    is left to that process; `crossover sync`, which has no conclusion, says so. An experiment that cannot be sent does
    not keep the others from it. `requests` renders what traces show of a model's input.

    Raises:
        TrackingError: MLflow could not be reached, or not written for an experiment.
        UserError: a record or a cell was damaged.
    """
    pending = pending_runs(store, store_uri(store, uri))
    if known is None:
        runs = [*pending, *_concluded_runs(store, pending)]
    else:
        runs = pending = [r for r in pending if r.experiment == known.experiment.name]
    if not runs:
        return None
    tracker, sent, lacking, failed = Tracker(store, uri), 0, bool(pending), list[Exception]()
    for run in runs:
        with contextlib.ExitStack() as locks:
            try:
                locks.enter_context(holding(store, run.cells, "sync"))
            except UserError as e:
                if known is None:
                    note(f"warning: {e}")
                continue
            try:
                if known is None:
                    _forget_lost(tracker, store, run)
                own = known if known is not None and params_of(known.experiment) == run.params else None
                waiting = pending_cells(store, run.cells, tracker.uri)
                # What a concluded run names may all be in MLflow.
                if run.files or waiting or not tracker.holds_parent(run.experiment, run.params):
                    lacking = True
                    tasks = own.tasks if own else _recorded_tasks(run.params)
                    sent += send_cells(tracker, store, run, tasks)
                    _conclude(tracker, store, run, own or _recorded(store, run, tasks), note=note, requests=requests)
            except (TrackingError, UserError) as e:
                failed.append(e)
    if failed:
        note(f"{sent} cells sent to MLflow, {len(failed)} of {len(runs)} runs refused")
        kind = TrackingError if any(isinstance(e, TrackingError) for e in failed) else UserError
        raise kind("\n".join(map(str, failed)))
    return sent if lacking else None


def _concluded_runs(store: Path, pending: Sequence[PendingRun]) -> list[PendingRun]:
    """Return the last run of every experiment that reached its verdict, without those that are pending."""
    settings = [(run.experiment, run.params) for run in pending]
    facts = [f for f in recorded_facts(store) if f.get("params") and (f["experiment"], f["params"]) not in settings]
    return [PendingRun(f["experiment"], f["params"], Prices(**f["prices"]), tuple(f["cells"])) for f in facts]


def _forget_lost(tracker: Tracker, store: Path, run: PendingRun) -> None:
    """Make those cells of a run pending again whose runs were deleted in MLflow."""
    for key in run.cells:
        run_id = tracked_run(store, key, tracker.uri)
        if run_id and not tracker.holds(run_id):
            (cell_folder(store, key) / TRACKED).unlink()


def send_cells(tracker: Tracker, store: Path, run: PendingRun, tasks: Mapping[str, Task]) -> int:
    """Log the pending cells of a run, and return how many there were.

    Raises:
        TrackingError: MLflow could not be reached or written.
        UserError: a cell was damaged since it was measured.
    """
    parent, sent = "", 0
    for key in pending_cells(store, run.cells, tracker.uri):
        folder = cell_folder(store, key)
        check_fitted(folder)
        if (result := load_result(store, key)) is not None:
            parent = parent or tracker.parent(run.experiment, run.params)
            task = tasks.get(result.cell.task)
            run_id = tracker.result(parent, result, cost_of(result, run.prices), folder, task=task)
            write_json(folder / TRACKED, {"uri": redact(tracker.uri), "run_id": run_id})
            (folder / UNSENT).unlink(missing_ok=True)
            sent += 1
    return sent


def _conclude(
    tracker: Tracker,
    store: Path,
    run: PendingRun,
    conclusion: Conclusion | None,
    *,
    note: Callable[[str], None],
    requests: RequestsOf,
) -> None:
    """End a run in MLflow, with all that follows from its verdict where it has one, and delete its records."""
    # The records of earlier versions name no cells; they were written when the first one was sent.
    if not run.cells or any(is_finished(store, k) for k in run.cells):
        parent = tracker.parent(run.experiment, run.params)
        if conclusion is None:
            tracker.finish(parent)
        else:
            arms = conclusion.comparison.arms
            runs = {k: i for a in arms for k in a.cells if (i := tracked_run(store, k, tracker.uri))}
            results = {k: r for a in arms for k in a.cells if (r := load_result(store, k)) is not None}
            log_comparison(tracker, parent, conclusion.comparison, runs)
            _adopt(tracker, parent, run.prices, results, runs)
            # What follows takes longer, and is made up for by the next sync if this process ends before.
            tracker.finish(parent)
            register_prompts(tracker, store, parent, conclusion.comparison, runs)
            register_winners(tracker, store, conclusion.comparison, conclusion.tasks, note)
            _log_report(tracker, parent, conclusion, results)
            _log_examples(tracker, parent, conclusion, results, runs, requests)
    for file in run.files:
        file.unlink(missing_ok=True)


def _adopt(
    tracker: Tracker, parent: str, prices: Prices, results: Mapping[str, Result], runs: Mapping[str, str]
) -> None:
    """Move the runs of cells that an earlier verdict logged below this one, with what they cost by its prices."""
    with typed():
        strays = tracker.strays(parent, set(runs.values()))
        for key, run_id in runs.items():
            if run_id in strays:
                costs = cost_metrics(cost_of(results[key], prices)) if key in results else {}
                # In one request: what is not written is left to the next sync.
                metrics = [(name, value, 0) for name, value in costs.items()]
                tracker.log(run_id, metrics, tags={"mlflow.parentRunId": parent})


def _log_report(tracker: Tracker, parent: str, conclusion: Conclusion, results: Mapping[str, Result]) -> None:
    """Log the page of a run; not where the data of a task is gone, which it shows."""
    from crossover.eval.report.page import html_page

    experiment, comparison, tasks = conclusion
    whole = all(key in results for arm in comparison.arms for key in arm.cells)
    if whole and all(v.task in tasks for v in comparison.verdicts):
        finished = Finished(tasks, tuple(results.values()), len(plan(experiment)))
        page = redact(html_page(ReportData(experiment, comparison, finished)))
        with typed():
            tracker.client.log_text(parent, page, "report.html")


def _log_examples(
    tracker: Tracker,
    parent: str,
    conclusion: Conclusion,
    results: Mapping[str, Result],
    runs: Mapping[str, str],
    requests: RequestsOf,
) -> None:
    """Log the test set of each task, and traces of the first seed of each arm."""
    comparison, tasks = conclusion.comparison, conclusion.tasks
    for arm in comparison.arms:
        key = arm.cells[0]
        if key in runs and key in results and arm.task in tasks:
            log_traces(tracker, runs[key], results[key], tasks[arm.task], requests)
    for v in comparison.verdicts:
        if v.task in tasks:
            log_dataset(tracker, parent, comparison.experiment, tasks[v.task], comparison.split_sha256[v.task])


def _recorded_tasks(params: Mapping[str, Any]) -> dict[str, Task]:
    """Return the tasks of an experiment by name, without those whose data cannot be read any more."""
    tasks = {spec["name"]: recorded_task(params, spec["name"]) for spec in params.get("tasks", ())}
    return {name: task for name, task in tasks.items() if task is not None}


def _recorded(store: Path, run: PendingRun, tasks: Mapping[str, Task]) -> Conclusion | None:
    """Return the conclusion of the experiment's last run; None when its settings differ or it was killed."""
    try:
        last = read_recorded(store, run.experiment)
    except UserError:
        return None
    if last.params != run.params:
        return None
    comparison = compare(
        last.results, needs=last.needs, prices=last.prices, experiment=last.experiment, unit=last.compare
    )
    experiment = replace(TypeAdapter(Experiment).validate_python(last.params), command=last.command)
    return Conclusion(experiment, comparison, tasks)
