"""Fit one cell of an experiment, score it, and time the cells of a group side by side."""

import contextlib
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import dspy

from crossover.eval.analysis.labels import label_notes
from crossover.eval.analysis.secondary_metrics import near_miss_warning, secondary_metrics
from crossover.eval.analysis.single_answer import single_answer_warning
from crossover.eval.experiment.spec import Cell, plan
from crossover.eval.experiment.splits import question_text, train_pool
from crossover.eval.run.audit import audit
from crossover.eval.run.context import RunContext
from crossover.eval.run.judging import judge_notes, without_judge
from crossover.eval.run.latency import Probe, batches_of, measure_latency, requests_for, timed_questions
from crossover.eval.run.measure import measure_accuracy
from crossover.eval.run.methods import method_of
from crossover.eval.run.retention import retention_report
from crossover.eval.run.validation import score_on_val
from crossover.eval.store.cells import cell_folder, reopen, save_fitted, save_result
from crossover.eval.store.faults import refusal
from crossover.eval.store.result import Latency, Result
from crossover.eval.store.rows import Rows
from crossover.models.api_keys import redact
from crossover.models.errors import UserError
from crossover.models.limits import Stopped
from crossover.models.load import LoadedModel
from crossover.models.price import price_source, token_rates
from crossover.models.prompt import engine_of
from crossover.models.usage import Usage, add_usd
from crossover.programs.judge import Judge
from crossover.programs.task import Fitted, Task

Measured = tuple[Result, Probe | None]
"""A scored cell, and the probe of its latency; None for a cell that is not timed."""


@dataclass
class FittedCell:
    """A fitted cell, ready to be scored."""

    cell: Cell
    key: str
    folder: Path
    task: Task
    model: LoadedModel
    fitted: Fitted
    test: Sequence[dspy.Example]
    """All of the test examples, in the order of the split."""

    def score(self, context: RunContext, examples: Sequence[dspy.Example]) -> tuple[Rows, float]:
        """Score some of the test examples; return all rows so far, and the seconds that `examples` take."""
        with dspy.context(rm=context.passages(self.cell).live(self.cell.knowledge.test)):
            rows, seconds = measure_accuracy(
                self.fitted,
                self.task,
                examples,
                self.model,
                file=self.folder / "rows.jsonl",
                threads=context.threads,
                progress=context.progress,
            )
        context.report_spending()
        return rows, seconds


def measure_cells(context: RunContext, cells: Sequence[Cell]) -> Iterator[Measured]:
    """Fit and score cells one after the other, and yield those that could be fitted.

    Raises:
        Stopped: a limit was reached.
    """
    for cell in cells:
        context.begin(cell)
        if (fitted_cell := try_to_fit(context, cell)) is not None:
            rows, seconds = fitted_cell.score(context, fitted_cell.test)
            yield result_of(context, fitted_cell, rows, seconds), probe_of(context, fitted_cell, rows)
        context.progress.finish_cell()


def try_to_fit(context: RunContext, cell: Cell) -> FittedCell | None:
    """Fit one cell, to be measured; None when that failed, which the table reports and the next run tries again."""
    key = context.keys.of(cell)
    folder = cell_folder(context.store, key)
    try:
        model = context.served(cell)
        fitted, test = fit_cell(context, cell, folder), context.test(cell)
        # A head gives the labels of its own task, and nothing on another.
        has_head = any(step.name == "head" for step in cell.method.steps)
        if cell.method.trains and not has_head and context.retention.specs:
            notes, warnings = retention_report(context.retention.of(fitted.lm, model, context.progress.note))
            fitted.notes |= notes
            fitted.warnings += warnings
    except Exception as e:
        if refusal(e) is not None:
            raise
        why = str(e) if isinstance(e, UserError) else f"{type(e).__name__}: {e}"
        what = f"{cell.task}, {cell.method.label}, seed {cell.seed} could not be fitted: {why}"
        context.failures.append(redact(what))
        context.progress.note(f"warning: {context.failures[-1]}")
        return None
    # Not before: a cell that cannot be fitted now keeps the result that it has.
    reopen(context.store, key, context.progress.note)
    return FittedCell(cell, key, folder, context.tasks[cell.task], model, fitted, test)


def result_of(context: RunContext, fitted_cell: FittedCell, rows: Rows, seconds: float) -> Result:
    """Return the result of a cell from its rows, which may cover only some of the test examples."""
    cell, model, fitted, passages = (
        fitted_cell.cell,
        fitted_cell.model,
        fitted_cell.fitted,
        context.passages(fitted_cell.cell),
    )
    scored = set(rows.ids)
    test = [e for e in fitted_cell.test if str(e["id"]) in scored]
    ranking = passages.ranking(test, cell.knowledge.test)
    measures = {"secondary": secondary_metrics(fitted_cell.task, test, rows)} | (
        {} if ranking is None else asdict(ranking)
    )
    pool = train_pool(fitted_cell.task, cell.train_size, cell.seed)
    if labels := label_notes(fitted_cell.task, pool, test, rows):
        measures["label_scores"] = labels
    measures |= {"columns": fitted_cell.task.columns} if fitted_cell.task.columns else {}
    choice = context.prompt_format(cell)
    measures["prompt_format"] = choice.name
    measures |= {"prompt_format_choice": choice.reason} if choice.tried else {}
    if served_by := getattr(engine_of(model.lm), "served_by", ""):
        measures["served_by"] = served_by
    if not model.local:
        measures |= {"prices": price_source(cell.model.name), "token_rates": token_rates(cell.model.name)}
    if (judge := context.judge(cell.task)) is not None:
        measures["judge"] = judge_notes(judge, rows)
        seconds = without_judge(seconds, rows)
    constant = single_answer_warning(fitted_cell.task, test, rows)
    measures |= {"constant": constant} if constant else {}
    doubts = [doubt for doubt in (constant, near_miss_warning(fitted_cell.task, test, rows)) if doubt]
    return Result(
        key=fitted_cell.key,
        cell=cell,
        split_sha256=context.keys.identities[cell.task]["split_sha256"],
        rows=rows,
        serve_seconds=seconds,
        latency=Latency((), 1),
        fit=fitted.spent + choice.spent,
        local=model.local,
        facts=fitted.facts,
        notes=fitted.notes | measures,
        warnings=[*fitted.warnings, *doubts],
        integrity=audit(fitted, test, model),
        # Of all examples, also for an arm that left a race: the clusters are the task's.
        clusters={str(e["id"]): str(e["cluster"]) for e in fitted_cell.test if "cluster" in e},
        hits=passages.hits(test, cell.knowledge.test) if cell.knowledge.test == "retrieved" else {},
    )


