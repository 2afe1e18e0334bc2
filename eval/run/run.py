"""Run an experiment: fit and measure every missing cell, then compare all."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

from crossover.eval.analysis.arm import Arm
from crossover.eval.analysis.compare import Comparison, Partial, compare
from crossover.eval.experiment.spec import Cell, Experiment, plan
from crossover.eval.run.backends.scoring import LOCAL, backend_named, score_on_workers
from crossover.eval.run.calibration import Calibration, TimedPart
from crossover.eval.run.cell import Measured, finish_group, measure_cells
from crossover.eval.run.context import RunContext
from crossover.eval.run.forecast import expected_shares
from crossover.eval.run.interrupt import INTERRUPTED, interruptible
from crossover.eval.run.progress import Progress
from crossover.eval.run.prompts import requests_of
from crossover.eval.run.race import race_cells
from crossover.eval.store.cells import is_finished, is_fitted, load_standing, reopen, set_aside
from crossover.eval.store.faults import refusal, storing
from crossover.eval.store.lock import holding
from crossover.eval.store.recorded import changed_tasks, is_changed, record
from crossover.eval.store.result import Result
from crossover.eval.tracking.background import BackgroundSync
from crossover.eval.tracking.pending import pending_cells
from crossover.models.errors import UserError
from crossover.models.limits import Stopped


def run_experiment(
    experiment: Experiment,
    *,
    store: Path,
    tracking_uri: str | None,
    threads: int,
    progress: Progress,
    fresh: bool = False,
    fitted_only: bool = False,
    backend: str = LOCAL,
) -> Comparison:
    """Measure the missing cells, compare all, and track them.

    A `fresh` run sets finished cells aside and measures them again; `fitted_only` leaves out cells without a fit.
    `backend` says where cells are fitted and scored; see `backend_named`.

    Raises:
        UserError: tasks, models or methods have errors, nothing was fitted, no cell could be measured, another run
            measures the same cells, or the store cannot be written.
        KeyboardInterrupt: Ctrl-C ended the run before a cell was measured.
    """
    elsewhere = backend_named(backend, experiment)
    context = RunContext.of(experiment, store=store, threads=threads, progress=progress)
    keyed = context.keys
    cells = {keyed.of(c): c for c in plan(experiment)}
    if fitted_only:
        cells = {k: c for k, c in cells.items() if is_fitted(store, k)}
        if not cells:
            raise UserError(f"no cell of {experiment.name} is fitted in {store}; run `compile` or `finetune` first")
    for task in changed_tasks(store, experiment.name, keyed.split_sha256):
        progress.note(f"warning: {task}: its data is not that of the last run; nothing measured on the old is used")
    racing = experiment.racing
    results = {} if fresh else load_standing(store, cells, racing=racing, planned=cells)
    track = BackgroundSync(store, tracking_uri, context.tasks, partial(requests_of, store), progress.note)
    unsent = pending_cells(store, cells, track.uri)
    missing = {k for k in cells if k not in results or not context.is_whole(results[k])}
    if pending := [k for k in cells if k in missing or k in unsent]:
        context.check([cells[k] for k in pending if k in missing])
        with holding(store, pending, experiment.name), interruptible(context.allowance.stop), storing(store):
            for key in cells if fresh else ():
                set_aside(store, key)
            # Another run may have finished cells before this one held the lock.
            results |= load_standing(store, pending, racing=racing, planned=cells)
            for key in pending:
                if key not in results:
                    # It was dropped in a race that this experiment does not hold the winner of.
                    reopen(store, key, progress.note)
            if elsewhere is None:
                measure_missing(context, cells, results, track)
            else:
                left = {k: c for k, c in cells.items() if k not in results or not context.is_whole(results[k])}
                parts = score_on_workers(context, elsewhere, left)
                results = load_standing(store, cells, racing=racing, planned=cells)
                track.begin(experiment, cells)
                # They are timed here, so that all arms take turns in one process, as in a local run.
                measure_missing(context, {k: c for k, c in left.items() if k in parts}, results, track, parts)
            track.begin(experiment, cells)  # again, for cells that an earlier run finished and did not send
            track.flush(results.values())
    return conclude(context, cells, results, track)


def measure_missing(
    context: RunContext,
    cells: Mapping[str, Cell],
    results: dict[str, Result],
    track: BackgroundSync,
    parts: Mapping[str, TimedPart | None] = MappingProxyType({}),
) -> None:
    """Measure the cells that are not finished, or not whole, group by group, until a limit or Ctrl-C ends it.

    `parts` are the cells that workers scored, by key.
    """
    again = {k for k, r in results.items() if not context.is_whole(r)}
    missing, racing = [c for k, c in cells.items() if k not in results or k in again], context.experiment.racing
    groups = groups_of(missing, racing=racing)
    planned = [c for group in groups for c in group]
    shares = expected_shares(context.experiment, planned, context.tasks)
    context.progress.expect(shares)
    calibration, rest = Calibration(context.store), iter(shares)
    for group in groups:
        work, began = sum(sum(next(rest)) for _ in group), time.perf_counter()
        # What an earlier run began takes less than its share, and a race less than anybody can foretell.
        keys = [context.keys.of(c) for c in group]
        timed = [part for k in keys if (part := parts.get(k)) is not None]
        whole = not racing and not any(is_fitted(context.store, k) for k in keys if parts.get(k) is None)
        rivals = [r for k, r in results.items() if r.cell.task == group[0].task and k not in again]
        measured: list[Measured] = []
        try:
            for pair in race_cells(context, group, rivals) if racing else measure_cells(context, group):
                measured.append(pair)
                # Not before: by now all that a cell imports is imported.
                track.send()
        except Stopped as e:
            if refusal(e) is not None:
                raise
        # Before the first result is written, so that a run that is killed after it can be sent.
        track.begin(context.experiment, cells)
        finish_group(context, measured)
        track.send()
        if whole and len(measured) == len(group):
            calibration.count(group[0].model, work, time.perf_counter() - began, timed)
        for key in [k for k in again & results.keys() if not is_finished(context.store, k)]:
            # It was reopened, and a limit came before its last row.
            del results[key]
        results |= {r.key: r for r, _ in measured}
    if line := calibration.line():
        context.progress.note(line)


def groups_of(cells: Sequence[Cell], *, racing: bool) -> list[list[Cell]]:
    """Return groups of cells whose latencies are timed together: of a task and model, or in a race of a task."""
    groups: dict[tuple[object, ...], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.task,) if racing else (cell.task, cell.model), []).append(cell)
    return list(groups.values())


def conclude(
    context: RunContext, cells: Mapping[str, Cell], results: Mapping[str, Result], track: BackgroundSync
) -> Comparison:
    """Compare the results, record the run in the store, and track the verdict.

    Raises:
        UserError: no cell was measured.
        KeyboardInterrupt: no cell was measured before Ctrl-C.
    """
    experiment, stopped = context.experiment, context.allowance.stopped
    if not results and stopped == INTERRUPTED:
        raise KeyboardInterrupt
    if not results:
        before = f" before the limit of {stopped}" if stopped else ""
        raise UserError("\n".join([*context.failures, f"no cell was measured{before}; see the notes above"]))
    done = [k for k in cells if is_finished(context.store, k)]
    changed = is_changed(context.store, experiment)
    try:
        with storing(context.store):
            record(context.store, experiment, done, context.keys.split_sha256, len(cells))
            if changed:
                # Other needs or prices may have another verdict, of cells that MLflow has.
                track.begin(experiment, cells)
    except UserError as e:
        # The comparison is worth printing even when it cannot be recorded.
        context.progress.note(f"warning: {e}")
    comparison = compare(
        [results[k] for k in cells if k in results],
        needs=experiment.needs,
        prices=experiment.prices,
        experiment=experiment.name,
        unit=experiment.compare,
    )
    comparison = replace(comparison, failures=(*context.failures, *failed_rows(comparison.arms)))
    if stopped and not all(is_finished(context.store, k) for k in cells):
        comparison = replace(comparison, partial=Partial(stopped, len(results), len(cells)))
        context.progress.note(f"warning: {comparison.partial}; run again, which goes on from there")
    else:
        track.conclude(experiment, comparison)
    return comparison


def failed_rows(arms: Sequence[Arm]) -> list[str]:
    """Return a sentence for each arm with failed rows: how many, and what to do; the arm itself names the reason."""
    return [
        f"{a.task}, {a.name}: {a.failed} of {a.rows} rows failed; the same command asks them again"
        for a in arms
        if a.failed
    ]
