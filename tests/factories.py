"""Build real results with chosen numbers, for tests of what is computed from them."""

from collections.abc import Mapping, Sequence
from typing import Any

import dspy
import tiny

from crossover.eval.experiment.method import MethodSpec
from crossover.eval.experiment.spec import Cell, Knowledge
from crossover.eval.store.result import Latency, Result
from crossover.models.usage import Usage
from crossover.programs.retrieval.base import Passage
from crossover.programs.score import Row
from crossover.programs.task import FitFacts, Task


def make_row(i: int, score: float | None, *, tokens: int = 100, usd: float | None = 0.0) -> Row:
    failure = "" if score is not None else "lm: LMServerError: busy"
    return Row(f"e{i}", score, failure, tokens, 0, 5, 1, 0.1, usd, {"label": "x"})


def make_cell(
    method: str = "zero_shot",
    *,
    size: int | None = None,
    seed: int = 0,
    knowledge: str = "none",
    options: Mapping[str, Any] | None = None,
) -> Cell:
    return Cell(
        "intents",
        tiny.SPEC,
        MethodSpec(method, options or {}),
        size,
        Knowledge(knowledge, knowledge),
        seed,
    )


def make_result(
    cell: Cell,
    scores: Sequence[float | None],
    *,
    serve_seconds: float = 10.0,
    fit: Usage | None = None,
    usd: float | None = 0.0,
    ms: float = 40.0,
    local: bool = True,
    val: float | None = None,
) -> Result:
    """Return the result of a cell with one row a score."""
    rows = [make_row(i, s, usd=usd) for i, s in enumerate(scores)]
    latency = Latency(tuple((ms + i % 10) / 1000 for i in range(100)), 1)
    size = "" if cell.train_size is None else f"-n{cell.train_size}"
    key = f"key-{cell.method.label.replace(' ', '-')}{size}-{cell.seed}"
    facts = FitFacts(val_score=val)
    return Result(key, cell, "ab" * 32, rows, serve_seconds, latency, fit or Usage(), local, facts)


def right(n: int, of: int, *, shift: int = 0) -> list[float]:
    """Return right/wrong scores, the first `n` of them right, rotated by `shift`."""
    return [1.0 if (i - shift) % of < n else 0.0 for i in range(of)]


def task_with_corpus(corpus: Sequence[Passage] = (), test: Sequence[dspy.Example] = ()) -> Task:
    """Return a task of four passages, each asked for by its title, or one of the given passages and questions."""
    words = ("alpha", "beta", "gamma", "delta")
    corpus = tuple(corpus) or tuple(Passage(str(n), f"fact number {w}", w) for n, w in enumerate(words))
    examples = tuple(
        dspy.Example(id=str(n), question=f"what is {p.title}?", answer=p.title, gold=[p.id]).with_inputs("question")
        for n, p in enumerate(corpus)
    )
    return Task(
        "t",
        lambda: dspy.Predict("question -> answer"),
        ("question",),
        ("answer",),
        examples,
        examples[:1],
        tuple(test) or examples[1:],
        lambda *a, **k: 1.0,
        "exact_match",
        corpus,
    )
