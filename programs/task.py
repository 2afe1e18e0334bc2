"""The nouns that every package shares: Task, Method, Fitted."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import dspy

from crossover.models.usage import Usage


class Metric(Protocol):
    """Score one prediction against one example, 0.0 to 1.0; raise if it cannot decide.

    The signature is the one that every DSPy optimizer accepts.
    """

    def __call__(
        self,
        gold: dspy.Example,
        pred: dspy.Prediction,
        trace: Any = None,
        pred_name: Any = None,
        pred_trace: Any = None,
    ) -> float:
        """Return the score."""
        ...


@dataclass(frozen=True)
class Passage:
    """One retrievable text."""

    id: str
    """Stable id, to which the examples' gold ids refer."""
    text: str
    title: str = ""
    """Shown before the text, when there is one."""

    def render(self) -> str:
        """Return the passage as every arm and every model sees it."""
        return f"{self.title}: {self.text}" if self.title else self.text


@dataclass(frozen=True)
class Problem:
    """One fault or doubt found in a task or an experiment file."""

    level: str
    """`error` (cannot run) or `warning` (can run, but read this)."""
    where: str
    """File and line, or the task's name."""
    what: str
    """What is wrong, with the value."""
    remedy: str
    """What to do about it."""

    def __str__(self) -> str:
        """Return the one line that a person reads."""
        return f"{self.level}: {self.where}: {self.what}; {self.remedy}"


@dataclass(frozen=True)
class Task:
    """A DSPy program, its frozen splits, a metric and, where it retrieves, a corpus.

    Every example is a `dspy.Example` with inputs marked, an `id`, and where they apply `gold` (ids of passages that
    hold the answer), `cluster` (examples that share it are not independent) and `passages` (the rendered passages).
    An output field may hold a list: any of its entries is right.
    """

    name: str
    program: Callable[[], dspy.Module]
    """Builds the program before any adaptation."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    train: tuple[dspy.Example, ...]
    val: tuple[dspy.Example, ...]
    test: tuple[dspy.Example, ...]
    metric: Metric
    metric_name: str
    corpus: tuple[Passage, ...] = ()
    where: dict[str, str] = field(default_factory=dict)
    """Example id to `file:line`, for messages."""

    def splits(self) -> dict[str, tuple[dspy.Example, ...]]:
        """Return the splits by name."""
        return {"train": self.train, "val": self.val, "test": self.test}

    def split_sha256(self) -> str:
        """Return the hash of every example of every split, of the metric and of the corpus."""
        digest = hashlib.sha256(self.metric_name.encode())
        for name, examples in self.splits().items():
            for e in examples:
                row = {k: v for k, v in e.toDict().items() if k != "passages"}
                digest.update(json.dumps([name, row], sort_keys=True, ensure_ascii=False, default=str).encode())
        for p in self.corpus:
            digest.update(json.dumps([p.id, p.title, p.text], ensure_ascii=False).encode())
        return digest.hexdigest()


@dataclass
class Fitted:
    """What a method made of a program."""

    program: dspy.Module
    """The adapted program; its language model comes from the context it is called in."""
    lm: dspy.LM
    """The model that the program runs on: the one given, or the fine-tuned variant of it."""
    spent: Usage
    artifact: Path | None = None
    """Folder with the trained weights, where there are any."""
    notes: dict[str, Any] = field(default_factory=dict)
    """Facts worth keeping: demonstrations used, best epoch, adapter probe."""
    warnings: list[str] = field(default_factory=list)
    """Doubts that the table must show."""


@dataclass(frozen=True)
class Budget:
    """What a method may spend on fitting, the same for every arm of a comparison."""

    metric_calls: int | None = None
    """Predictions that may be scored; None for no bound but the method's own."""
    usd: float | None = None
    """Dollars that APIs may charge, the teacher's calls included."""
    minutes: float | None = None
    workdir: Path = Path(".")
    """Where the method may keep files; the caller owns the folder."""
    answers: Path | None = None
    """File of the answers that were paid for; a fit that was killed goes on from it."""
    checkpoints: Path | None = None
    """Folder that outlives a fit that was killed, for a training to go on from; None for one in `workdir`."""
    shared: Path | None = None
    """Folder that all fits on the same data and metric share, for what is costly to build; None for `workdir`."""
    teacher: dspy.LM | None = None
    """Proposes instructions and bootstraps demonstrations; None for the model that is adapted."""
    teacher_adapter: dspy.Adapter | None = None
    """The prompt frame that the teacher is spoken to in."""
    threads: int = 8
    """Concurrent calls allowed."""
    progress: Callable[[str], None] = lambda line: None
    """Called with a short line about what is being done."""


class Method(Protocol):
    """One way to adapt a program. A method is a frozen dataclass whose fields are its options and their defaults."""

    def fit(
        self,
        program: dspy.Module,
        *,
        train: Sequence[dspy.Example],
        val: Sequence[dspy.Example],
        metric: Metric,
        lm: dspy.LM,
        seed: int,
        budget: Budget,
    ) -> Fitted:
        """Adapt `program` and change nothing that was given. The DSPy adapter is that of the calling context."""
        ...
