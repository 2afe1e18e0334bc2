"""The state that the cells of one run share: models loaded once, passages found once, limits and budgets."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

import dspy

from crossover.eval.experiment.spec import Cell, Experiment, Family, families_with_variants
from crossover.eval.experiment.splits import sample, sample_val, train_pool
from crossover.eval.run.cell_keys import CellKeys
from crossover.eval.run.formats import DEMOS, FormatChoice, choose_format, only_format
from crossover.eval.run.latency import latency_requests
from crossover.eval.run.loading import check_cells, prepare, raise_errors
from crossover.eval.run.passages import Passages
from crossover.eval.run.progress import Progress
from crossover.eval.run.retention import Retention
from crossover.eval.store.result import Result
from crossover.eval.store.rows import Rows
from crossover.models.jsonl import write_json
from crossover.models.limits import UsageLimits
from crossover.models.load import LoadedModel, load_model
from crossover.models.price import api_price
from crossover.models.spec import ModelSpec
from crossover.programs.spec import JudgeSpec
from crossover.programs.task import Budget, Task

READINGS_OF_VAL = 20
"""Passes over val that a search may make when the file sets no number of metric calls."""
ONE_TOKEN = {"prompt_tokens": 1, "completion_tokens": 1}
"""Usage whose price is known only for a model in the price table."""


class Models:
    """Load each model on first use, under the limits of the run; a finished run loads none."""

    def __init__(self, allowance: UsageLimits, note: Callable[[str], None]) -> None:
        """Load nothing yet."""
        self.allowance, self.note = allowance, note
        self._loaded: dict[tuple[ModelSpec, str, float], LoadedModel] = {}

    def __call__(self, spec: ModelSpec) -> LoadedModel:
        """Return the model of a spec, loaded once."""
        # A teacher may be the same model, at another's cost or with more patience.
        key = spec, spec.api_key, spec.timeout
        if key not in self._loaded:
            model = load_model(spec)
            if not model.local and self.allowance.usd is not None and api_price({spec.name: ONE_TOKEN}) is None:
                self.note(f"warning: {spec.name} has no known price: the limit in dollars cannot hold it")
            self._loaded[key] = replace(model, lm=self.allowance.limited(model.lm))
        return self._loaded[key]


@dataclass
class RunContext:
    """The experiment, the store, the models and the limits of one run."""

    experiment: Experiment
    store: Path
    threads: int
    progress: Progress
    keys: CellKeys
    allowance: UsageLimits
    """The limits of the run, shared by all its models."""
    model: Models
    latency_requests: tuple[int, int]
    """How many requests time an arm, with prefixes cached and with none."""
    failures: list[str] = field(default_factory=list)
    """A sentence for each cell that could not be fitted."""
    _passages: dict[tuple[str, str], Passages] = field(default_factory=dict)
    _formats: dict[tuple[str, ModelSpec], FormatChoice] = field(default_factory=dict)
    _begun: int = 0
    _reported_usd: float = 0.0

    @classmethod
    def of(cls, experiment: Experiment, *, store: Path, threads: int, progress: Progress) -> "RunContext":
        """Load the experiment's tasks, hold its models to its limits, and give its cells their keys.

        Raises:
            UserError: the tasks have errors, or a setting of the environment is wrong.
        """
        # DSPy logs a warning for every answer cut at max_tokens, which the rows record anyway.
        logging.getLogger("dspy").setLevel(logging.ERROR)
        requests, allowance = latency_requests(), UsageLimits(**asdict(experiment.limits))
        models = Models(allowance, progress.note)
        keyed = prepare(experiment, store=store, note=progress.note, load=models)
        return cls(experiment, store, threads, progress, keyed, allowance, models, requests)

    def check(self, cells: Sequence[Cell]) -> None:
        """Check that these cells can be measured, before anything is loaded or paid; doubts go to the progress line.

        Raises:
            UserError: a key is missing, or a method has wrong options or cannot be fitted.
        """
        if cells:
            problems = check_cells(self.experiment, self.tasks, cells)
            raise_errors(problems)
            for p in problems:
                self.progress.note(str(p))

    @property
    def tasks(self) -> Mapping[str, Task]:
        """Return the experiment's tasks by name."""
        return self.keys.tasks

    @cached_property
    def chosen_on_val(self) -> set[Family]:
        """Return the families of cells whose variants are scored on val, so that one can be chosen."""
        return families_with_variants(self.experiment)

    def is_whole(self, result: Result) -> bool:
        """Return whether a finished cell has no failed row, and a score on val where one is needed."""
        unread = result.facts.val_score is None and result.cell.family in self.chosen_on_val
        return not unread and not Rows.of(result.rows).failed

    @cached_property
    def retention(self) -> Retention:
        """Return the scorer of the tasks that a training may make the model forget."""
        return Retention(self.keys.others, self.experiment.retention, self.keys.indexes, self.threads)

    def judge(self, task: str) -> JudgeSpec | None:
        """Return the judge of a task; None where a metric compares texts."""
        return next((t.judge for t in self.experiment.tasks if t.name == task), None)

    def begin(self, cell: Cell) -> None:
        """Report that a cell begins.

        Raises:
            Stopped: a limit was reached.
        """
        self.allowance.check()
        self._begun += 1
        self.progress.start_cell(self._begun, f"{cell.task} {cell.title}")

    def report_spending(self) -> None:
        """Add the dollars that APIs charged since the last call to the progress line."""
        usd = self.allowance.used.usd or 0.0
        self.progress.spend(usd - self._reported_usd)
        self._reported_usd = usd

    def passages(self, cell: Cell) -> Passages:
        """Return the passages of the cell's task and retrieval, shared by all arms that read them."""
        key = (cell.task, cell.retrieval.label if cell.retrieval else "")
        if key not in self._passages:
            self._passages[key] = Passages(self.tasks[cell.task], cell.retrieval, self.keys.indexes)
        return self._passages[key]

    def served(self, cell: Cell) -> LoadedModel:
        """Return the cell's model in the prompt format that its task is measured in."""
        model = self.model(cell.model)
        return model.in_format(self.prompt_format(cell).name)

    def prompt_format(self, cell: Cell) -> FormatChoice:
        """Return the prompt format of the cell's task and model, which all of its arms share.

        It is chosen on what the first cell that asks may read, and kept in the store.
        """
        key = (cell.task, cell.model)
        if key not in self._formats:
            self._formats[key] = self._chosen_format(cell)
        return self._formats[key]

    def _chosen_format(self, cell: Cell) -> FormatChoice:
        model, task = self.model(cell.model), self.tasks[cell.task]
        if (only := only_format(model)) is not None:
            return FormatChoice(only)
        file = self.store / "formats" / f"{self.keys.of_format(cell)}.json"
        if file.exists():
            return FormatChoice.read(file)
        passages = self.passages(cell)
        demos = passages.attach(train_pool(task, None, 0)[:DEMOS], cell.knowledge.train)
        with dspy.context(rm=passages.live(cell.knowledge.test)):
            choice = choose_format(model, task, self.val(cell), demos, threads=self.threads, note=self.progress.note)
        self.progress.leave_out(choice.spent.seconds)
        # DSPy's threads may have swallowed the exception of a reached limit.
        self.allowance.check()
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, asdict(choice))
        self.progress.note(f"{cell.task}: prompt format {choice.name}: {choice.reason}")
        return choice

    def test(self, cell: Cell) -> list[dspy.Example]:
        """Return the test examples with the passages that the cell may read."""
        test = sample(self.tasks[cell.task].test, self.experiment.limit)
        return self.passages(cell).attach(test, cell.knowledge.test)

    def val(self, cell: Cell) -> list[dspy.Example]:
        """Return the val examples, fewer under `--limit`, with the passages that the cell may read."""
        val = sample_val(self.tasks[cell.task].val, self.experiment.limit)
        return self.passages(cell).attach(val, cell.knowledge.test)

    def budget(self, cell: Cell, folder: Path, val: int) -> Budget:
        """Return the budget of the cell's fit: the method's own, or else the experiment's."""
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
            shared=self.store / "targets" / self.keys.split_sha256[cell.task][:16],
            teacher=None if teacher is None else teacher.lm,
            teacher_format=None if teacher is None else teacher.prompt_format,
            threads=self.threads,
            columns=self.tasks[cell.task].columns,
            progress=self.progress.note,
            trained=self.progress.trained,
        )
