"""What an experiment is, and the cells it consists of."""

import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from crossover.eval.experiment.method import MethodSpec
from crossover.models.spec import ModelSpec
from crossover.programs.spec import TaskSpec

Kind = Literal["context", "weights"]
"""The side of the comparison that an arm stands on: a chain that trains weights stands on theirs."""
Compare = Literal["methods", "all"]
"""What the arms of a verdict are: `methods`, each by the variant that val chose, or `all` variants."""
METHODOLOGY_VERSION = 8
"""Raised whenever a change of ours can change a number; part of every cell key."""


@dataclass(frozen=True)
class Knowledge:
    """What the program may read at training and at test: `none`, `retrieved`, `gold` or `noisy`."""

    train: str = "none"
    test: str = "none"

    @property
    def label(self) -> str:
        """Return the short name for tables."""
        return self.test if self.train == self.test else f"{self.train}>{self.test}"

    @property
    def searches(self) -> bool:
        """Return whether a retrieval backend decides any of what is read."""
        return bool({"retrieved", "noisy"} & {self.train, self.test})


@dataclass(frozen=True)
class Retrieval:
    """How passages are found."""

    backend: str = "bm25"
    k: int = 3
    chunk_words: int = 0
    """Passages are cut into overlapping windows of this many words; 0 leaves them whole."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the backend."""

    @property
    def label(self) -> str:
        """Return the short name for tables: `hybrid k=3 alpha=0.3`."""
        facts = self.facts()
        return " ".join([str(facts.pop("backend")), *(f"{k}={v}" for k, v in facts.items())])

    def facts(self) -> dict[str, Any]:
        """Return all that can change what is found, in the order of the experiment file."""
        chunks = {"chunk_words": self.chunk_words} if self.chunk_words else {}
        options = {k: v for k, v in sorted(self.options.items()) if k != "timeout"}
        return {"backend": self.backend, "k": self.k, **chunks, **options}


@dataclass(frozen=True)
class Limits:
    """Where a run stops; each call is weighed at its worst before it is made."""

    usd: float | None = None
    minutes: float | None = None
    calls: int | None = None
    tokens: int | None = None
    """Of prompts and answers together."""


@dataclass(frozen=True)
class Needs:
    """What the user needs of the winner."""

    volume_per_month: float | None = None
    min_score: float | None = None
    max_p95_ms: float | None = None
    max_usd_per_month: float | None = None
    refresh_months: float = 12.0
    """Months until the arm is fitted anew; fitting is spread over them in monthly costs."""


@dataclass(frozen=True)
class Prices:
    """Prices that no table knows."""

    machine_hour_usd: float = 0.50
    """An hour of the machine that runs local models. The default is a rough price of a small cloud machine."""
    label_usd: float = 0.0
    """A labelled example; an arm is charged for those that its fitting needs."""
    tuned_hosting_usd_per_month: float = 0.0
    """What a fine-tuned model costs a month however little it is asked: a GPU of its own."""
    input_usd_per_million: float | None = None
    """A million prompt tokens of the API that would serve, for the table of prefix caching."""
    output_usd_per_million: float | None = None
    """A million answer tokens of that API."""
    cache_read: float = 0.1
    """Price of a prompt token read from the provider's cache, as a share of the full price."""
    cache_write: float = 1.25
    """Price of a prompt token written to it, as a share of the full price."""
    cache_seconds: float = 300.0
    """How long a prefix stays in the cache after it was last read."""
    models: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """By name of a model behind an API, in place of LiteLLM's table: dollars of a million tokens, see `TOKEN_PRICES`.
    In the file they stand by the others, under the model's name."""


@dataclass(frozen=True)
class SearchBudget:
    """What a method may spend on searching prompts, the same for every arm."""

    metric_calls: int | None = None
    """Predictions that may be scored; None for twenty readings of val."""
    usd: float | None = None
    """Dollars that APIs may charge, the teacher's calls included."""


USUAL_METHODS = tuple(map(MethodSpec, ("zero_shot", "few_shot", "retrieved_demos", "many_shot", "sft")))
"""What a file that lists no methods compares."""


@dataclass(frozen=True)
class Experiment:
    """A whole experiment file, with its defaults filled in."""

    name: str
    tasks: tuple[TaskSpec, ...]
    models: tuple[ModelSpec, ...] = (ModelSpec("smollm2"),)
    methods: tuple[MethodSpec, ...] = USUAL_METHODS
    compare: Compare = "methods"
    """`methods`: the variants of one method are a family, whose member is chosen on val; `all`: each is an arm."""
    train_sizes: tuple[int, ...] = ()
    """Nested sizes of the train pool; empty for all of it."""
    knowledge: tuple[Knowledge, ...] = ()
    """Empty for each program's default: `retrieved` where it retrieves, else `none`."""
    retrieval: tuple[Retrieval, ...] = (Retrieval(),)
    """Crossed with every knowledge that a backend finds."""
    seeds: tuple[int, ...] = (0,)
    limits: Limits = Limits()
    needs: Needs = Needs()
    prices: Prices = Prices()
    budget: SearchBudget = SearchBudget()
    teacher: ModelSpec | None = None
    """Proposes instructions and bootstraps demonstrations; None for the model that is adapted."""
    retention: tuple[TaskSpec, ...] = ()
    """Other tasks, scored before and after every training."""
    racing: bool = False
    """Drop arms as soon as they are shown to be worse; the dropped ones are scored on fewer examples."""
    limit: int | None = None
    """At most this many test examples (`--limit`); half as many of val, but no fewer than 20."""
    file: Path | None = None
    """Where it was read from."""
    command: str = ""
    """The command line that measures it; empty where Python code does."""


