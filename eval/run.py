"""Run an experiment: every missing cell is fitted and measured, then all are compared."""

import logging
import os
import shutil
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median

import dspy

from eval.audit import audit
from eval.compare import Comparison, compare
from eval.experiment import Cell, Experiment, TaskSpec, plan
from eval.keys import Keys
from eval.ledger import adapts_weights
from eval.measure import Latency, Probe, Result, measure_accuracy, measure_latency
from eval.methods import method_of
from eval.passages import Indexes, Passages
from eval.progress import Progress
from eval.recorded import record
from eval.retention import Retention, told
from eval.safe_tracker import SafeTracker
from eval.secondary import secondary
from eval.splits import question_text, sample, train_pool
from eval.store import cell_folder, load_result, save_fitted, save_result
from models.load import EMBEDDED, LoadedModel, load_model, model_sha256
from models.price import price_source
from models.spec import ModelSpec
from programs.data import load_and_check
from programs.task import Budget, Fitted, Problem, Task, UserError

LATENCY_REQUESTS = 30
"""Timed requests of each arm."""
READINGS_OF_VAL = 20
"""How often a search may read val, where the file names no number of metric calls."""


def load_tasks(specs: tuple[TaskSpec, ...]) -> tuple[dict[str, Task], list[Problem]]:
    """Load and check every task; all problems of all tasks come back together."""
    tasks, problems = {}, []
    for spec in specs:
        task, found = load_and_check(spec)
        problems += found
        if task is not None:
            tasks[spec.name] = task
    return tasks, problems


def check_models(experiment: Experiment) -> list[Problem]:
    """Return what keeps the models from being called, without calling them."""
    problems = []
    for spec in [*experiment.models, *([experiment.teacher] if experiment.teacher else [])]:
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


