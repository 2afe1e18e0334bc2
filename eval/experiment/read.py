"""Turn an experiment file into an `Experiment`, strictly: every fault with its line, all at once."""

import itertools
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args

import yaml

from crossover.eval.experiment import catalog
from crossover.eval.experiment.document import Document, is_empty
from crossover.eval.experiment.method import MethodSpec
from crossover.eval.experiment.read_data import data_file, named_columns, read_data, texts_of
from crossover.eval.experiment.read_judge import read_judge
from crossover.eval.experiment.read_method import read_method
from crossover.eval.experiment.read_model import absolute_path, field_types, read_model
from crossover.eval.experiment.read_prices import read_prices
from crossover.eval.experiment.read_retrieval import check_collections, read_retrieval
from crossover.eval.experiment.spec import (
    USUAL_METHODS,
    Compare,
    Experiment,
    Knowledge,
    Limits,
    Needs,
    Prices,
    Retrieval,
    SearchBudget,
)
from crossover.models.errors import UserError
from crossover.models.spec import differing_settings
from crossover.programs.records import Problem
from crossover.programs.spec import TaskSpec

QUICKSTART = Path(__file__).with_name("quickstart.yaml")
KNOWLEDGE = ("none", "retrieved", "gold", "noisy")
SECTIONS = ("version", *(f.name for f in fields(Experiment) if f.name not in ("limit", "file", "command")))


@dataclass(frozen=True)
class Overrides:
    """What the command line changes of the file."""

    settings: tuple[str, ...] = ()
    """`dotted.key=value`, the value read as YAML."""
    limit: int | None = None
    """At most this many test examples."""
    only: tuple[str, ...] = ()
    """Methods to keep; empty for all."""
    seeds: tuple[int, ...] = ()
    """Seeds in place of the file's."""
    limits: Mapping[str, Any] = field(default_factory=dict)
    """Limits in place of the file's, by name."""


def read_experiment(file: Path, overrides: Overrides | None = None) -> tuple[Experiment | None, list[Problem]]:
    """Return the experiment of a file and its problems; no experiment when any of them is an error.

    Raises:
        UserError: the file is missing or is no YAML, or a `--set` points nowhere.
    """
    experiment, problems = read_partly(file, overrides)
    return (None if any(p.level == "error" for p in problems) else experiment), problems


def read_partly(file: Path, overrides: Overrides | None = None) -> tuple[Experiment, list[Problem]]:
    """Return what is sound of the experiment, so that its data can be checked as well, and its problems."""
    overrides = overrides or Overrides()
    doc = Document(file, overrides.settings)
    experiment = _experiment(doc, overrides)
    return experiment, sorted(doc.problems, key=_line)


def _line(problem: Problem) -> int:
    """Return the line of a problem, 0 for the command line."""
    number = problem.where.rpartition(":")[2]
    return int(number) if number.isdecimal() else 0


def quickstart() -> Experiment:
    """Return the experiment that runs without a file."""
    experiment, problems = read_experiment(QUICKSTART)
    if experiment is None:
        raise UserError("\n".join(map(str, problems)))
    return experiment


def _experiment(doc: Document, overrides: Overrides) -> Experiment:
    sections = doc.mapping(doc.root, "the file", SECTIONS)
    _check_frame(doc, sections)

    def each(name: str, read: Callable[[Document, yaml.Node], Any]) -> tuple[Any, ...]:
        found = [read(doc, n) for n in doc.items(sections[name], name)] if name in sections else []
        return tuple(x for x in found if x is not None)

    def part(name: str, cls: type) -> Any:
        return cls(**doc.typed_mapping(sections[name], name, field_types(cls))) if name in sections else cls()

    limits: Limits = part("limits", Limits)
    tasks = each("tasks", _task)
    models = each("models", read_model) if "models" in sections else Experiment.models
    teacher = read_model(doc, sections["teacher"], "teacher") if "teacher" in sections else None
    retention = each("retention", _task)
    judges = [t.judge.model for t in (*tasks, *retention) if t.judge]
    paid = [*models, *([teacher] if teacher else []), *judges]
    experiment = Experiment(
        name=(doc.typed(sections["name"], "name", "str") if "name" in sections else None) or doc.file.stem,
        tasks=tasks,
        models=models,
        methods=_kept(doc, each("methods", read_method) if "methods" in sections else USUAL_METHODS, overrides.only),
        compare=_compare(doc, sections["compare"]) if "compare" in sections else "methods",
        train_sizes=tuple(sorted(set(each("train_sizes", lambda d, n: _at_least_one(d, n, "train_sizes"))))),
        knowledge=each("knowledge", _knowledge),
        retrieval=read_retrieval(doc, sections["retrieval"]) if "retrieval" in sections else (Retrieval(),),
        seeds=overrides.seeds or each("seeds", lambda d, n: d.typed(n, "seeds", "int")) or (0,),
        limits=replace(limits, **overrides.limits),
        needs=part("needs", Needs),
        prices=read_prices(doc, sections["prices"], paid) if "prices" in sections else Prices(),
        budget=part("budget", SearchBudget),
        teacher=teacher,
        retention=retention,
        racing=bool(doc.typed(sections["racing"], "racing", "bool")) if "racing" in sections else False,
        limit=overrides.limit,
        file=doc.file,
    )
    _check_whole(doc, sections, experiment)
    return experiment


