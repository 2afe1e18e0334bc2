"""Send to MLflow what the store holds and MLflow lacks; a second time it does nothing."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from crossover.eval.analysis.compare import Comparison, compare
from crossover.eval.analysis.cost import cost_of
from crossover.eval.experiment.spec import Prices
from crossover.eval.report.schema import to_json
from crossover.eval.report.table import render
from crossover.eval.store.cells import TRACKED, cell_folder, check_fitted, is_finished, load_result
from crossover.eval.store.lock import holding
from crossover.eval.store.recorded import read_recorded, recorded_facts
from crossover.eval.tracking.addresses import registered_name, store_uri
from crossover.eval.tracking.logged import curves
from crossover.eval.tracking.package import NotPortableError, copy_package, recorded_task, write_package
from crossover.eval.tracking.pending import UNSENT, PendingRun, pending_cells, pending_runs, tracked_run
from crossover.eval.tracking.tracker import Tracker, TrackingError
from crossover.models.api_keys import redact
from crossover.models.errors import UserError
from crossover.models.jsonl import write_json
from crossover.programs.retrieval.base import silent
from crossover.programs.task import Task


class Conclusion(NamedTuple):
    """What a run came to."""

    params: Mapping[str, Any]
    """Settings of the run."""
    comparison: Comparison
    tasks: Mapping[str, Task]
    """Tasks by name; a winner of a missing one is not registered."""


def sync(
    store: Path, uri: str | None, *, known: Conclusion | None = None, note: Callable[[str], None] = silent
) -> int | None:
    """Send what MLflow lacks, deleted runs included; return the number of cells sent, or None when it lacks nothing.

    A run passes its own conclusion as `known`, and sends the runs of its experiment alone. A run of a living process
    is left to that process; `crossover sync`, which has no conclusion, says so. An experiment that cannot be sent does
    not keep the others from it.

    Raises:
        TrackingError: MLflow could not be reached, or not written for an experiment.
        UserError: a record or a cell was damaged.
    """
    pending = pending_runs(store, store_uri(store, uri))
    if known is None:
        runs = [*pending, *_concluded_runs(store, pending)]
    else:
        runs = pending = [r for r in pending if r.experiment == known.comparison.experiment]
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
                count = send_cells(tracker, store, run)
                sent += count
                # What a concluded run names may all be in MLflow.
                if run.files or count or not tracker.holds_parent(run.experiment, run.params):
                    lacking = True
                    own = known is not None and known.params == run.params
                    _conclude(tracker, store, run, known if own else _recorded(store, run), note)
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


def send_cells(tracker: Tracker, store: Path, run: PendingRun) -> int:
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
            run_id = tracker.result(parent, result, cost_of(result, run.prices), folder)
            write_json(folder / TRACKED, {"uri": redact(tracker.uri), "run_id": run_id})
            (folder / UNSENT).unlink(missing_ok=True)
            sent += 1
    return sent


def _conclude(
    tracker: Tracker, store: Path, run: PendingRun, conclusion: Conclusion | None, note: Callable[[str], None]
) -> None:
    """End a run in MLflow, with verdict, learning curves and winners where they are known, and delete its records."""
    # The records of earlier versions name no cells; they were written when the first one was sent.
    if not run.cells or any(is_finished(store, k) for k in run.cells):
        parent = tracker.parent(run.experiment, run.params)
        if conclusion is not None:
            comparison = conclusion.comparison
            tracker.verdict(parent, render(comparison), to_json(comparison))
            for arms in curves(comparison.arms):
                tracker.curve(parent, arms)
            _register_winners(tracker, store, comparison, conclusion.tasks, note)
        tracker.finish(parent)
    for file in run.files:
        file.unlink(missing_ok=True)


def _recorded(store: Path, run: PendingRun) -> Conclusion | None:
    """Return what the last run of the experiment came to; None when its settings differ or it was killed."""
    try:
        last = read_recorded(store, run.experiment)
    except UserError:
        return None
    if last.params != run.params:
        return None
    comparison = compare(
        last.results, needs=last.needs, prices=last.prices, experiment=last.experiment, unit=last.compare
    )
    tasks = {v.task: recorded_task(last.params, v.task) for v in comparison.verdicts if v.choose}
    return Conclusion(last.params, comparison, {name: task for name, task in tasks.items() if task is not None})


def _register_winners(
    tracker: Tracker, store: Path, comparison: Comparison, tasks: Mapping[str, Task], note: Callable[[str], None]
) -> None:
    """Register the arm that each verdict chose, by its first seed: the best one would be a choice made on test."""
    for verdict in comparison.verdicts:
        name = registered_name(comparison.experiment, verdict.task)
        chosen = comparison.chosen(verdict)
        if chosen is None:
            tracker.unregister(name)
            continue
        try:
            version = _register(tracker, store, name, chosen.cells[0], tasks.get(verdict.task))
        except (UserError, OSError) as e:
            note(f"warning: {name} is not registered in MLflow: {e}")
        else:
            note(f"registered in MLflow: models:/{name}/{version}, alias winner")


def _register(tracker: Tracker, store: Path, name: str, key: str, task: Task | None) -> str:
    """Register a cell under a name and return its version."""
    result, run_id = load_result(store, key), tracked_run(store, key, tracker.uri)
    if result is None or not run_id:
        raise NotPortableError("its run is in another tracking store")
    if task is None:
        raise NotPortableError("its data cannot be read; `crossover run` registers it when it can")
    with TemporaryDirectory(prefix="crossover-model-") as folder:
        arm, code, work = (Path(folder) / part for part in ("arm", "code", "work"))
        for part in (code, work):
            part.mkdir()
        write_package(store, result, arm, task=task)
        return tracker.register(name, run_id, key, arm, [str(copy_package(code))], work)
