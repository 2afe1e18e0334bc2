"""Count the work of a cell before it runs: its requests, their tokens, and what its trainings read."""

import math
from collections.abc import Callable, Sequence
from statistics import mean
from typing import NamedTuple

import dspy

from crossover.eval.experiment.spec import Cell, Experiment, Family
from crossover.eval.experiment.splits import sample, sample_val, train_pool
from crossover.eval.run.context import READINGS_OF_VAL
from crossover.eval.run.latency import WARM_UP, batches_of, latency_requests, requests_for
from crossover.eval.run.methods import method_of
from crossover.models.prompt import first_messages, prompt_tokens, room
from crossover.programs.demos import with_demos
from crossover.programs.task import Task

QUESTIONS = 5
"""Test questions whose prompts are counted for each cell."""


class CellWork(NamedTuple):
    """What the requests and the trainings of one cell come to."""

    calls: int
    tests: int
    """Calls that answer test questions, and so come after the fit."""
    prompt: float
    """Mean tokens of a prompt."""
    shared: float = 0.0
    """Tokens that all prompts begin with, which a model that runs here reads once."""
    trained: int = 0
    """Tokens of all epochs."""
    computed: float = 0.0
    """Tokens that the trainings compute: rows of a batch share what they begin with."""
    graded: int = 0
    """Answers that are scored, those of the fit and of the test; requests that are only timed are not."""


Count = Callable[[dspy.Module, dspy.Example], float]
"""The tokens of a program's first prompt for an example, in the calling context's format."""


def work_of(
    cell: Cell, experiment: Experiment, task: Task, count: Count, *, families: set[Family], most: int | None = None
) -> CellWork:
    """Count the work of one cell, whose variants are chosen on val if its family is one of `families`.

    Of the demonstrations that all prompts show, at most `most` are rendered.
    """
    test, train = sample(task.test, experiment.limit), train_pool(task, cell.train_size, cell.seed)
    val = len(sample_val(task.val, experiment.limit))
    last = cell.method.steps[-1]
    chosen_on_val = cell.family in families and not (last.searches or last.trains)
    predictors = len(task.program().predictors())
    warm, cold = latency_requests()
    requests = WARM_UP + requests_for(len(test), warm, bounded=experiment.needs.max_p95_ms is not None)
    if cell.model.runs_here:
        requests += cold + sum(map(len, batches_of(test, requests, threads=requests)))
    work = method_of(cell.method.name, cell.method.options).workload(len(train))
    tests = (len(test) + requests) * work.calls
    answers = work.attempts + work.traced * (predictors > 1)
    calls = tests + len(train) * answers + val * (work.readings + chosen_on_val * work.calls)
    for step in cell.method.steps:
        if step.searches:
            calls += step.options.get("metric_calls") or experiment.budget.metric_calls or READINGS_OF_VAL * val
    questions, reads, k = test[:QUESTIONS], cell.knowledge, passages_of(cell)
    bare, alike = _prompts(with_passages(questions, task, k, reads.train), [task.program()], count)
    rows, row = work.epochs * len(train) * predictors, bare + cell.model.max_tokens
    fixed, others = train[: work.demos], train[work.demos :]
    shown = [[*fixed[:most], *others[n * work.retrieved : (n + 1) * work.retrieved]] for n in (0, 1)]
    programs = [with_demos(task.program(), with_passages(demos, task, k, reads.train)) for demos in shown]
    prompt, shared = _prompts(with_passages(questions, task, k, reads.test), programs, count)
    computed = rows * (row - alike + alike / work.batch)
    graded = calls - requests * work.calls
    return CellWork(calls * predictors, tests * predictors, prompt, shared, round(rows * row), computed, graded)


def _prompts(questions: Sequence[dspy.Example], programs: Sequence[dspy.Module], count: Count) -> tuple[float, float]:
    """Return the mean tokens of a prompt, and how many of them the prompts of two questions begin with.

    The second question is asked by the last program, whose demonstrations may be others than the first one's.
    """
    length = mean(count(programs[0], e) for e in questions)
    one, other = (prompt_text(p, e) for p, e in ((programs[0], questions[0]), (programs[-1], questions[-1])))
    alike = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))
    return length, length * alike / max(1, len(one))


def prompt_text(program: dspy.Module, example: dspy.Example) -> str:
    """Return the text of a program's first prompt for an example."""
    return "\n".join(m["content"] for m in first_messages(program, example))


def tokens_of(lm: dspy.LM) -> Count:
    """Return what counts the tokens of prompts for a model, at most as many as its context holds."""
    longest = room(lm) or math.inf
    return lambda program, example: min(prompt_tokens(program, example, lm), longest)


def passages_of(cell: Cell) -> int:
    """Return how many passages a search of the cell finds."""
    return cell.retrieval.k if cell.retrieval else 0


def with_passages(examples: Sequence[dspy.Example], task: Task, k: int, knowledge: str) -> list[dspy.Example]:
    """Return examples with as many passages as `knowledge` gives each, taken from the corpus without a search.

    A search finds `k` of them.
    """
    if not task.corpus:
        return list(examples)
    inputs = dict.fromkeys([*task.inputs, "passages"])
    gold = [len(e.get("gold", [])) for e in examples]
    counts = [{"none": 0, "retrieved": k, "gold": n, "noisy": k + n}[knowledge] for n in gold]
    shown = [[p.render() for p in task.corpus[:n]] for n in counts]
    return [e.copy(passages=texts).with_inputs(*inputs) for e, texts in zip(examples, shown, strict=True)]