def _check_frame(doc: Document, sections: dict[str, yaml.Node]) -> None:
    """Find whether the file lacks tasks, or was written for another version."""
    if "tasks" not in sections:
        doc.fault(doc.root, "`tasks` is missing", "add a list `tasks:`, or let `crossover init` write it")
    if "version" in sections and (version := doc.value(sections["version"])) != 1:
        doc.fault(sections["version"], f"version {version!r}", "this program reads `version: 1`")


def _check_whole(doc: Document, sections: dict[str, yaml.Node], experiment: Experiment) -> None:
    """Find what is wrong between entries: repetitions, needs that cannot be applied."""
    differing = differing_settings(experiment.models)
    names = {
        "tasks": [t.name for t in experiment.tasks],
        "retention": [t.name for t in experiment.retention],
        "models": [" ".join(dict.fromkeys([m.name, *differing[m]])) for m in experiment.models],
        "methods": [m.label for m in experiment.methods],
        "knowledge": [k.label for k in experiment.knowledge],
        "seeds": [str(s) for s in experiment.seeds],
        "retrieval": [r.label for r in experiment.retrieval],
    }
    for section, found in names.items():
        for name, times in Counter(found).items():
            if times > 1:
                doc.fault(sections.get(section), f"`{name}` stands {times} times in {section}", "keep one")
    if "retrieval" in sections:
        corpora = {t.corpus or t.name for t in experiment.tasks if t.corpus or t.name.endswith("_rag")}
        check_collections(doc, sections["retrieval"], experiment.retrieval, len(corpora))
    if experiment.needs.max_usd_per_month is not None and experiment.needs.volume_per_month is None:
        remedy = "add the volume that it is for"
        doc.fault(sections["needs"], "`max_usd_per_month` without `volume_per_month`", remedy)
    if experiment.needs.refresh_months == 0:
        doc.fault(sections["needs"], "`needs.refresh_months` is 0", "write after how many months it is fitted anew")
    tokens = (experiment.prices.input_usd_per_million, experiment.prices.output_usd_per_million)
    if (tokens[0] is None) != (tokens[1] is None):
        what = "`input_usd_per_million` and `output_usd_per_million` are used together"
        doc.fault(sections["prices"], what, "add the other one")
    steps = [s for m in experiment.methods for s in m.steps]
    searching = any(m.searches for m in experiment.methods)
    taught = any(s.options.get("targets") == "teacher" for s in steps)
    if experiment.racing and (experiment.needs.max_p95_ms, experiment.needs.max_usd_per_month) != (None, None):
        what = (
            "`racing` drops arms by their score alone, and a need of time or money may rule out the one that beat them"
        )
        doc.fault(sections["racing"], what, "leave one of the two out to be sure", level="warning")
    _check_trained(doc, sections, experiment)
    for name in ("teacher", "budget"):
        if name in sections and not searching and not (taught and name == "teacher"):
            what = f"`{name}` is not used by any of the methods"
            doc.fault(sections[name], what, "remove it, or add a method that searches, such as gepa", level="warning")
    if experiment.budget.metric_calls == 0:
        doc.fault(sections["budget"], "`budget.metric_calls` is 0", "allow at least one, or leave it out")


