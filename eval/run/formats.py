"""Choose a prompt format by trying all of them on val: one for a task and a model, the same for all of its arms."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dspy

from crossover.eval.experiment.splits import sample
from crossover.models.errors import UserError
from crossover.models.load import LoadedModel
from crossover.models.prompt import engine_of
from crossover.models.spec import FORMATS
from crossover.models.usage import Usage
from crossover.programs.demos import with_demos
from crossover.programs.judge import Judge
from crossover.programs.score import Row, mean_score, score_examples, usage_of
from crossover.programs.task import Metric, Task

QUESTIONS, DEMOS = 12, 4
"""Val examples that each format is tried on, once without demonstrations and once with so many."""


@dataclass(frozen=True)
class Tried:
    """How one format did on val."""

    name: str
    parsed: int
    """Answers that could be parsed."""
    asked: int
    score: float
    """Mean over all questions; an unparsed answer counts 0."""
    prompt_tokens: float
    """Mean over all questions."""


@dataclass(frozen=True)
class FormatChoice:
    """The prompt format of a task and a model, and the usage that choosing it took."""

    name: str
    tried: tuple[Tried, ...] = ()
    """Best first; empty where there was nothing to choose."""
    spent: Usage = field(default_factory=Usage)

    @classmethod
    def read(cls, file: Path) -> "FormatChoice":
        """Return the choice that an earlier run wrote."""
        kept = json.loads(file.read_text(encoding="utf-8"))
        return cls(kept["name"], tuple(Tried(**t) for t in kept["tried"]), Usage(**kept["spent"]))

    @property
    def reason(self) -> str:
        """Return how the formats compared, in one sentence; empty where there was nothing to choose."""
        if not self.tried:
            return ""
        best, *others = self.tried
        rest = ", ".join(f"{t.name} {t.parsed} (score {t.score:.2f})" for t in others)
        return f"{best.parsed} of {best.asked} val answers parsed (score {best.score:.2f}); {rest}"


def only_format(model: LoadedModel) -> str | None:
    """Return the one format that a model is used with, or None where all are to be tried."""
    if model.spec.prompt_format != "auto":
        return model.spec.prompt_format
    engine = engine_of(model.lm)
    if engine is None:
        return "chat"
    # A base model continues a pattern of lines; it was never taught to follow instructions.
    return "plain" if engine.stop_at_line else None


def choose_format(
    model: LoadedModel,
    task: Task,
    val: Sequence[dspy.Example],
    demos: Sequence[dspy.Example],
    *,
    threads: int,
    note: Callable[[str], None],
) -> FormatChoice:
    """Return the format in which most answers to `val` can be parsed, asked without and with `demos`.

    Ties go to the higher score, then to the shorter prompt. Each format is reported to `note` before it is tried.

    Raises:
        UserError: no format got an answer, for a reason outside the model.
    """
    # A judge is not asked: whether an answer can be parsed needs no grade.
    metric: Metric = _no_score if isinstance(task.metric, Judge) else task.metric
    questions, start, tried = sample(val, QUESTIONS), time.perf_counter(), list[Tried]()
    answered = False
    programs, spent = [task.program(), *_showing(task, demos[:DEMOS])], Usage()
    for name in FORMATS:
        note(f"{task.name}: trying the prompt format {name} on val")
        rows = list[Row]()
        with dspy.context(lm=model.lm, adapter=model.in_format(name).prompt_format):
            for program in programs:
                rows += score_examples(program, questions, metric, price=model.price, threads=threads)
        spent += usage_of(rows)
        answered = answered or any(not r.failure for r in rows)
        parsed = sum(r.score is not None and not r.unparsed for r in rows)
        tokens = sum(r.prompt_tokens for r in rows) / len(rows)
        tried.append(Tried(name, parsed, len(rows), mean_score(rows), tokens))
    if not answered:
        # A model that cannot be reached has no format that suits it best, and none is kept for later runs.
        raise UserError(f"no prompt format could be tried on val: {rows[0].failure}; run again once that is mended")
    spent.seconds = time.perf_counter() - start
    tried.sort(key=lambda t: (-t.parsed, -t.score, t.prompt_tokens))
    return FormatChoice(tried[0].name, tuple(tried), spent)


def _no_score(gold: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> float:
    return 0.0


def _showing(task: Task, demos: Sequence[dspy.Example]) -> list[dspy.Module]:
    """Return the program with demonstrations, in a list; an empty list where the examples lack a field of it."""
    try:
        return [with_demos(task.program(), demos)]
    except ValueError:
        return []