def params_of(experiment: Experiment) -> dict[str, Any]:
    """Return all that the file and the flags say, as JSON; where the file lies is nobody's concern."""
    params = {k: v for k, v in asdict(experiment).items() if k not in ("file", "command")}
    return dict(json.loads(json.dumps(params, default=str)))


Family = tuple[str, ModelSpec, str, Knowledge]


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
    retrieval: Retrieval | None = None
    """None where no backend decides what is read."""

    @property
    def family(self) -> Family:
        """Return the task, model, method without options, and knowledge that all variants of one method share."""
        return self.task, self.model, self.method.base_name, self.knowledge

    @property
    def title(self) -> str:
        """Return what tells the cell from the others of its task and model: `sft rank=8, n=64, gold, seed=1`."""
        size = [] if self.train_size is None else [f"n={self.train_size}"]
        knowledge = [] if self.knowledge == Knowledge() else [self.knowledge.label]
        retrieval = [] if self.retrieval is None else [self.retrieval.label]
        return ", ".join([self.method.label, *size, *knowledge, *retrieval, f"seed={self.seed}"])

    def key(
        self,
        *,
        split_sha256: str,
        program_sha256: str,
        model_sha256: str,
        retriever: str,
        limit: int | None,
        search: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the hash of everything that can change the cell's numbers, 16 hex digits.

        `retriever` is the backend's identity: what its options do not tell. `search` is the budget and the teacher
        of a method that searches prompts; for the others it must be empty.
        """
        cell = asdict(self) | {"model": self.model.identity}
        del cell["retrieval"]
        found = None if self.retrieval is None else self.retrieval.facts() | ({"model": retriever} if retriever else {})
        facts = {
            "methodology": METHODOLOGY_VERSION,
            "cell": cell,
            "split": split_sha256,
            "program": program_sha256,
            "model": model_sha256,
            "retrieval": found,
            "limit": limit,
        } | ({"search": search} if search else {})
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def plan(experiment: Experiment) -> list[Cell]:
    """Return every cell in the order it runs: by task, then model, then the file's order of methods.

    A method is left out on a model whose weights it cannot train, or that cannot be served with them. One that does not
    learn is measured once for all train sizes, whatever train may read, and at temperature 0 once for all seeds.
    """
    cells: dict[tuple[str, ModelSpec, str], Cell] = {}
    for task in experiment.tasks:
        for model in experiment.models:
            for knowledge, retrieval in _read(experiment, task):
                for method in experiment.methods:
                    if method.left_out_on(model):
                        continue
                    learns = method.learns
                    sizes: tuple[int | None, ...] = experiment.train_sizes or (None,) if learns else (None,)
                    seeds = experiment.seeds if learns or model.temperature else experiment.seeds[:1]
                    reads = knowledge if learns else Knowledge(knowledge.test, knowledge.test)
                    found = retrieval if reads.searches else None
                    for size, seed in itertools.product(sizes, seeds):
                        cell = Cell(task.name, model, method, size, reads, seed, found)
                        cells.setdefault((task.name, model, cell.title), cell)
    return list(cells.values())


def families_with_variants(experiment: Experiment) -> set[Family]:
    """Return the families of which several variants are measured and one is chosen on val; empty under `compare: all`.

    Train sizes, options of the method and retrieval make variants; seeds do not.
    """
    if experiment.compare == "all":
        return set()
    variants: dict[Family, set[str]] = {}
    for cell in plan(experiment):
        variants.setdefault(cell.family, set()).add(replace(cell, seed=0).title)
    return {family for family, titles in variants.items() if len(titles) > 1}


def _read(experiment: Experiment, task: TaskSpec) -> list[tuple[Knowledge, Retrieval | None]]:
    """Return what the cells of a task read: each knowledge, crossed with retrieval where a backend finds it."""
    return [
        (knowledge, retrieval)
        for knowledge in experiment.knowledge or (default_knowledge(task),)
        for retrieval in (experiment.retrieval if knowledge.searches else (None,))
    ]


def default_knowledge(task: TaskSpec) -> Knowledge:
    """Return `retrieved` for programs that retrieve, `none` for the others."""
    from crossover.programs.fields import RETRIEVING  # loads dspy, which `crossover ls` does not need

    retrieves = task.program in RETRIEVING or (not task.program and task.name.endswith("_rag")) or bool(task.corpus)
    return Knowledge("retrieved", "retrieved") if retrieves else Knowledge()
