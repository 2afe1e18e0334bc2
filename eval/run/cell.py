"""Fit one cell of an experiment, score it, and time the cells of a group side by side."""

import contextlib
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import dspy

from crossover.eval.analysis.constant import constant_warning
from crossover.eval.analysis.labels import label_notes
from crossover.eval.analysis.secondary import secondary
from crossover.eval.experiment.spec import Cell, adapts_weights
from crossover.eval.experiment.splits import question_text, train_pool
from crossover.eval.run.audit import audit
from crossover.eval.run.judging import judge_notes, without_judge
from crossover.eval.run.latency import Probe, measure_latency
from crossover.eval.run.measure import measure_accuracy
from crossover.eval.run.methods import method_of
from crossover.eval.run.retention import told
from crossover.eval.run.work import Work
from crossover.eval.store.cells import cell_folder, save_fitted, save_result
from crossover.eval.store.faults import refusal
from crossover.eval.store.result import Latency, Result
from crossover.eval.store.rows import Rows
from crossover.models.allowance import Stopped
from crossover.models.errors import UserError
from crossover.models.load import LoadedModel
from crossover.models.price import price_source
from crossover.models.usage import Usage
from crossover.programs.judge import Judge
from crossover.programs.task import Fitted, Task

LATENCY_REQUESTS, COLD_REQUESTS = 30, 10
"""Timed requests of each arm, with what the model keeps of earlier prompts, and without."""

Measured = tuple[Result, Probe | None]
"""A scored cell and how to ask it for its latency; None for one that is not timed."""


@dataclass
class Started:
    """A fitted cell and what it is scored on."""

    cell: Cell
    key: str
    folder: Path
    task: Task
    model: LoadedModel
    fitted: Fitted
    test: Sequence[dspy.Example]
    """All of the test examples, in the order of the split."""

    def score(self, work: Work, examples: Sequence[dspy.Example]) -> tuple[Rows, float]:
        """Score some of the test examples; return all rows so far, and the seconds that these took."""
        with dspy.context(rm=work.passages(self.cell).live(self.cell.knowledge.test)):
            rows, seconds = measure_accuracy(
                self.fitted,
                self.task,
                examples,
                self.model,
                file=self.folder / "rows.jsonl",
                threads=work.threads,
                progress=work.progress,
            )
        work.tell_spent()
        return rows, seconds


def measure_cells(work: Work, cells: Sequence[Cell]) -> Iterator[Measured]:
    """Fit and score cells one after the other, and yield those that could be fitted.

    Raises:
        Stopped: no further call may be made.
    """
    for cell in cells:
        work.begin(cell)
        if (started := start_cell(work, cell)) is not None:
            rows, seconds = started.score(work, started.test)
            yield result_of(work, started, rows, seconds), probe_of(work, started)
        work.progress.finish_cell()


def start_cell(work: Work, cell: Cell) -> Started | None:
    """Fit one cell; None when that failed, which the table tells and the next run tries again."""
    key = work.keys.of(cell)
    folder, model = cell_folder(work.store, key), work.model(cell.model)
    try:
        fitted, test = fit_cell(work, cell, folder), work.test(cell)
        trained = {s.name for s in cell.method.steps if adapts_weights(s.name)}
        if trained and "head" not in trained and work.retention.specs:
            notes, warnings = told(work.retention.of(fitted.lm, model, work.progress.note))
            fitted.notes |= notes
            fitted.warnings += warnings
    except Exception as e:
        if refusal(e) is not None:
            raise
        why = str(e) if isinstance(e, UserError) else f"{type(e).__name__}: {e}"
        work.failures.append(f"{cell.task}, {cell.method.label}, seed {cell.seed} could not be fitted: {why}")
        work.progress.note(f"warning: {work.failures[-1]}")
        return None
    return Started(cell, key, folder, work.tasks[cell.task], model, fitted, test)


