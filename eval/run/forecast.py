"""Forecast a run before it starts: calls, tokens, seconds and dollars of every missing cell.

Prompts are rendered as the run renders them, for a few test questions and with as many train examples as the method
shows. A search is counted with its whole budget, a training with all of its epochs, an answer with `max_tokens`: the
figures are upper bounds, except that a teacher's own calls are left out. Choosing a prompt format has a line of its
own. A local model is timed on one prompt; an API is not called, and its seconds are not forecast.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import dspy

from crossover.eval.analysis.ledger import machine_usd
from crossover.eval.experiment.spec import Cell, Experiment, Family, families_with_variants, plan
from crossover.eval.experiment.splits import sample, sample_val, train_pool
from crossover.eval.report.text import columns, dollars, money
from crossover.eval.run.context import READINGS_OF_VAL, Models
from crossover.eval.run.formats import DEMOS, only_format
from crossover.eval.run.formats import QUESTIONS as QUESTIONS_OF_FORMAT
from crossover.eval.run.latency import batches_of, latency_requests, requests_for
from crossover.eval.run.loading import prepare
from crossover.eval.run.methods import method_of
from crossover.eval.run.progress import Share, duration
from crossover.eval.store.cells import is_finished
from crossover.models.limits import UsageLimits
from crossover.models.load import LoadedModel
from crossover.models.price import api_price
from crossover.models.prompt import first_messages, prompt_tokens, room
from crossover.models.prompt_formats import prompt_format
from crossover.models.spec import FORMATS, ModelSpec
from crossover.models.usage import add_usd
from crossover.programs.demos import with_demos
from crossover.programs.fields import text_of, unlabelled_fields
from crossover.programs.task import Task

QUESTIONS = 5
"""Test questions whose prompts are counted for each cell."""
TRAINING_STEP = 3.0
"""Seconds of a trained token over those of a read one: a forward pass, and a backward pass of twice its work."""


@dataclass(frozen=True)
class Forecast:
    """Upper bounds of what one cell, or the choice of a prompt format, takes."""

    name: str
    calls: int
    prompt_tokens: int
    answer_tokens: int
    train_tokens: int
    seconds: float | None
    """None for a model behind an API."""
    usd: float | None
    """None for an unknown price."""
    model: str
    work: float = 0.0
    """Part of the run's time that it is expected to take, in any unit; see `expected_shares`."""


@dataclass(frozen=True)
class Pace:
    """Speed of a local model, one request at a time."""

    read: float
    """Seconds for a prompt token."""
    written: float
    """Seconds for an answer token."""


USUAL_PACE = Pace(1.0, 2.5)
"""A token that is written takes longer than one that is read, even among others of a batch (measured on two cores)."""
CHARACTERS, USUAL_CONTEXT, USUAL_REASONING = 4, 8000, 100
"""Characters of a token, tokens of the longest prompt and of a reasoning, of a model that is not loaded yet."""
MOST_DEMOS = 200
"""Demonstrations that expected shares render: a longer block fills most contexts, and is read once for all prompts."""


def forecast(experiment: Experiment, *, store: Path) -> tuple[list[Forecast], int]:
    """Return the forecasts of the prompt formats to choose and of the missing cells, and the number of finished cells.

    A cell with failed rows counts as finished; they are asked again. Nothing is written.

    Raises:
        UserError: the tasks have errors.
    """
    # DSPy logs a warning for every answer cut at max_tokens.
    logging.getLogger("dspy").setLevel(logging.ERROR)
    models = Models(UsageLimits(), lambda line: None)
    keys = prepare(experiment, store=store, load=models)
    cells = plan(experiment)
    missing = [c for c in cells if not is_finished(store, keys.of(c))]
    paces = {m: _pace(models(m)) for m in experiment.models if m.runs_here}
    choices, forecasts, families = dict[str, Forecast](), list[Forecast](), families_with_variants(experiment)
    shares = expected_shares(experiment, missing, keys.tasks)
    for cell, share in zip(missing, shares, strict=True):
        task, model = keys.tasks[cell.task], models(cell.model)
        with dspy.context(lm=model.lm, adapter=model.prompt_format):
            work = _work(cell, experiment, task, _tokens_of(model.lm), families=families)
            priced = _priced(cell, cell.title, work, experiment, paces.get(cell.model))
            forecasts.append(replace(priced, work=sum(share)))
            key = keys.of_format(cell)
            if only_format(model) is None and key not in choices and not (store / "formats" / f"{key}.json").exists():
                choices[key] = _of_choice(cell, experiment, task, model, paces.get(cell.model))
    return [*choices.values(), *forecasts], len(cells) - len(missing)


