"""Fit every method of an experiment on a few rows with a scripted model: no weights, no API, nothing paid."""

import contextlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspy

from crossover.eval.experiment.method import MethodSpec
from crossover.eval.experiment.spec import Cell
from crossover.eval.run.methods import method_of
from crossover.models.errors import UserError, one_line
from crossover.models.scripted import example_value, load_tokenizer, scripted_lm
from crossover.models.source import source_fault, weights_source
from crossover.models.spec import ModelSpec
from crossover.programs.fields import right_answers
from crossover.programs.judge import Judge
from crossover.programs.records import Problem
from crossover.programs.score import score_examples
from crossover.programs.task import Budget, Metric, Task

ROWS = 2
"""Rows of train and of val that a dry fit sees."""
SEARCHED_ROWS = 40
"""Rows for methods that search, some of which draw batches."""
METRIC_CALLS = 100
"""Budget of a dry search."""


@dataclass(frozen=True)
class _Rows:
    """The rows of a task that a dry fit sees, with passages in place of those that a run would retrieve."""

    task: Task
    train: Sequence[dspy.Example]
    val: Sequence[dspy.Example]
    metric: Metric

    @classmethod
    def of(cls, task: Task) -> "_Rows":
        """Take the shortest rows of train; a judge, which would call a model, finds every answer right."""
        metric = _always_right if isinstance(task.metric, Judge) else task.metric
        train = sorted(task.train, key=lambda e: len(str(e.toDict())))[:SEARCHED_ROWS]
        shown = [_with_passages(task, e) for e in train]
        return cls(task, shown, [_with_passages(task, e) for e in task.val[:SEARCHED_ROWS]] or shown, metric)

    def program(self, lm: dspy.LM) -> dspy.Module:
        """Return the unadapted program, with any model of its own replaced by the scripted one."""
        program = self.task.program()
        for predictor in program.predictors():
            predictor.lm = predictor.lm and lm
        return program

    def answers(self) -> dict[str, Any]:
        """Return a value for every output field of the program: the first row's own, or one of the field's type."""
        fields = {
            name: example_value(field)
            for predictor in self.task.program().predictors()
            for name, field in predictor.signature.output_fields.items()
        }
        first, lists = self.train[0], self.task.lists
        own = {name: first[name] for name in self.task.outputs if name in first}
        return fields | {name: right_answers(value, is_list=name in lists)[0] for name, value in own.items()}


def check_fits(cells: Sequence[Cell], tasks: Mapping[str, Task]) -> list[Problem]:
    """Return what keeps the methods of these cells from being fitted to their tasks and models."""
    tokenizers, problems = _tokenizers({c.model for c in cells})
    for name, task in tasks.items():
        own = [c for c in cells if c.task == name]
        if not own or not task.train:
            continue
        rows = _Rows.of(task)
        if (fault := _fault(_answer, rows)) is not None:
            problems.append(_program_problem(rows, fault))
            continue
        arms = {(c.method.label, c.model if c.method.trains else None): c for c in own}
        for cell in arms.values():
            tokenizer = tokenizers.get(cell.model, (None, 0))
            problems += _check_fit(cell, rows, tokenizer)
    return problems


def _program_problem(rows: _Rows, fault: str) -> Problem:
    """Return the problem of a program that failed on a row; made-up values of steps in between may be to blame."""
    made_up = sorted(set(rows.answers()) - set(rows.task.outputs))
    if made_up:
        what = f"the program failed on a row with made-up values of {', '.join(made_up)}: {fault}"
        return Problem("warning", rows.task.name, what, "the run may do without; check the program")
    return Problem("error", rows.task.name, f"the program fails on a row: {fault}", "correct program or metric")


def _tokenizers(models: set[ModelSpec]) -> tuple[dict[ModelSpec, tuple[Any, int]], list[Problem]]:
    """Return tokenizer and context of the models that run here, and the problems of those that have none."""
    found, problems = {}, []
    for model in sorted((m for m in models if m.runs_here), key=str):
        if source_fault(model.name) is not None:
            continue  # reported already, or still to be fetched
        try:
            found[model] = load_tokenizer(weights_source(model.name), trust_remote_code=model.trust_remote_code)
        except UserError as e:
            what, _, remedy = str(e).rpartition("; ")
            problems.append(Problem("error", model.name, what, remedy))
    return found, problems


