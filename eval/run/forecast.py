"""Forecast a run before it starts: calls, tokens, seconds and dollars of every missing cell.

Prompts are rendered as the run renders them, for a few test questions and with as many train examples as the method
shows. A search is counted with its whole budget, a training with all of its epochs, an answer with `max_tokens`: the
figures are upper bounds, except that a teacher's own calls are left out, and that a judge is taken to read answers as
long as the right ones. Choosing a prompt format, `retention` and a judge have lines of their own. A local model is
timed on one prompt; an API is not called, and its seconds are not forecast.
"""

import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import dspy

from crossover.eval.analysis.ledger import machine_usd
from crossover.eval.experiment.spec import (
    Cell,
    Experiment,
    Retrieval,
    default_knowledge,
    families_with_variants,
    plan,
)
from crossover.eval.experiment.splits import sample, sample_val, train_pool
from crossover.eval.report.text import columns, dollars, money
from crossover.eval.run import retention
from crossover.eval.run.context import Models
from crossover.eval.run.formats import DEMOS, only_format
from crossover.eval.run.formats import QUESTIONS as QUESTIONS_OF_FORMAT
from crossover.eval.run.loading import prepare
from crossover.eval.run.progress import Share, duration
from crossover.eval.run.workload import (
    QUESTIONS,
    CellWork,
    passages_of,
    prompt_text,
    tokens_of,
    with_passages,
    work_of,
)
from crossover.eval.store.cells import is_finished
from crossover.models.limits import UsageLimits
from crossover.models.load import LoadedModel
from crossover.models.price import api_price
from crossover.models.prompt import prompt_tokens
from crossover.models.prompt_formats import prompt_format
from crossover.models.spec import FORMATS, ModelSpec
from crossover.models.usage import add_usd
from crossover.programs.demos import with_demos
from crossover.programs.fields import text_of, unlabelled_fields
from crossover.programs.judge import Judge
from crossover.programs.spec import TaskSpec
from crossover.programs.task import Task

TRAINING_STEP = 3.0
"""Seconds of a trained token over those of a read one: a forward pass, and a backward pass of twice its work."""


@dataclass(frozen=True)
class Forecast:
    """Upper bounds of what one cell takes, or the choice of a prompt format, `retention` or the judge of all cells."""

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
    """Return the forecasts of the missing cells and of what they share, and the number of finished cells.

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
    pricing = _Pricing(experiment, models)
    choices, forecasts, families = dict[str, Forecast](), list[Forecast](), families_with_variants(experiment)
    graded: Counter[str] = Counter()
    shares = expected_shares(experiment, missing, keys.tasks)
    for cell, share in zip(missing, shares, strict=True):
        task, model = keys.tasks[cell.task], models(cell.model)
        with dspy.context(lm=model.lm, adapter=model.prompt_format):
            work = work_of(cell, experiment, task, tokens_of(model.lm), families=families)
            forecasts.append(replace(pricing.of(cell.model, cell.task, cell.title, work), work=sum(share)))
            graded[cell.task] += work.graded
            key = keys.of_format(cell)
            if only_format(model) is None and key not in choices and not (store / "formats" / f"{key}.json").exists():
                title = f"choosing among {', '.join(FORMATS)}"
                choices[key] = pricing.of(cell.model, cell.task, title, _work_of_choice(cell, experiment, task, model))
    retained: Counter[str] = Counter()
    shared = [
        *_retained(experiment, missing, keys.others, pricing, retained),
        *_judged(experiment.tasks, keys.tasks, pricing, graded),
        *_judged(experiment.retention, keys.others, pricing, retained),
    ]
    return [*choices.values(), *forecasts, *shared], len(cells) - len(missing)


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


class _Pricing:
    """Add to work what it costs, by the pace of a model that runs here or by the prices of an API."""

    def __init__(self, experiment: Experiment, models: Models) -> None:
        """Time no model yet."""
        self.machine_hour_usd, self.models = experiment.prices.machine_hour_usd, models
        self._paces: dict[ModelSpec, Pace] = {}

    def of(self, spec: ModelSpec, task: str, what: str, work: CellWork) -> Forecast:
        """Return the work on a task with its tokens, and what they take; `what` says which work it is."""
        name = f"{task}  {spec.name}  {what}"
        read, written = round(work.calls * work.prompt), work.calls * spec.max_tokens
        if not spec.runs_here:
            usd = api_price({spec.name: {"prompt_tokens": read, "completion_tokens": written}})
            return Forecast(name, work.calls, read, written, work.trained, None, usd, spec.name)
        if spec not in self._paces:
            self._paces[spec] = _pace(self.models(spec))
        seconds = sum(_seconds(work, self._paces[spec], spec.max_tokens))
        usd = machine_usd(seconds, self.machine_hour_usd)
        return Forecast(name, work.calls, read, written, work.trained, seconds, usd, spec.name)


def _work_of_choice(cell: Cell, experiment: Experiment, task: Task, model: LoadedModel) -> CellWork:
    """Return the work of choosing the prompt format of the cell's task and model."""
    val = sample_val(task.val, experiment.limit)[:QUESTIONS_OF_FORMAT]
    reads, k, program = cell.knowledge, passages_of(cell), task.program()
    shown = with_passages(val[:QUESTIONS], task, k, reads.test)
    programs = (program, with_demos(program, with_passages(task.train[:DEMOS], task, k, reads.train)))
    length = mean(prompt_tokens(p, e, model.lm) for p in programs for e in shown)
    calls = len(FORMATS) * len(programs) * len(val) * len(program.predictors())
    return CellWork(calls, 0, length)