def forecast_table(cells: Sequence[Forecast]) -> list[str]:
    """Return the lines of a table with the total in the last; no line for no cell."""
    if not cells:
        return []
    lines: list[tuple[str, ...]] = [("cell", "calls", "prompt tokens", "answer tokens", "trained tokens", "time", "$")]
    for f in cells:
        time_taken = "-" if f.seconds is None else duration(f.seconds)
        lines.append((f.name, *_counts([f]), time_taken, money(f.usd)))
    seconds = sum(f.seconds or 0.0 for f in cells)
    total = add_usd(*(f.usd for f in cells))
    return columns([*lines, ("total, at most", *_counts(cells), duration(seconds) if seconds else "-", money(total))])


def total_words(cells: Sequence[Forecast]) -> str:
    """Return what all cells take at most, in words: calls, time where a model runs here, dollars where one is paid."""
    seconds = sum(f.seconds or 0.0 for f in cells)
    parts = [f"{sum(f.calls for f in cells):,} calls"]
    parts += [duration(seconds)] if seconds else []
    if any(f.seconds is None for f in cells):
        parts.append(dollars(add_usd(*(f.usd for f in cells if f.seconds is None))))
    return f"at most {', '.join(parts)}"


def _counts(cells: Sequence[Forecast]) -> list[str]:
    """Return the calls and tokens of the cells, summed."""
    return [
        f"{sum(getattr(f, kind) for f in cells):,}"
        for kind in ("calls", "prompt_tokens", "answer_tokens", "train_tokens")
    ]


class CellWork(NamedTuple):
    """What the requests and the trainings of one cell come to."""

    calls: int
    tests: int
    """Calls that answer test questions, and so come after the fit."""
    prompt: float
    """Mean tokens of a prompt."""
    shared: float
    """Tokens that all prompts begin with, which a model that runs here reads once."""
    trained: int
    """Tokens of all epochs."""
    computed: float
    """Tokens that the trainings compute: rows of a batch share what they begin with."""


Count = Callable[[dspy.Module, dspy.Example], float]
"""The tokens of a program's first prompt for an example, in the calling context's format."""


def _work(
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
    requests = requests_for(len(test), warm, bounded=experiment.needs.max_p95_ms is not None)
    if cell.model.runs_here:
        requests += cold + sum(map(len, batches_of(test, requests, threads=requests)))
    work = method_of(cell.method.name, cell.method.options).workload(len(train))
    tests = (len(test) + requests) * work.calls
    answers = work.attempts + work.traced * (predictors > 1)
    calls = tests + len(train) * answers + val * (work.readings + chosen_on_val * work.calls)
    for step in cell.method.steps:
        if step.searches:
            calls += step.options.get("metric_calls") or experiment.budget.metric_calls or READINGS_OF_VAL * val
    questions, reads = test[:QUESTIONS], cell.knowledge
    bare, alike = _prompts(_with_passages(questions, task, cell, reads.train), [task.program()], count)
    rows, row = work.epochs * len(train) * predictors, bare + cell.model.max_tokens
    fixed, others = train[: work.demos], train[work.demos :]
    shown = [[*fixed[:most], *others[n * work.retrieved : (n + 1) * work.retrieved]] for n in (0, 1)]
    programs = [with_demos(task.program(), _with_passages(demos, task, cell, reads.train)) for demos in shown]
    prompt, shared = _prompts(_with_passages(questions, task, cell, reads.test), programs, count)
    computed = rows * (row - alike + alike / work.batch)
    return CellWork(calls * predictors, tests * predictors, prompt, shared, round(rows * row), computed)


def _prompts(questions: Sequence[dspy.Example], programs: Sequence[dspy.Module], count: Count) -> tuple[float, float]:
    """Return the mean tokens of a prompt, and how many of them the prompts of two questions begin with.

    The second question is asked by the last program, whose demonstrations may be others than the first one's.
    """
    length = mean(count(programs[0], e) for e in questions)
    one, other = (_text(p, e) for p, e in ((programs[0], questions[0]), (programs[-1], questions[-1])))
    alike = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))
    return length, length * alike / max(1, len(one))


def _text(program: dspy.Module, example: dspy.Example) -> str:
    """Return the text of a program's first prompt for an example."""
    return "\n".join(m["content"] for m in first_messages(program, example))


def _tokens_of(lm: dspy.LM) -> Count:
    """Return what counts the tokens of prompts for a model, at most as many as its context holds."""
    longest = room(lm) or math.inf
    return lambda program, example: min(prompt_tokens(program, example, lm), longest)