def _check_trained(doc: Document, sections: dict[str, yaml.Node], experiment: Experiment) -> None:
    """Find the methods that cannot be measured on some of the models: these arms are left out."""
    reasons = dict[str, list[tuple[str, str]]]()
    for model, method in itertools.product(experiment.models, experiment.methods):
        if reason := method.left_out_on(model):
            reasons.setdefault(reason, []).append((model.name, method.label))
    nothing = sum(map(len, reasons.values())) == len(experiment.models) * len(experiment.methods)
    for reason, pairs in reasons.items():
        names, labels = (", ".join(dict.fromkeys(texts)) for texts in zip(*pairs, strict=True))
        if nothing:
            remedy = "add `smollm2` or a `local:` model, or a method that adapts prompts"
            doc.fault(sections.get("models"), f"{names} {reason}", remedy)
        else:
            remedy = f"left out: {labels}; all else is compared"
            doc.fault(sections.get("models"), f"{names} {reason}", remedy, level="warning")


def _kept(doc: Document, methods: tuple[MethodSpec, ...], only: tuple[str, ...]) -> tuple[MethodSpec, ...]:
    """Return the methods that `--only` names, by name or by label."""
    known = {m.name for m in methods}
    for name in only:
        if name not in known | {m.label for m in methods}:
            doc.unknown(None, "method of this experiment in --only", name, known)
    return tuple(m for m in methods if not only or m.name in only or m.label in only)


def _compare(doc: Document, node: yaml.Node) -> Compare:
    value = doc.value(node)
    if value not in get_args(Compare):
        doc.unknown(node, "value of `compare`", str(value), get_args(Compare))
    return "all" if value == "all" else "methods"


def _at_least_one(doc: Document, node: yaml.Node, what: str) -> int | None:
    number: int | None = doc.typed(node, what, "int")
    if number == 0:
        doc.fault(node, f"`{what}` holds 0", "write at least 1")
    return number


def _task(doc: Document, node: yaml.Node) -> TaskSpec | None:
    known = [t.name for t in catalog.tasks()]
    entries = (
        {}
        if isinstance(node, yaml.ScalarNode)
        else doc.mapping(node, "tasks", [f for f in field_types(TaskSpec) if f != "judge"])
    )
    if isinstance(node, yaml.ScalarNode) or set(entries) == {"name"}:
        name = str(doc.value(entries.get("name", node)))
        if name not in known:
            doc.unknown(node, "task", name, known)
            return None
        return TaskSpec(name)
    if missing := [k for k in ("name", "program", "data") if k not in entries or is_empty(entries[k])]:
        doc.fault(node, f"a task lacks {', '.join(missing)}", "add them, or name a built-in task")
        return None
    before = len(doc.problems)
    judge = None
    if isinstance(entries.get("metric"), yaml.MappingNode):
        judge = read_judge(doc, entries.pop("metric"))
    others = ("data", "split", "fields", "input", "output")
    texts = {k: doc.typed(n, f"tasks.{k}", "str") for k, n in entries.items() if k not in others}
    data, split = read_data(doc, entries["data"], entries.get("split"))
    columns = texts_of(doc, entries["fields"], "fields") if "fields" in entries else {}
    inputs, outputs = (named_columns(doc, entries[k], k) if k in entries else {} for k in ("input", "output"))
    program, programs = str(texts["program"]), [m.name for m in catalog.modules()]
    if ".py" not in program and program not in programs:
        doc.unknown(entries["program"], "program", program, [*programs, "./file.py:Class"])
    if len(doc.problems) > before:
        return None
    # A missing file is no reason to leave the others of the task unread.
    if "hf" not in data:
        data = {k: data_file(doc, entries["data"], v) for k, v in data.items()}
    if texts.get("corpus"):
        texts["corpus"] = data_file(doc, entries["corpus"], texts["corpus"], folder=True)
    texts |= {k: absolute_path(doc, texts[k]) for k in ("program", "metric") if texts.get(k)}
    return TaskSpec(**texts, data=data, split=split, fields=columns, input=tuple(inputs), output=outputs, judge=judge)


def _knowledge(doc: Document, node: yaml.Node) -> Knowledge | None:
    value = doc.value(node)
    pair = value if isinstance(value, dict) else {"train": value, "test": value}
    if set(pair) != {"train", "test"}:
        doc.fault(node, "a knowledge pair needs `train` and `test`", "write {train: gold, test: retrieved}")
        return None
    bad = [str(v) for v in pair.values() if v not in KNOWLEDGE]
    for v in bad:
        doc.unknown(node, "knowledge", v, KNOWLEDGE)
    return None if bad else Knowledge(str(pair["train"]), str(pair["test"]))