@dataclass
class Work:
    """What one run of an experiment carries along."""

    experiment: Experiment
    store: Path
    threads: int
    progress: Progress
    tasks: dict[str, Task]
    indexes: Indexes
    keys: Keys
    retention: Retention
    started: float = field(default_factory=time.monotonic)
    usd: float = 0.0
    """Dollars paid to APIs so far."""
    failures: list[str] = field(default_factory=list)
    """What could not be fitted, and why."""
    _passages: dict[tuple[str, str], Passages] = field(default_factory=dict)
    _models: dict[ModelSpec, LoadedModel] = field(default_factory=dict)

    def model(self, spec: ModelSpec) -> LoadedModel:
        """Return the model, loaded when it is first needed: a finished run only prints."""
        if spec not in self._models:
            self._models[spec] = load_model(spec)
        return self._models[spec]

    def passages(self, cell: Cell) -> Passages:
        """Return the passages that the cell's arm may read, the same for every arm of its task and retrieval."""
        key = (cell.task, cell.retrieval.label if cell.retrieval else "")
        if key not in self._passages:
            self._passages[key] = Passages(self.tasks[cell.task], cell.retrieval, self.indexes)
        return self._passages[key]

    def spend(self, result: Result) -> None:
        """Add what a cell paid to APIs."""
        self.usd += (result.fit.usd or 0.0) + sum(r.usd or 0.0 for r in result.rows)
        self.progress.spend(self.usd)

    def limit_reached(self) -> str:
        """Return the limit that forbids another cell, empty when none does."""
        limits, minutes = self.experiment.limits, (time.monotonic() - self.started) / 60
        if limits.minutes is not None and minutes >= limits.minutes:
            return f"{limits.minutes:g} minutes"
        return f"${limits.usd:g}" if limits.usd is not None and self.usd > 0 and self.usd >= limits.usd else ""

    def test(self, cell: Cell) -> list[dspy.Example]:
        """Return the test examples with the passages that the cell may read."""
        test = sample(self.tasks[cell.task].test, self.experiment.limit)
        return self.passages(cell).attach(test, cell.knowledge.test)

    def val(self, cell: Cell) -> list[dspy.Example]:
        """Return the val examples, fewer when the test is limited."""
        limit = None if self.experiment.limit is None else max(20, self.experiment.limit // 2)
        return self.passages(cell).attach(sample(self.tasks[cell.task].val, limit), cell.knowledge.test)

    def budget(self, cell: Cell, folder: Path, val: int) -> Budget:
        """Return what the cell may spend on fitting: the experiment's budget, or the method's own."""
        own, shared = cell.method.options, self.experiment.budget
        calls = own.get("metric_calls") or shared.metric_calls or READINGS_OF_VAL * val
        spec = self.experiment.teacher
        teacher = None if spec is None else self.model(spec)
        return Budget(
            metric_calls=calls,
            usd=own.get("usd") or shared.usd,
            workdir=folder / "fit",
            answers=folder / "answers.jsonl",
            checkpoints=folder / "checkpoints",
            shared=self.store / "targets" / self.keys.identities[cell.task]["split_sha256"][:16],
            teacher=None if teacher is None else teacher.lm,
            teacher_adapter=None if teacher is None else teacher.adapter,
            threads=self.threads,
            progress=self.progress.note,
        )


def prepare(experiment: Experiment, *, store: Path, threads: int, progress: Progress) -> Work:
    """Load and check the data and hash the models; the problems that forbid nothing go to the progress.

    Raises:
        UserError: the tasks have errors.
    """
    tasks, problems = load_tasks(experiment.tasks)
    others, found = load_tasks(experiment.retention)
    problems += found
    for p in problems:
        if p.level == "warning":
            progress.note(str(p))
    if errors := [p for p in problems if p.level == "error"]:
        raise UserError("\n".join(str(e) for e in errors))
    specs = {*experiment.models, *([experiment.teacher] if experiment.teacher else [])}
    indexes = Indexes(store, progress.note)
    keys = Keys(experiment, tasks, {m: model_sha256(m) for m in specs}, indexes)
    retention = Retention(others, experiment.retention, indexes, threads)
    return Work(experiment, store, threads, progress, tasks, indexes, keys, retention)


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
    results = {k: r for k in keys if (r := load_result(store, k)) is not None}
    missing = [c for c, k in zip(cells, keys, strict=True) if k not in results]
    for method in {c.method.label: c.method for c in missing}.values():
        method_of(method.name, method.options)  # what it refuses to be, it refuses before anything is spent
    progress.total_cells = len(missing)
    track = SafeTracker(experiment, store, tracking_uri, progress) if missing else None
    groups: dict[tuple[str, ModelSpec], list[Cell]] = {}
    for cell in missing:
        groups.setdefault((cell.task, cell.model), []).append(cell)
    stopped, number = "", 0
    for group in groups.values():
        measured: list[tuple[Result, Probe]] = []
        for cell in group:
            stopped = stopped or work.limit_reached()
            if stopped:
                continue
            number += 1
            progress.start_cell(number, f"{cell.task} {cell.method.label} seed={cell.seed}")
            if (pair := measure_cell(work, cell)) is not None:
                measured.append(pair)
                work.spend(pair[0])
            progress.finish_cell()
        finish_group(work, measured, track)
        results |= {r.key: r for r, _ in measured}
    if stopped:
        progress.note(f"warning: stopped at {stopped}, {len(results)} of {len(cells)} cells done: the table is partial")
    if not results:
        before = f" before the limit of {stopped}" if stopped else ""
        raise UserError("\n".join([*work.failures, f"no cell was measured{before}; see the notes above"]))
    record(store, experiment, [k for k in keys if k in results])
    found = [results[k] for k in keys if k in results]
    judged = compare(found, needs=experiment.needs, prices=experiment.prices, experiment=experiment.name)
    comparison = replace(judged, failures=tuple(work.failures))
    if track is not None:
        track.verdict(comparison)
    return comparison


def measure_cell(work: Work, cell: Cell) -> tuple[Result, Probe] | None:
    """Fit and score one cell; None when fitting failed, which the table tells and the next run tries again."""
    task, model, key = work.tasks[cell.task], work.model(cell.model), work.keys.of(cell)
    folder = cell_folder(work.store, key)
    passages = work.passages(cell)
    try:
        fitted = fit_cell(work, cell, folder)
        trained = {s.name for s in cell.method.steps if adapts_weights(s.name)}
        if trained and "head" not in trained and work.retention.specs:
            notes, warnings = told(work.retention.of(fitted.lm, model, work.progress.note))
            fitted.notes |= notes
            fitted.warnings += warnings
        test = work.test(cell)
    except Exception as e:
        why = str(e) if isinstance(e, UserError) else f"{type(e).__name__}: {e}"
        work.failures.append(f"{cell.task}, {cell.method.label}, seed {cell.seed} could not be fitted: {why}")
        work.progress.note(f"warning: {work.failures[-1]}")
        return None
    with dspy.context(rm=passages.live(cell.knowledge.test)):
        rows, seconds = measure_accuracy(
            fitted, task, test, model, file=folder / "rows.jsonl", threads=work.threads, progress=work.progress
        )
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
    return result, Probe(fitted, model, test, retrieve, rm=passages.live(cell.knowledge.test, kept=False))


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
    fitted.spent.seconds = max(fitted.spent.seconds, time.perf_counter() - start)
    fitted.notes |= {"train_examples": len(train), "val_examples": len(val)}
    save_fitted(folder, fitted)
    return fitted


def finish_group(work: Work, measured: list[tuple[Result, Probe]], track: SafeTracker | None) -> None:
    """Time the group's arms side by side, then write and track their results."""
    if not measured:
        return
    work.progress.note("latency, one request at a time, arms interleaved")
    measure_latency([p for _, p in measured], requests=LATENCY_REQUESTS)
    for result, probe in measured:
        result.latency = Latency(tuple(probe.seconds), 1)
        if probe.retrieve is not None and probe.seconds:
            result.notes["retrieval_ms"] = 1000 * median(probe.retrieval_seconds)
        if track is not None:
            track.result(result, work.experiment.prices, cell_folder(work.store, result.key))
        save_result(work.store, result)
        shutil.rmtree(cell_folder(work.store, result.key) / "checkpoints", ignore_errors=True)
