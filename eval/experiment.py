"""What an experiment is, and the cells it consists of."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from models.spec import ModelSpec

METHODOLOGY_VERSION = 2
"""Raised whenever a change of ours can change a number; part of every cell key."""

RETRIEVING = ("rag", "multihop", "dialogue")
"""Programs whose examples carry passages."""


@dataclass(frozen=True)
class TaskSpec:
    """A task as the experiment file names it."""

    name: str
    program: str = ""
    """Empty for a built-in task; else `classify`, `rag`, … or `./file.py:Class`."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """Split to file path (absolute), or to a mapping for Hugging Face data."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """Column to `input`, `output`, `gold` or `id`."""
    metric: str = ""
    corpus: str = ""
    cluster: str = ""
    instructions: str = ""
    """What the program is told to do; empty for the program's own words."""


@dataclass(frozen=True)
class MethodSpec:
    """A method with its options, as the experiment file gives them."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def steps(self) -> tuple["MethodSpec", ...]:
        """Return the methods of a chain in their order; any other method is its own only step."""
        return tuple(MethodSpec(**s) for s in self.options["steps"]) if self.name == "chain" else (self,)

    @property
    def label(self) -> str:
        """Return the short name for tables: `many_shot demos=64`, `gepa > sft`."""
        if self.name == "chain":
            return " > ".join(step.label for step in self.steps)
        return " ".join([self.name, *(f"{k}={v}" for k, v in sorted(self.options.items()))])


@dataclass(frozen=True)
class Knowledge:
    """What the program may read at training and at test: `none`, `retrieved` or `gold`."""

    train: str = "none"
    test: str = "none"

    @property
    def label(self) -> str:
        """Return the short name for tables."""
        return self.test if self.train == self.test else f"{self.train}>{self.test}"


@dataclass(frozen=True)
class Retrieval:
    """How passages are found."""

    backend: str = "bm25"
    k: int = 3


@dataclass(frozen=True)
class Limits:
    """Where a run stops."""

    usd: float | None = None
    minutes: float | None = None


@dataclass(frozen=True)
class Needs:
    """What the user needs of the winner."""

    volume_per_month: float | None = None
    min_score: float | None = None
    max_p95_ms: float | None = None
    max_usd_per_month: float | None = None


@dataclass(frozen=True)
class Prices:
    """Prices that no table knows."""

    machine_hour_usd: float = 0.50
    """An hour of the machine that runs local models. The default is a rough price of a small cloud machine."""


@dataclass(frozen=True)
class SearchBudget:
    """What a method may spend on searching prompts, the same for every arm."""

    metric_calls: int | None = None
    """Predictions that may be scored; None for twenty readings of val."""
    usd: float | None = None
    """Dollars that APIs may charge, the teacher's calls included."""


@dataclass(frozen=True)
class Experiment:
    """A whole experiment file, with its defaults filled in."""

    name: str
    tasks: tuple[TaskSpec, ...]
    models: tuple[ModelSpec, ...]
    methods: tuple[MethodSpec, ...]
    train_sizes: tuple[int, ...] = ()
    """Nested sizes of the train pool; empty for all of it."""
    knowledge: tuple[Knowledge, ...] = ()
    """Empty for each program's default: `retrieved` where it retrieves, else `none`."""
    retrieval: Retrieval = Retrieval()
    seeds: tuple[int, ...] = (0,)
    limits: Limits = Limits()
    needs: Needs = Needs()
    prices: Prices = Prices()
    budget: SearchBudget = SearchBudget()
    teacher: ModelSpec | None = None
    """Proposes instructions and bootstraps demonstrations; None for the model that is adapted."""
    limit: int | None = None
    """At most this many test examples (`--limit`); also a quarter of it for val."""
    file: Path | None = None
    """Where it was read from."""


@dataclass(frozen=True)
class Cell:
    """One point of the experiment."""

    task: str
    model: ModelSpec
    method: MethodSpec
    train_size: int | None
    """None for the whole pool."""
    knowledge: Knowledge
    seed: int

    def key(
        self,
        *,
        split_sha256: str,
        program_sha256: str,
        model_sha256: str,
        retrieval: Retrieval,
        limit: int | None,
        search: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the hash of everything that can change the cell's numbers, 16 hex digits.

        `search` is the budget and the teacher of a method that searches prompts; for the others it must be empty.
        """
        facts = {
            "methodology": METHODOLOGY_VERSION,
            "cell": asdict(self),
            "split": split_sha256,
            "program": program_sha256,
            "model": model_sha256,
            "retrieval": asdict(retrieval) if "retrieved" in (self.knowledge.train, self.knowledge.test) else None,
            "limit": limit,
        } | ({"search": search} if search else {})
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def plan(experiment: Experiment) -> list[Cell]:
    """Return every cell in the order it runs: by task, then model, then the file's order of methods.

    `zero_shot` learns nothing from train, so that one size stands for all; the same holds for its seeds at
    temperature 0.
    """
    cells = []
    for task in experiment.tasks:
        for model in experiment.models:
            for knowledge in experiment.knowledge or (default_knowledge(task),):
                for method in experiment.methods:
                    constant = method.name == "zero_shot"
                    sizes: tuple[int | None, ...] = (None,) if constant else experiment.train_sizes or (None,)
                    seeds = experiment.seeds[:1] if constant and model.temperature == 0 else experiment.seeds
                    for size in sizes:
                        cells += [Cell(task.name, model, method, size, knowledge, seed) for seed in seeds]
    return cells


def default_knowledge(task: TaskSpec) -> Knowledge:
    """Return `retrieved` for programs that retrieve, `none` for the others."""
    retrieves = task.program in RETRIEVING or (not task.program and task.name.endswith("_rag")) or bool(task.corpus)
    return Knowledge("retrieved", "retrieved") if retrieves else Knowledge()