def result_of(work: Work, started: Started, rows: Rows, seconds: float) -> Result:
    """Return the result of a cell from its rows, which may be of some of the test examples."""
    cell, model, fitted, passages = started.cell, started.model, started.fitted, work.passages(started.cell)
    scored = set(rows.ids)
    test = [e for e in started.test if str(e["id"]) in scored]
    ranking = passages.ranking(test, cell.knowledge.test)
    measures = {"secondary": secondary(started.task, test, rows)} | ({} if ranking is None else asdict(ranking))
    pool = train_pool(started.task, cell.train_size, cell.seed)
    if labels := label_notes(started.task, pool, test, rows):
        measures["label_scores"] = labels
    measures |= {} if model.local else {"prices": price_source()}
    if (judge := work.judge(cell.task)) is not None:
        measures["judge"] = judge_notes(judge, rows)
        seconds = without_judge(seconds, rows)
    constant = constant_warning(started.task, test, rows)
    measures |= {"constant": constant} if constant else {}
    return Result(
        key=started.key,
        cell=cell,
        split_sha256=work.keys.identities[cell.task]["split_sha256"],
        rows=rows,
        serve_seconds=seconds,
        latency=Latency((), 1),
        fit=fitted.spent,
        local=model.local,
        notes=fitted.notes | measures,
        warnings=[*fitted.warnings, constant] if constant else fitted.warnings,
        integrity=audit(cell.method.name, fitted, test, model),
        clusters={str(e["id"]): str(e["cluster"]) for e in test if "cluster" in e},
        hits=passages.hits(test, cell.knowledge.test) if cell.knowledge.test == "retrieved" else {},
    )


def probe_of(work: Work, started: Started) -> Probe:
    """Return a fitted cell as the latency pass asks it."""
    passages, knowledge = work.passages(started.cell), started.cell.knowledge.test
    searches = knowledge in ("retrieved", "noisy") and started.task.corpus
    retrieve = (lambda e: passages.search([question_text(e)])) if searches else None
    rm, file = passages.live(knowledge, kept=False), started.folder / "latency.jsonl"
    return Probe(started.fitted, started.model, started.test, retrieve, rm=rm, file=file)


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
    start, judge = time.perf_counter(), task.metric if isinstance(task.metric, Judge) else None
    graded = judge.spent if judge else Usage()
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
    work.tell_spent()
    fitted.lm = work.allowance.limited(fitted.lm)
    fitted.spent.seconds = max(fitted.spent.seconds, time.perf_counter() - start)
    if judge:
        fitted.spent.usd = _more(fitted.spent.usd, judge.spent.usd, graded.usd)
    fitted.notes |= {"train_examples": len(train), "val_examples": len(val)}
    if save_fitted(folder, fitted):
        what = "fitting came out differently than before it was interrupted"
        work.progress.note(
            f"warning: {cell.task} {cell.method.label}: {what}; its rows are set aside and measured again"
        )
    return fitted


def _more(fit: float | None, after: float | None, before: float | None) -> float | None:
    """Return what fitting paid with what its judge was paid meanwhile; None when a price is unknown."""
    return None if fit is None or after is None or before is None else fit + after - before


def finish_group(work: Work, measured: Sequence[Measured]) -> None:
    """Time the group's arms side by side, then write the results of those that have all their timings."""
    if not measured:
        return
    work.progress.note("latency, one request at a time, arms interleaved")
    with contextlib.suppress(Stopped):
        probes = [p for _, p in measured if p is not None]
        measure_latency(probes, requests=LATENCY_REQUESTS, cold_requests=COLD_REQUESTS)
    for result, probe in measured:
        if probe is not None:
            result.latency = probe.latency()
            if probe.retrieve is not None and probe.warm.answered:
                result.notes["retrieval_ms"] = 1000 * median(t.retrieval for t in probe.warm.answered)
        if probe is None or probe.warm.asked >= LATENCY_REQUESTS:
            save_result(work.store, result)
            shutil.rmtree(cell_folder(work.store, result.key) / "checkpoints", ignore_errors=True)
