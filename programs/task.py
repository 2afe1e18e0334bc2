"""The types that every package shares: Task, Metric, Method, Fitted."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import dspy

from crossover.models.usage import Usage, add_usd
from crossover.programs.demos import list_outputs
from crossover.programs.retrieval.base import Passage


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
class Task:
    """A DSPy program, its frozen splits, a metric and, for retrieval, a corpus.

    Every example is a `dspy.Example` with inputs marked and an `id`. It may have `gold` (ids of the passages that hold
    the answer), `cluster` (examples of one cluster are not independent) and `passages` (the rendered passages). An
    output field may hold a list, of which any entry is right.
    """

    name: str
    program: Callable[[], dspy.Module]
    """Builds the unadapted program."""
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
    columns: dict[str, str] = field(default_factory=dict)
    """Field to the user's name for it, where that is another."""

    def splits(self) -> dict[str, tuple[dspy.Example, ...]]:
        """Return the splits by name."""
        return {"train": self.train, "val": self.val, "test": self.test}

    @cached_property
    def lists(self) -> frozenset[str]:
        """The output fields of which an answer is a list; in any other, a list holds several right answers."""
        return frozenset(list_outputs(self.program()))

    def split_sha256(self) -> str:
        """Return the hash of all examples with their splits, of the metric's name and of the corpus."""
        return self._split_sha256

    @cached_property
    def _split_sha256(self) -> str:
        # Once a task: each of its cells is held against it, and hashing reads all of the data.
        digest = hashlib.sha256(self.metric_name.encode())
        for name, examples in self.splits().items():
            for e in examples:
                row = {k: v for k, v in e.toDict().items() if k != "passages"}
                digest.update(json.dumps([name, row], sort_keys=True, ensure_ascii=False, default=str).encode())
        for p in self.corpus:
            digest.update(json.dumps([p.id, p.title, p.text], ensure_ascii=False).encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class FitFacts:
    """Numbers of one fit that the ledger, the audit and the tables read; a chain's facts are added with `+`."""

    labels_used: int | None = None
    """Labelled examples that the arm needs, test apart; None for all of train and val, the most that it can need."""
    train_examples: int | None = None
    """Size of the train pool; the run fills it in."""
    val_examples: int = 0
    """Size of val; the run fills it in."""
    val_score: float | None = None
    """Mean score on val, by which a variant of the method is chosen; None where fitting did not read val, and the run
    fills it in."""
    teacher: str = ""
    """Name of the teacher; empty without one."""
    teacher_calls: int = 0
    teacher_usd: float | None = 0.0
    """Dollars of the teacher's calls, a part of `spent.usd`; None when their price is unknown."""
    discarded_seconds: float = 0.0
    """Seconds of trials that were trained and thrown away, a part of `spent.seconds`."""
    training_seconds: float = 0.0
    """Seconds of the trainings in a chain, discarded trials apart."""
    training_usd: float | None = 0.0
    """Dollars of the trainings in a chain, the teacher's apart."""
    logit_change: float | None = None
    """Largest change of a log-probability that training made on a probe prompt; None where nothing was trained."""
    zero_shot: bool = False
    """The method promises a prompt without demonstrations, which the audit holds it to."""

    def __add__(self, later: "FitFacts") -> "FitFacts":
        """Return the facts of two steps of a chain, both fitted on the same pool.

        Their labels are not added up, for both draw from one pool; what the later step leaves of the prompt and of the
        weights is what the chain serves.
        """
        labels = (self.labels_used, later.labels_used)
        return FitFacts(
            labels_used=None if None in labels else max(n for n in labels if n is not None),
            train_examples=self.train_examples if later.train_examples is None else later.train_examples,
            val_examples=max(self.val_examples, later.val_examples),
            val_score=later.val_score,
            teacher=self.teacher or later.teacher,
            teacher_calls=self.teacher_calls + later.teacher_calls,
            teacher_usd=add_usd(self.teacher_usd, later.teacher_usd),
            discarded_seconds=self.discarded_seconds + later.discarded_seconds,
            training_seconds=self.training_seconds + later.training_seconds,
            training_usd=add_usd(self.training_usd, later.training_usd),
            logit_change=self.logit_change if later.logit_change is None else later.logit_change,
            zero_shot=later.zero_shot,
        )


@dataclass
class Fitted:
    """A program adapted by a method, and what the adaptation took."""

    program: dspy.Module
    """The adapted program; its language model comes from the context it is called in."""
    lm: dspy.LM
    """The model that the program runs on: the one given, or the fine-tuned variant of it."""
    spent: Usage
    artifact: Path | None = None
    """Folder with the trained weights, where there are any."""
    facts: FitFacts = field(default_factory=FitFacts)
    notes: dict[str, Any] = field(default_factory=dict)
    """Further details for people to read, such as the best epoch; no number is computed from them."""
    warnings: list[str] = field(default_factory=list)
    """Doubts that the table must show."""


@dataclass(frozen=True)
class Budget:
    """The budget of one fit, the same for every arm of a comparison, and its folders."""

    metric_calls: int | None = None
    """Predictions that may be scored; None for the method's own bound."""
    usd: float | None = None
    """Dollars that APIs may charge, the teacher's calls included."""
    minutes: float | None = None
    workdir: Path = Path(".")
    """Folder for the method's files; the caller owns it."""
    answers: Path | None = None
    """File that records the answers that were paid for, so that a killed fit resumes from them."""
    checkpoints: Path | None = None
    """Folder of checkpoints, from which a killed training resumes; None for one in `workdir`."""
    shared: Path | None = None
    """Folder shared by all fits on the same data and metric, for training targets; None for `workdir`."""
    teacher: dspy.LM | None = None
    """Model that proposes instructions and bootstraps demonstrations; None for the model being adapted."""
    teacher_format: dspy.Adapter | None = None
    """Prompt format of the teacher."""
    threads: int = 8
    """Concurrent calls allowed."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Fields to the user's names for them, as `Task.columns`, for messages."""
    progress: Callable[[str], None] = lambda line: None
    """Called with a one-line progress message."""
    trained: Callable[[float], None] = lambda share: None
    """Called with the share of a training's steps that are done, above 0 and up to 1."""


@dataclass(frozen=True)
class Workload:
    """What a method's options make of a run, as upper bounds; the forecast turns them into calls, tokens and time."""

    demos: int = 0
    """Demonstrations in a prompt, the same for every question."""
    retrieved: int = 0
    """Further demonstrations, chosen for each question."""
    calls: int = 1
    """Calls of the program to a question."""
    epochs: float = 0.0
    """Rows of all trainings together, over those of train: two passes are 2, and of pairs 4."""
    readings: int = 0
    """Times that val is read to choose among weights."""
    attempts: int = 0
    """Answers to each train example that are asked for before the training."""
    traced: int = 0
    """The same for a program of several steps, whose inner answers the data does not hold."""
    batch: int = 1
    """Rows that compute together what they begin with, in a training."""


class Method(Protocol):
    """One way to adapt a program. A method is a frozen dataclass whose fields are its options and their defaults.

    Two class variables say what kind of method it is, each written only where it differs from the default:
    `learns: ClassVar[bool] = False` where train changes nothing, and `searches: ClassVar[bool] = True` where prompts
    are searched, so that the method has a budget and a teacher. Methods in finetune/ adapt weights, those in
    optimizers/ prompts. eval/experiment/catalog.py reads all of this from the file, without importing it.
    """

    def workload(self, train: int) -> Workload:
        """Return the most that fitting to `train` examples, and answering afterwards, takes."""
        ...

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
        """Return an adapted copy of `program`, in the calling context's prompt format; change no argument."""
        ...
