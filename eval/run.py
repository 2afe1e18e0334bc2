"""Run an experiment: every missing cell is fitted and measured, then all are compared."""

import contextlib
import logging
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median

import dspy

from eval.audit import audit
from eval.compare import Comparison, Partial, compare
from eval.experiment import Cell, Experiment, plan
from eval.faults import refusal, storing
from eval.interrupt import INTERRUPTED, interruptible
from eval.latency import Probe, measure_latency
from eval.ledger import adapts_weights
from eval.lock import holding
from eval.measure import Latency, Result, measure_accuracy
from eval.methods import method_of
from eval.outbox import Unsent, mark, waiting
from eval.prepare import prepare
from eval.progress import Progress
from eval.recorded import changed_tasks, record
from eval.retention import told
from eval.safe_tracker import SafeTracker
from eval.secondary import secondary
from eval.splits import question_text, train_pool
from eval.store import cell_folder, is_finished, is_unsent, load_result, save_fitted, save_result, set_aside
from eval.work import Work
from models.allowance import Allowance, Stopped
from models.price import price_source
from models.spec import ModelSpec
from programs.task import Fitted, UserError

LATENCY_REQUESTS, COLD_REQUESTS = 30, 10
"""Timed requests of each arm, with what the model keeps of earlier prompts, and without."""


def run_experiment(
    experiment: Experiment,
    *,
    store: Path,
    tracking_uri: str | None,
    threads: int,
    progress: Progress,
    fresh: bool = False,
) -> Comparison:
    """Run what is missing, compare everything, and track it; a fresh run sets aside what is there.

    Raises:
        UserError: the tasks have errors, no cell could be measured, another run measures the same cells, or the store
            cannot be written.
        KeyboardInterrupt: Ctrl-C ended the run before a cell was measured.
    """
    # DSPy logs a warning for every answer cut at max_tokens; the rows tell the same.
    logging.getLogger("dspy").setLevel(logging.ERROR)
    keyed = prepare(experiment, store=store, note=progress.note)
    allowance = Allowance(**asdict(experiment.limits))
    work = Work(experiment, store, threads, progress, keyed, allowance)
    cells = {keyed.of(c): c for c in plan(experiment)}
    for task in changed_tasks(store, experiment.name, keyed.split_sha256):
        progress.note(f"warning: {task}: its data is not that of the last run; nothing measured on the old is used")
    results = {} if fresh else finished_cells(store, cells)
    track = SafeTracker(store, tracking_uri, progress)
    if pending := [k for k in cells if k not in results or is_unsent(store, k)]:
        with holding(store, pending, experiment.name), interruptible(allowance.stop, progress.note), storing(store):
            for key in cells if fresh else ():
                set_aside(store, key)
            # Another run may have finished some since.
            results |= finished_cells(store, pending)
            for result, unsent in waiting(store, pending):
                results[result.key] = result
                track.result(result, unsent)
            measure_missing(work, cells, results, track)
            track.wait()
    return conclude(work, cells, results, track)


def finished_cells(store: Path, keys: Iterable[str]) -> dict[str, Result]:
    """Return the finished ones of the cells, by key."""
    return {k: r for k in keys if (r := load_result(store, k)) is not None}


def measure_missing(work: Work, cells: Mapping[str, Cell], results: dict[str, Result], track: SafeTracker) -> None:
    """Measure the cells that have no result, group by group, until a limit or Ctrl-C ends it."""
    groups: dict[tuple[str, ModelSpec], list[Cell]] = {}
    for key, cell in cells.items():
        if key not in results:
            groups.setdefault((cell.task, cell.model), []).append(cell)
    for cell in {c.method.label: c for group in groups.values() for c in group}.values():
        method_of(cell.method.name, cell.method.options)  # what it refuses to be, it refuses before anything is spent
    work.progress.total_cells = sum(map(len, groups.values()))
    number = 0
    for group in groups.values():
        measured: list[tuple[Result, Probe]] = []
        try:
            for cell in group:
                work.allowance.check()
                number += 1
                work.progress.start_cell(number, f"{cell.task} {cell.method.label} seed={cell.seed}")
                if (pair := measure_cell(work, cell)) is not None:
                    measured.append(pair)
                    # Not before: by now all that a cell imports is imported.
                    track.open()
                work.progress.finish_cell()
        except Stopped as e:
            if refusal(e) is not None:
                raise
        finish_group(work, measured, track)
        results |= {r.key: r for r, _ in measured}


def conclude(work: Work, cells: Mapping[str, Cell], results: Mapping[str, Result], track: SafeTracker) -> Comparison:
    """Compare what there is, remember it, and track it.

    Raises:
        UserError: there is nothing to compare.
        KeyboardInterrupt: there is nothing to compare, for the person ended the run.
    """
    experiment, stopped = work.experiment, work.allowance.stopped
    if not results and stopped == INTERRUPTED:
        raise KeyboardInterrupt
    if not results:
        before = f" before the limit of {stopped}" if stopped else ""
        raise UserError("\n".join([*work.failures, f"no cell was measured{before}; see the notes above"]))
    done = [k for k in cells if is_finished(work.store, k)]
    record(work.store, experiment, done, work.keys.split_sha256)
    comparison = compare(
        [results[k] for k in cells if k in results],
        needs=experiment.needs,
        prices=experiment.prices,
        experiment=experiment.name,
    )
    comparison = replace(comparison, failures=tuple(work.failures))
    if stopped and not all(is_finished(work.store, k) for k in cells):
        comparison = replace(comparison, partial=Partial(stopped, len(results), len(cells)))
        work.progress.note(f"warning: {comparison.partial}; run again, which goes on from there")
    else:
        track.verdict(comparison)
    track.close()
    return comparison