def _check_fit(cell: Cell, rows: _Rows, tokenizer: tuple[Any, int]) -> list[Problem]:
    """Return the problem of one method, if it has one; a search that a script misleads is only doubted."""
    method, where = cell.method, f"{cell.task}, {cell.method.label}"
    steps = [s for s in method.steps if s.trains] or [method]
    for step in steps:
        fit = _render if step.trains else _fit
        fault = _fault(fit, step, rows, tokenizer)
        if fault is None:
            continue
        if step.searches:
            remedy = "the run may fit it all the same"
            return [Problem("warning", where, f"a search with a scripted model failed: {fault}", remedy)]
        what, _, remedy = fault.rpartition("; ")
        return [Problem("error", where, what or fault, remedy if what else "leave the method out")]
    return []


def _fault(act: Callable[..., None], *arguments: object) -> str | None:
    """Return why an action failed, or None."""
    try:
        with contextlib.redirect_stdout(None):
            act(*arguments)
    except UserError as e:
        return str(e)
    # Programs and metrics are the user's own, and can raise anything.
    except Exception as e:
        return f"{type(e).__name__}: {one_line(e, 160)}"
    return None


def _answer(rows: _Rows) -> None:
    """Run the program on one row, so that a fault of its own is not taken for one of every method."""
    lm = scripted_lm(rows.answers())
    with _scripted(rows, lm):
        (row,) = score_examples(rows.program(lm), rows.val[:1], rows.metric, threads=1)
    if row.failure:
        raise UserError(row.failure)


def _fit(spec: MethodSpec, rows: _Rows, tokenizer: tuple[Any, int]) -> None:
    """Fit a method that adapts prompts."""
    lm, n = scripted_lm(rows.answers()), SEARCHED_ROWS if spec.searches else ROWS
    # An index of vectors would load a model.
    options = {k: v for k, v in spec.options.items() if k not in ("index", "index_options")}
    with _scripted(rows, lm), tempfile.TemporaryDirectory() as folder:
        fitted = method_of(spec.name, options).fit(
            rows.program(lm),
            train=rows.train[:n],
            val=rows.val[:n],
            metric=rows.metric,
            lm=lm,
            seed=0,
            budget=Budget(metric_calls=METRIC_CALLS, workdir=Path(folder), threads=1),
        )
        (row,) = score_examples(fitted.program, rows.val[:1], rows.metric, threads=1)
    if row.failure:
        raise UserError(row.failure)


def _render(spec: MethodSpec, rows: _Rows, tokenizer: tuple[Any, int]) -> None:
    """Render the rows that a method would train on."""
    from crossover.finetune.training.regression import labelled
    from crossover.finetune.training.render import render_training_text
    from crossover.finetune.training.targets import gold_calls

    lm, train = scripted_lm(rows.answers(), *tokenizer), rows.train[:ROWS]
    program = rows.program(lm)
    if tokenizer[0] is None or spec.options.get("targets", "gold") != "gold":
        return
    with _scripted(rows, lm):
        if spec.name == "head":
            labelled(program, train, lm)
        elif len(program.named_predictors()) == 1:
            render_training_text(program, gold_calls(program, train), lm)


@contextlib.contextmanager
def _scripted(rows: _Rows, lm: dspy.LM) -> Any:
    """Make a scripted model the one of DSPy's programs, and the corpus's first passages those that are retrieved."""
    texts = [p.render() for p in rows.task.corpus]

    def search(query: str, k: int | None = None, **ignored: Any) -> list[Any]:
        return [dspy.Prediction(long_text=t) for t in texts[: k or 1]]

    with dspy.context(lm=lm, adapter=dspy.ChatAdapter(), rm=search if texts else None):
        yield


def _with_passages(task: Task, example: dspy.Example) -> dspy.Example:
    """Return the example with the corpus's first passage as the one that was retrieved."""
    if not task.corpus:
        return example
    inputs = dict.fromkeys([*task.inputs, "passages"])
    return example.copy(passages=[task.corpus[0].render()]).with_inputs(*inputs)


def _always_right(
    gold: dspy.Example, pred: dspy.Prediction, trace: Any = None, pred_name: Any = None, pred_trace: Any = None
) -> float:
    return 1.0
