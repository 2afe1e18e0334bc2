"""What a run would take, told before it starts: calls, tokens, seconds and dollars of every cell that is missing.

Prompts are rendered as the run renders them, for a few test questions and with as many train examples as the method
shows. A search is taken at the whole of its budget, a training at all of its epochs, an answer at `max_tokens`: the
figures are what it can take at most, but for a teacher's own calls. A model that runs here answers one prompt, to tell
how fast this machine is; an API is asked nothing, and how long it takes is not foretold.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import dspy

from crossover.eval.analysis.ledger import machine_usd
from crossover.eval.experiment.catalog import searches
from crossover.eval.experiment.spec import Cell, Experiment, adapts_weights, plan
from crossover.eval.experiment.splits import sample, sample_val, train_pool
from crossover.eval.report.table import columns, money
from crossover.eval.run.cell import COLD_REQUESTS, LATENCY_REQUESTS
from crossover.eval.run.methods import method_of
from crossover.eval.run.prepare import prepare
from crossover.eval.run.progress import duration
from crossover.eval.run.work import READINGS_OF_VAL, Models
from crossover.eval.store.cells import is_finished
from crossover.models.limits import UsageLimits
from crossover.models.load import LoadedModel
from crossover.models.price import api_price
from crossover.models.prompt import prompt_tokens, room
from crossover.programs.demos import with_demos
from crossover.programs.task import Task

QUESTIONS = 5
"""Test questions that are rendered for each cell."""
TRAINING_STEP = 3.0
"""A token trained costs as much as this many read: a forward and a backward pass of twice its work."""


@dataclass(frozen=True)
class Forecast:
    """What one cell takes at most."""

    cell: Cell
    calls: int
    prompt_tokens: int
    answer_tokens: int
    train_tokens: int
    seconds: float | None
    """None for a model behind an API."""
    usd: float | None
    """None for an unknown price."""


@dataclass(frozen=True)
class Pace:
    """How fast a model that runs here is, one request at a time."""

    read: float
    """Seconds for a token of a prompt."""
    written: float
    """Seconds for a token of an answer."""


def forecast(experiment: Experiment, *, store: Path) -> tuple[list[Forecast], int]:
    """Return what the missing cells take, and how many cells are finished; writes nothing.

    Raises:
        UserError: the tasks have errors.
    """
    # DSPy logs a warning for every answer cut at max_tokens.
    logging.getLogger("dspy").setLevel(logging.ERROR)
    models = Models(UsageLimits(), lambda line: None)
    keyed = prepare(experiment, store=store, load=models)
    cells = plan(experiment)
    missing = [c for c in cells if not is_finished(store, keyed.of(c))]
    paces = {m: _pace(models(m)) for m in experiment.models if m.runs_here}
    found = []
    for cell in missing:
        task, model = keyed.tasks[cell.task], models(cell.model)
        with dspy.context(lm=model.lm, adapter=model.prompt_format):
            found.append(_of(cell, experiment, task, model, paces.get(cell.model)))
    return found, len(cells) - len(missing)


def forecast_table(cells: Sequence[Forecast]) -> list[str]:
    """Return the lines of a table, a sum in the last; nothing for no cell."""
    if not cells:
        return []
    lines: list[tuple[str, ...]] = [("cell", "calls", "prompt tokens", "answer tokens", "trained tokens", "time", "$")]
    for f in cells:
        name = f"{f.cell.task}  {f.cell.model.name}  {f.cell.title}"
        time_taken = "-" if f.seconds is None else duration(f.seconds)
        lines.append((name, *_counts([f]), time_taken, money(f.usd)))
    seconds = sum(f.seconds or 0.0 for f in cells)
    usd = [f.usd for f in cells if f.usd is not None]
    together = money(sum(usd)) if len(usd) == len(cells) else money(None)
    return columns([*lines, ("together, at most", *_counts(cells), duration(seconds) if seconds else "-", together)])


def _counts(cells: Sequence[Forecast]) -> list[str]:
    """Return calls and tokens of the cells together."""
    return [
        f"{sum(getattr(f, kind) for f in cells):,}"
        for kind in ("calls", "prompt_tokens", "answer_tokens", "train_tokens")
    ]


def _of(cell: Cell, experiment: Experiment, task: Task, model: LoadedModel, pace: Pace | None) -> Forecast:
    """Return what one cell takes."""
    test, train = sample(task.test, experiment.limit), train_pool(task, cell.train_size, cell.seed)
    val = len(sample_val(task.val, experiment.limit))
    questions = [_with_passages(e, task, cell) for e in test[:QUESTIONS]]
    predictors = len(task.program().predictors())
    requests = LATENCY_REQUESTS + (COLD_REQUESTS if model.local else 0)
    calls, extra, shown, trained = len(test) + requests, 0, 0, 0.0
    bare = mean(prompt_tokens(task.program(), e, model.lm) for e in questions)
    for step in cell.method.steps:
        has = vars(method_of(step.name, step.options))
        if searches(step.name):
            extra += step.options.get("metric_calls") or experiment.budget.metric_calls or READINGS_OF_VAL * val
        if adapts_weights(step.name):
            trained += _epochs(has) * len(train) * predictors * (bare + cell.model.max_tokens)
            extra += round(val * _epochs(has)) + len(train) * _attempts(step.name, has)
        else:
            shown = _shown(step.name, has, len(train))
            calls *= has.get("members", 1)
    calls += extra
    program = with_demos(task.program(), [_with_passages(e, task, cell) for e in train[:shown]])
    longest = room(model.lm) or float("inf")
    length = mean(min(prompt_tokens(program, e, model.lm), longest) for e in questions)
    calls *= predictors
    read, written = round(calls * length), calls * cell.model.max_tokens
    if pace is None:
        usd = api_price({cell.model.name: {"prompt_tokens": read, "completion_tokens": written}})
        return Forecast(cell, calls, read, written, round(trained), None, usd)
    seconds = (read + TRAINING_STEP * trained) * pace.read + written * pace.written
    usd = machine_usd(seconds, experiment.prices.machine_hour_usd)
    return Forecast(cell, calls, read, written, round(trained), seconds, usd)


def _shown(name: str, has: Mapping[str, Any], train: int) -> int:
    """Return how many demonstrations a method of these options shows at most."""
    if name == "many_shot" and not has["demos"]:
        return train  # it fills the context
    kinds = ("demos", "fixed", "labelled", "bootstrapped")
    demos, fixed, labelled, bootstrapped = (int(has.get(kind, 0)) for kind in kinds)
    return max(demos + fixed, labelled, bootstrapped)


def _epochs(has: Mapping[str, Any]) -> float:
    """Return how often a training reads its rows; a search reads them with every trial."""
    epochs = float(has.get("epochs", 1))
    if has.get("search") is None:
        return epochs
    from crossover.finetune.training.hyperparameters import plan_of

    plan = plan_of(has["search"])
    return epochs * (plan.trials * plan.early + plan.finish * (1 - plan.early))


def _attempts(name: str, has: Mapping[str, Any]) -> int:
    """Return how often each train example is answered before a training, for pairs or for targets."""
    return int(has["attempts"]) if name == "dpo" or has.get("targets", "gold") != "gold" else 0


def _with_passages(example: dspy.Example, task: Task, cell: Cell) -> dspy.Example:
    """Return the example with as many passages as it will be shown, though not those: nothing is searched for."""
    if not task.corpus:
        return example
    k = cell.retrieval.k if cell.retrieval else 0
    gold = len(example.get("gold", []))
    count = {"none": 0, "retrieved": k, "gold": gold, "noisy": k + gold}[cell.knowledge.test]
    shown: Sequence[str] = [p.render() for p in task.corpus[:count]]
    return example.copy(passages=list(shown)).with_inputs(*dict.fromkeys([*task.inputs, "passages"]))


def _pace(model: LoadedModel) -> Pace:
    """Time two prompts that share no beginning, one answered with a single token, one with as many as it takes."""
    text = " crossover" * 64
    timed = []
    for start, answer in (("warm", 1), ("read", 1), ("write", 24)):
        messages = [{"role": "user", "content": start + text}]
        began = time.perf_counter()
        with dspy.track_usage() as tracker:
            model.lm.copy(max_tokens=answer)(messages=messages)
        usage = next(iter(tracker.get_total_tokens().values()))
        timed.append((time.perf_counter() - began, int(usage["prompt_tokens"]), int(usage["completion_tokens"])))
    (_, (reading, tokens, _), (whole, _, written)) = timed
    return Pace(reading / tokens, max(0.0, whole - reading) / max(1, written - 1))