def measure_cell(work: Work, cell: Cell) -> tuple[Result, Probe] | None:
    """Fit and score one cell; None when fitting failed, which the table tells and the next run tries again."""
    task, model, key = work.tasks[cell.task], work.model(cell.model), work.keys.of(cell)
    folder = cell_folder(work.store, key)
    passages, before = work.passages(cell), work.allowance.used.usd
    try:
        fitted = fit_cell(work, cell, folder)
        trained = {s.name for s in cell.method.steps if adapts_weights(s.name)}
        if trained and "head" not in trained and work.retention.specs:
            notes, warnings = told(work.retention.of(fitted.lm, model, work.progress.note))
            fitted.notes |= notes
            fitted.warnings += warnings
        test = work.test(cell)
    except Exception as e:
        if refusal(e) is not None:
            raise
        why = str(e) if isinstance(e, UserError) else f"{type(e).__name__}: {e}"
        work.failures.append(f"{cell.task}, {cell.method.label}, seed {cell.seed} could not be fitted: {why}")
        work.progress.note(f"warning: {work.failures[-1]}")
        return None
    with dspy.context(rm=passages.live(cell.knowledge.test)):
        rows, seconds = measure_accuracy(
            fitted, task, test, model, file=folder / "rows.jsonl", threads=work.threads, progress=work.progress
        )
    work.progress.spend(work.allowance.used.usd - before)
    ranking = passages.ranking(test, cell.knowledge.test)
    measures = {"secondary": secondary(task, test, rows)} | ({} if ranking is None else asdict(ranking))
    measures |= {} if model.local else {"prices": price_source()}
    result = Result(
        key=key, cell=cell, split_sha256=work.keys.identities[cell.task]["split_sha256"],
        rows=rows, serve_seconds=seconds, latency=Latency((), 1),
        fit=fitted.spent, local=model.local, notes=fitted.notes | measures,
        warnings=fitted.warnings, integrity=audit(cell.method.name, fitted, test, model),
        clusters={str(e["id"]): str(e["cluster"]) for e in test if "cluster" in e},
        hits=passages.hits(test, cell.knowledge.test) if cell.knowledge.test == "retrieved" else {},
    )  # fmt: skip
    searches = cell.knowledge.test in ("retrieved", "noisy") and task.corpus
    retrieve = (lambda e: passages.search([question_text(e)])) if searches else None
    rm = passages.live(cell.knowledge.test, kept=False)
    return result, Probe(fitted, model, test, retrieve, rm=rm, file=folder / "latency.jsonl")


def fit_cell(work: Work, cell: Cell, folder: Path) -> Fitted:
    """Fit one cell in a folder of its own and keep what came of it."""
    task, model = work.tasks[cell.task], work.model(cell.model)
    passages = work.passages(cell)
    workdir = folder / "fit"
    shutil.rmtree(workdir, ignore_errors=True)
    workdir.mkdir(parents=True)
    method = method_of(cell.method.name, cell.method.options)
    train = passages.attach(train_pool(task, cell.train_size, cell.seed), cell.knowledge.train)
    val = work.val(cell)
    start = time.perf_counter()
    with dspy.context(lm=model.lm, adapter=model.adapter, rm=passages.live(cell.knowledge.train)):
        fitted = method.fit(
            task.program(),
            train=train,
            val=val,
            metric=task.metric,
            lm=model.lm,
            seed=cell.seed,
            budget=work.budget(cell, folder, len(val)),
        )
    # DSPy's threads may have swallowed what stopped the calls, and what came of it then is no fit.
    work.allowance.check()
    fitted.lm = work.allowance.limited(fitted.lm)
    fitted.spent.seconds = max(fitted.spent.seconds, time.perf_counter() - start)
    fitted.notes |= {"train_examples": len(train), "val_examples": len(val)}
    if save_fitted(folder, fitted):
        what = "fitting came out differently than before it was interrupted"
        work.progress.note(
            f"warning: {cell.task} {cell.method.label}: {what}; its rows are set aside and measured again"
        )
    return fitted


def finish_group(work: Work, measured: list[tuple[Result, Probe]], track: SafeTracker) -> None:
    """Time the group's arms side by side, then write and track the results of those that have all their timings."""
    if not measured:
        return
    work.progress.note("latency, one request at a time, arms interleaved")
    with contextlib.suppress(Stopped):
        measure_latency([p for _, p in measured], requests=LATENCY_REQUESTS, cold_requests=COLD_REQUESTS)
    for result, probe in measured:
        result.latency = probe.latency()
        if probe.retrieve is not None and probe.warm.answered:
            result.notes["retrieval_ms"] = 1000 * median(t.retrieval for t in probe.warm.answered)
        if probe.warm.asked >= LATENCY_REQUESTS:
            unsent = Unsent.of(work.experiment)
            mark(work.store, result.key, unsent)
            save_result(work.store, result)
            shutil.rmtree(cell_folder(work.store, result.key) / "checkpoints", ignore_errors=True)
            track.result(result, unsent)