def _retained(
    experiment: Experiment, missing: Sequence[Cell], others: Mapping[str, Task], pricing: _Pricing, graded: Counter[str]
) -> Iterator[Forecast]:
    """Yield what `retention` takes of each model and other task: once before, and once after each training.

    The answers of each task are added to `graded`.
    """
    trained = Counter(cell.model for cell in missing if cell.method.trains)
    for spec in experiment.retention:
        task, knows = others[spec.name], default_knowledge(spec)
        test, k = sample(task.test, retention.EXAMPLES), Retrieval().k
        demos = with_passages(train_pool(task, retention.DEMOS, 0), task, k, knows.train)
        programs = (task.program(), with_demos(task.program(), demos))
        for model, trainings in trained.items():
            loaded = pricing.models(model)
            with dspy.context(adapter=loaded.prompt_format):
                shown = with_passages(test[:QUESTIONS], task, k, knows.test)
                length = mean(prompt_tokens(p, e, loaded.lm) for p in programs for e in shown)
            answers = len(programs) * len(test) * (1 + trainings)
            graded[spec.name] += answers
            work = CellWork(answers * len(programs[0].predictors()), 0, length)
            yield pricing.of(model, spec.name, "retention", work)


def _judged(
    specs: Sequence[TaskSpec], tasks: Mapping[str, Task], pricing: _Pricing, graded: Mapping[str, int]
) -> Iterator[Forecast]:
    """Yield what the judge of each task takes, for as many answers as are graded."""
    for spec in specs:
        task, judge = tasks[spec.name], tasks[spec.name].metric
        if spec.judge is None or not isinstance(judge, Judge) or not graded[spec.name]:
            continue
        model, asked = pricing.models(spec.judge.model), [judge.question(e, e) for e in task.test[:QUESTIONS]]
        questions = [dspy.Example(**q).with_inputs(*q) for q in asked]
        with dspy.context(adapter=model.prompt_format):
            length = mean(prompt_tokens(judge.program, q, model.lm) for q in questions)
        yield pricing.of(spec.judge.model, spec.name, "judge", CellWork(graded[spec.name], 0, length))


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
        return min(len(prompt_text(program, example)) / CHARACTERS, USUAL_CONTEXT)

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
                work = work_of(cell, experiment, task, count, families=families, most=MOST_DEMOS)
                found[variant] = Share(*_seconds(work, USUAL_PACE, answer))
    return [found[variant] for variant in variants]


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