def _of_choice(cell: Cell, experiment: Experiment, task: Task, model: LoadedModel, pace: Pace | None) -> Forecast:
    """Return the forecast of choosing the prompt format of the cell's task and model."""
    val = sample_val(task.val, experiment.limit)[:QUESTIONS_OF_FORMAT]
    reads, program = cell.knowledge, task.program()
    shown = _with_passages(val[:QUESTIONS], task, cell, reads.test)
    programs = (program, with_demos(program, _with_passages(task.train[:DEMOS], task, cell, reads.train)))
    length = mean(prompt_tokens(p, e, model.lm) for p in programs for e in shown)
    calls = len(FORMATS) * len(programs) * len(val) * len(program.predictors())
    work = CellWork(calls, 0, length, 0.0, 0, 0.0)
    return _priced(cell, f"choosing among {', '.join(FORMATS)}", work, experiment, pace)


def _priced(cell: Cell, title: str, work: CellWork, experiment: Experiment, pace: Pace | None) -> Forecast:
    """Return the work with its tokens, and what they take."""
    name = f"{cell.task}  {cell.model.name}  {title}"
    read, written = round(work.calls * work.prompt), work.calls * cell.model.max_tokens
    if pace is None:
        usd = api_price({cell.model.name: {"prompt_tokens": read, "completion_tokens": written}})
        return Forecast(name, work.calls, read, written, work.trained, None, usd, cell.model.name)
    seconds = sum(_seconds(work, pace, cell.model.max_tokens))
    usd = machine_usd(seconds, experiment.prices.machine_hour_usd)
    return Forecast(name, work.calls, read, written, work.trained, seconds, usd, cell.model.name)


def _seconds(work: CellWork, pace: Pace, answer: float) -> tuple[float, float]:
    """Return the seconds until the program is fitted, and those of its test, with answers of so many tokens."""
    call = (work.prompt - work.shared) * pace.read + answer * pace.written
    fit = (work.calls - work.tests) * call + work.shared * pace.read + TRAINING_STEP * work.computed * pace.read
    return fit, work.tests * call


def expected_shares(experiment: Experiment, cells: Sequence[Cell], tasks: Mapping[str, Task]) -> list[Share]:
    """Return which part of a run's time each cell is likely to take; no model is loaded and none is asked.

    Prompts are plain and counted by their characters; answers are taken to be as long as the right ones, and a field
    that the data lacks, such as a reasoning, to be some sentences.
    """

    def count(program: dspy.Module, example: dspy.Example) -> float:
        return min(len(_text(program, example)) / CHARACTERS, USUAL_CONTEXT)

    families, found = families_with_variants(experiment), dict[tuple[str, ModelSpec, str], Share]()
    # Other seeds draw other examples, of about the same length.
    variants = [(c.task, c.model, replace(c, seed=0).title) for c in cells]
    with dspy.context(adapter=prompt_format("plain", decode="auto", instruct=True)):
        for cell, variant in zip(cells, variants, strict=True):
            if variant not in found:
                task = tasks[cell.task]
                answers = ["\n".join(text_of(e[name]) for name in task.outputs) for e in task.test[:QUESTIONS]]
                unlabelled = unlabelled_fields(task.program(), task.outputs)
                written = mean(map(len, answers)) / CHARACTERS + USUAL_REASONING * len(unlabelled)
                answer = min(written, cell.model.max_tokens)
                work = _work(cell, experiment, task, count, families=families, most=MOST_DEMOS)
                found[variant] = Share(*_seconds(work, USUAL_PACE, answer))
    return [found[variant] for variant in variants]


def _with_passages(examples: Sequence[dspy.Example], task: Task, cell: Cell, knowledge: str) -> list[dspy.Example]:
    """Return examples with as many passages as `knowledge` gives each, taken from the corpus without a search."""
    if not task.corpus:
        return list(examples)
    k, inputs = cell.retrieval.k if cell.retrieval else 0, dict.fromkeys([*task.inputs, "passages"])
    gold = [len(e.get("gold", [])) for e in examples]
    counts = [{"none": 0, "retrieved": k, "gold": n, "noisy": k + n}[knowledge] for n in gold]
    shown = [[p.render() for p in task.corpus[:n]] for n in counts]
    return [e.copy(passages=texts).with_inputs(*inputs) for e, texts in zip(examples, shown, strict=True)]


def _pace(model: LoadedModel) -> Pace:
    """Time two prompts that share no prefix, one answered with a single token and one with up to 24."""
    text, timed = " crossover" * 64, list[tuple[float, int, int]]()
    for start, answer in (("warm", 1), ("read", 1), ("write", 24)):
        messages = [{"role": "user", "content": start + text}]
        began = time.perf_counter()
        with dspy.track_usage() as tracker:
            model.lm.copy(max_tokens=answer)(messages=messages)
        usage = next(iter(tracker.get_total_tokens().values()))
        timed.append((time.perf_counter() - began, int(usage["prompt_tokens"]), int(usage["completion_tokens"])))
    (_, (reading, tokens, _), (whole, _, written)) = timed
    return Pace(reading / tokens, max(0.0, whole - reading) / max(1, written - 1))
