"""Fit one cell of an experiment, score it, and time the cells of a group side by side."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import dspy

from eval.audit import audit
from eval.chain import Chain
from eval.experiment import Cell, Experiment, JudgeSpec, SearchBudget
from eval.judging import judge_notes, judge_spent, without_judge
from eval.keys import Keys
from eval.measure import Latency, Probe, Result, measure_accuracy, measure_latency
from eval.passages import Indexes, Passages
from eval.progress import Progress
from eval.safe_tracker import SafeTracker
from eval.secondary import secondary
from eval.splits import question_text, sample, train_pool
from eval.store import cell_folder, save_fitted, save_result
from models.load import LoadedModel, load_model
from models.price import price_source
from models.spec import ModelSpec
from programs.judge import Judge
from programs.score import Row
from programs.task import Budget, Fitted, Method, Spent, Task, UserError

LATENCY_REQUESTS = 30
"""Timed requests of each arm."""
READINGS_OF_VAL = 20
"""How often a search may read val, where the file names no number of metric calls."""
BUDGET_OPTIONS = tuple(f.name for f in fields(SearchBudget))


def method_of(name: str, options: Any) -> Method:
    """Return the method of that file name, with its options; a chain of the methods that its options list."""
    if name == "chain":
        return Chain(tuple((s["name"], method_of(s["name"], s["options"])) for s in options["steps"]))
    options = {k: v for k, v in options.items() if k not in BUDGET_OPTIONS}
    for room in ("optimizers", "finetune"):
        if find_spec(f"{room}.{name}"):
            cls = vars(import_module(f"{room}.{name}"))["".join(w.capitalize() for w in name.split("_"))]
            method: Method = cls(**options)
            return method
    raise UserError(f"method {name!r} is not a file of optimizers/ or finetune/; see `crossover ls methods`")


class Models:
    """Models by what names them, loaded when they are first needed: a finished run only prints."""

    def __init__(self) -> None:
        """Start without any."""
        self._loaded: dict[ModelSpec, LoadedModel] = {}

    def __call__(self, spec: ModelSpec) -> LoadedModel:
        """Return the model."""
        if spec not in self._loaded:
            self._loaded[spec] = load_model(spec)
        return self._loaded[spec]


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
    model: Models
    started: float = field(default_factory=time.monotonic)
    usd: float = 0.0
    """Dollars paid to APIs so far."""
    begun: int = 0
    """Cells begun so far."""
    _passages: dict[tuple[str, str], Passages] = field(default_factory=dict)

    def judge(self, task: str) -> JudgeSpec | None:
        """Return what judges a task; None where a metric compares texts."""
        return next((t.judge for t in self.experiment.tasks if t.name == task), None)

    def passages(self, cell: Cell) -> Passages:
        """Return the passages that the cell's arm may read, the same for every arm of its task and retrieval."""
        key = (cell.task, cell.retrieval.label if cell.retrieval else "")
        if key not in self._passages:
            self._passages[key] = Passages(self.tasks[cell.task], cell.retrieval, self.indexes)
        return self._passages[key]

    def pay(self, fitted: Fitted | None = None, rows: Sequence[Row] = ()) -> None:
        """Add what fitting and what rows paid to APIs."""
        usd = (fitted.spent.usd or 0.0 if fitted else 0.0) + sum(r.usd or 0.0 for r in rows)
        usd += judge_spent(rows).usd or 0.0
        self.usd += usd
        self.progress.spend(usd)

    def next_number(self) -> int:
        """Return the number of the cell that begins now, from 1."""
        self.begun += 1
        return self.begun

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
            teacher=None if teacher is None else teacher.lm,
            teacher_adapter=None if teacher is None else teacher.adapter,
            threads=self.threads,
            progress=self.progress.note,
        )


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