def probe_of(context: RunContext, fitted_cell: FittedCell, rows: Rows) -> Probe | None:
    """Return the probe that times single requests to a fitted cell; None where all its rows failed."""
    if rows.failed == len(rows):
        return None
    passages, knowledge = context.passages(fitted_cell.cell), fitted_cell.cell.knowledge.test
    searches = knowledge in ("retrieved", "noisy") and fitted_cell.task.corpus
    retrieve = (lambda e: passages.search([question_text(e)])) if searches else None
    rm, file = passages.live(knowledge, kept=False), fitted_cell.folder / "latency.jsonl"
    cell = fitted_cell.cell
    seeds = [c.seed for c in plan(context.experiment) if replace(c, seed=cell.seed) == cell]
    bounded = context.experiment.needs.max_p95_ms is not None
    requests = requests_for(len(fitted_cell.test), context.latency_requests[0], bounded=bounded)
    timed, warm_up = timed_questions(fitted_cell.test, requests, seed=cell.seed, seeds=seeds)
    batches = batches_of(fitted_cell.test, requests, threads=context.threads) if fitted_cell.model.local else []
    return Probe(
        fitted_cell.fitted,
        fitted_cell.model,
        timed,
        warm_up,
        retrieve,
        rm=rm,
        batches=batches,
        bounded=bounded,
        file=file,
    )


def fit_cell(context: RunContext, cell: Cell, folder: Path) -> Fitted:
    """Fit one cell in a folder of its own, and save the fitted program."""
    task, model = context.tasks[cell.task], context.served(cell)
    passages = context.passages(cell)
    workdir = folder / "fit"
    shutil.rmtree(workdir, ignore_errors=True)
    workdir.mkdir(parents=True)
    method = method_of(cell.method.name, cell.method.options)
    train = passages.attach(train_pool(task, cell.train_size, cell.seed), cell.knowledge.train)
    val = context.val(cell)
    start, judge = time.perf_counter(), task.metric if isinstance(task.metric, Judge) else None
    graded = judge.spent if judge else Usage()
    with dspy.context(lm=model.lm, adapter=model.prompt_format, rm=passages.live(cell.knowledge.train)):
        fitted = method.fit(
            task.program(),
            train=train,
            val=val,
            metric=task.metric,
            lm=model.lm,
            seed=cell.seed,
            budget=context.budget(cell, folder, len(val)),
        )
    # DSPy's threads may have swallowed the exception of a reached limit; such a fit must not count.
    context.allowance.check()
    context.report_spending()
    fitted.lm = context.allowance.limited(fitted.lm)
    if fitted.facts.val_score is None and cell.family in context.chosen_on_val:
        with dspy.context(adapter=model.prompt_format, rm=passages.live(cell.knowledge.test)):
            score_on_val(context, fitted, task, val, answers=folder / "val.jsonl")
        context.allowance.check()
        context.report_spending()
    fitted.spent.seconds = max(fitted.spent.seconds, time.perf_counter() - start)
    if judge:
        # The judge of the metric is paid by the fit that asks it.
        fitted.spent.usd = add_usd(fitted.spent.usd, judge.spent.usd, None if graded.usd is None else -graded.usd)
    fitted.facts = replace(fitted.facts, train_examples=len(train), val_examples=len(val))
    if save_fitted(folder, fitted):
        what = "fitting came out differently than before it was interrupted"
        context.progress.note(
            f"warning: {cell.task} {cell.method.label}: {what}; its rows are set aside and measured again"
        )
    return fitted


def finish_group(context: RunContext, measured: Sequence[Measured]) -> None:
    """Time the group's arms side by side, then write the results of those that have all their timings."""
    if not measured:
        return
    _, cold_requests = context.latency_requests
    context.progress.note("latency and speed, arms interleaved")
    with contextlib.suppress(Stopped):
        probes = [p for _, p in measured if p is not None]
        measure_latency(probes, cold_requests=cold_requests)
    for result, probe in measured:
        if probe is not None:
            result.latency = probe.latency()
            result.warnings = [*result.warnings, *probe.remarks]
            if probe.retrieve is not None and probe.warm.answered:
                result.notes["retrieval_ms"] = 1000 * median(t.retrieval for t in probe.warm.answered)
        if probe is None or probe.done:
            save_result(context.store, result)
            # A training goes on from its checkpoints when the next run asks for failed rows again.
            if not Rows.of(result.rows).failed:
                shutil.rmtree(cell_folder(context.store, result.key) / "checkpoints", ignore_errors=True)