def measure_cell(work: Work, cell: Cell) -> tuple[Result, Probe] | None:
    """Fit and score one cell; None when fitting failed, which the notes tell and the next run tries again."""
    started = start_cell(work, cell)
    if started is None:
        return None
    with dspy.context(rm=work.passages(cell).live(cell.knowledge.test)):
        rows, seconds = measure_accuracy(
            started.fitted, started.task, started.test, started.model,
            file=started.folder / "rows.jsonl", threads=work.threads, progress=work.progress,
        )  # fmt: skip
    work.pay(started.fitted, rows)
    return result_of(work, started, rows, seconds), probe_of(work, started)


def start_cell(work: Work, cell: Cell) -> Started | None:
    """Fit one cell; None when that failed."""
    key = work.keys.of(cell)
    folder = cell_folder(work.store, key)
    try:
        fitted, test = fit_cell(work, cell, folder), work.test(cell)
    except UserError:
        raise
    except Exception as e:
        work.progress.note(f"warning: {cell.task} {cell.method.label} failed to fit: {type(e).__name__}: {e}")
        return None
    return Started(cell, key, folder, work.tasks[cell.task], work.model(cell.model), fitted, test)


def result_of(work: Work, started: Started, rows: Sequence[Row], seconds: float) -> Result:
    """Return the result of a cell from its rows, which stand in the order of the split."""
    cell, model, fitted, passages = started.cell, started.model, started.fitted, work.passages(started.cell)
    scored = {r.id for r in rows}
    test = [e for e in started.test if str(e["id"]) in scored]
    ranking = passages.ranking(test, cell.knowledge.test)
    measures = {"secondary": secondary(started.task, test, rows)} | ({} if ranking is None else asdict(ranking))
    measures |= {} if model.local else {"prices": price_source()}
    if (judge := work.judge(cell.task)) is not None:
        measures["judge"] = judge_notes(judge, rows)
    return Result(
        key=started.key, cell=cell, split_sha256=work.keys.identities[cell.task]["split_sha256"],
        rows=rows, serve_seconds=without_judge(seconds, rows), latency=Latency((), 1),
        fit=fitted.spent, local=model.local, notes=fitted.notes | measures,
        warnings=fitted.warnings, integrity=audit(cell.method.name, fitted, test, model),
        clusters={str(e["id"]): str(e["cluster"]) for e in test if "cluster" in e},
        hits=passages.hits(test, cell.knowledge.test) if cell.knowledge.test == "retrieved" else {},
    )  # fmt: skip


def probe_of(work: Work, started: Started) -> Probe:
    """Return a fitted cell as the latency pass asks it."""
    passages, knowledge = work.passages(started.cell), started.cell.knowledge.test
    searches = knowledge in ("retrieved", "noisy") and started.task.corpus
    retrieve = (lambda e: passages.search([question_text(e)])) if searches else None
    return Probe(started.fitted, started.model, started.test, retrieve, rm=passages.live(knowledge, kept=False))


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
    graded = judge.spent if judge else Spent()
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
    if judge:
        fitted.spent.usd = _more(fitted.spent.usd, judge.spent.usd, graded.usd)
    fitted.notes |= {"train_examples": len(train), "val_examples": len(val)}
    save_fitted(folder, fitted)
    return fitted


def _more(fit: float | None, after: float | None, before: float | None) -> float | None:
    """Return what fitting paid with what its judge was paid meanwhile; None when a price is unknown."""
    return None if fit is None or after is None or before is None else fit + after - before


def finish_group(work: Work, measured: Sequence[tuple[Result, Probe | None]], track: SafeTracker | None) -> None:
    """Time the group's arms side by side, then write and track their results; one without a probe is not timed."""
    if not measured:
        return
    work.progress.note("latency, one request at a time, arms interleaved")
    measure_latency([p for _, p in measured if p is not None], requests=LATENCY_REQUESTS)
    for result, probe in measured:
        if probe is not None:
            result.latency = Latency(tuple(probe.seconds), 1)
            if probe.retrieve is not None and probe.seconds:
                result.notes["retrieval_ms"] = 1000 * median(probe.retrieval_seconds)
        if track is not None:
            track.result(result, work.experiment.prices, cell_folder(work.store, result.key))
        save_result(work.store, result)
