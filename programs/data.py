"""Make a task of the user's own data, and say everything that is wrong with it at once."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import dspy

from crossover.models.errors import UserError
from crossover.programs.entities import read_entities
from crossover.programs.fields import RETRIEVING, Columns, answers_of, columns_of, examples_of, text_of
from crossover.programs.load import builtin_task, is_reference, load_program, unknown
from crossover.programs.metrics import metric_for
from crossover.programs.rows import Record, fault, few, hf_splits, read_source
from crossover.programs.splits import fold, fraction
from crossover.programs.task import Metric, Passage, Problem, Task
from crossover.programs.validate import validate

SPLITS = ("train", "val", "test")
VAL_SHARE, VAL_MOST = 0.1, 200
"""What is taken from train when there is no val."""
USUAL_METRIC = {"classify": "label_accuracy", "extract": "entity_f1", "translate": "chrf"}
"""What a program is scored by when the task names no metric; exact match where it is not listed."""
NO_COLUMNS = Columns((), {"": ""})


class TaskSource(Protocol):
    """What an experiment file says about a task; each field is described in eval/experiment.py."""

    @property
    def name(self) -> str:
        """Return `name` of the task."""

    @property
    def program(self) -> str:
        """Return `program` of the task."""

    @property
    def data(self) -> Mapping[str, Any]:
        """Return `data` of the task."""

    @property
    def fields(self) -> Mapping[str, str]:
        """Return `fields` of the task."""

    @property
    def metric(self) -> str:
        """Return `metric` of the task."""

    @property
    def corpus(self) -> str:
        """Return `corpus` of the task."""

    @property
    def cluster(self) -> str:
        """Return `cluster` of the task."""

    @property
    def instructions(self) -> str:
        """Return `instructions` of the task."""


def load_task(source: TaskSource, *, base: Path = Path()) -> Task:
    """Return the task that the source describes; relative paths start at `base`; the first fault is an error."""
    task, problems = load_and_check(source, base=base)
    errors = [p for p in problems if p.level == "error"]
    if task is None or errors:
        more = f" (and {len(errors) - 1} more; `crossover validate` lists all)" if len(errors) > 1 else ""
        raise UserError(f"{errors[0].where}: {errors[0].what}; {errors[0].remedy}{more}")
    return task


def load_and_check(source: TaskSource, *, base: Path = Path()) -> tuple[Task | None, list[Problem]]:
    """Return the task and every fault and doubt about it; None in place of a task that has an error."""
    problems, task = list[Problem](), None
    with _collecting(source.name, problems):
        task = _users_task(source, base, problems) if source.program or source.data else builtin_task(source.name)
    if task is not None:
        if not any(p.level == "error" for p in problems):
            empty = [name for name, split in task.splits().items() if not split]
            problems += [fault(source.name, f"no {name} examples are left", "add rows") for name in empty]
        problems += validate(task)
    return (None if any(p.level == "error" for p in problems) else task), problems


@contextmanager
def _collecting(where: str, problems: list[Problem]) -> Iterator[None]:
    """Turn a `UserError` into a problem, so that the faults after it are found as well."""
    try:
        yield
    except UserError as e:
        problems.append(_problem(where, e))


def _problem(where: str, error: UserError) -> Problem:
    """Return an error line, `what; remedy`, as a problem."""
    what, _, remedy = str(error).partition("; ")
    return fault(where, what, remedy)


def _users_task(source: TaskSource, base: Path, problems: list[Problem]) -> Task | None:
    """Return the task as far as its files can be read, adding what is wrong with them to `problems`."""
    records = _read_splits(source, base, problems)
    corpus = _read_corpus(source, base, problems)
    if source.program in RETRIEVING and not source.corpus:
        problems.append(
            fault(source.name, f"{source.program} has nothing to retrieve from", "add `corpus: file.jsonl`")
        )
    columns, where, splits = NO_COLUMNS, dict[str, str](), {name: list[dspy.Example]() for name in SPLITS}
    with _collecting(source.name, problems):
        columns = _columns(source, records)
        for name, rows in records.items():
            splits[name] = examples_of(rows, columns, split=name, where=where, problems=problems)
    if "val" not in records:
        splits["train"], splits["val"] = cut_val(splits["train"], columns.inputs)
    output = next(iter(columns.outputs.values()))
    named = (lambda text: [kind for kind, _ in read_entities(text)]) if columns.entities else answers_of
    labels = sorted({label for e in splits["train"] for label in named(e[output])})
    # Stand-ins, so that the data is checked as well when the metric or the program has a fault.
    metric, metric_name, program = metric_for("exact_match", output), "exact_match", dspy.Module
    with _collecting(source.name, problems):
        metric, metric_name = _metric(source, output, base)
    with _collecting(source.name, problems):
        program = load_program(
            source.program,
            inputs=columns.inputs,
            output=output,
            labels=labels,
            base=base,
            instructions=source.instructions,
        )
    if not where:
        return None
    train, val, test = (tuple(splits[name]) for name in SPLITS)
    return Task(
        name=source.name,
        program=program,
        inputs=columns.inputs,
        outputs=tuple(columns.outputs.values()),
        train=train,
        val=val,
        test=test,
        metric=metric,
        metric_name=metric_name,
        corpus=corpus,
        where=where,
    )


def _columns(source: TaskSource, records: Mapping[str, Sequence[Record]]) -> Columns:
    """Return the role of each column of the rows that could be read."""
    rows = records.get("train") or records.get("test") or []
    present = list(dict.fromkeys(c for r in rows for c in r.values))
    if not present:
        return NO_COLUMNS
    return columns_of(source.fields, present, program=source.program, metric=source.metric, cluster=source.cluster)


def _read_splits(source: TaskSource, base: Path, problems: list[Problem]) -> dict[str, list[Record]]:
    """Return the rows of each split that the source names."""
    data = dict(source.data)
    if "hf" in data:
        data = hf_splits(data)
    for name in data:
        if name not in SPLITS:
            problems.append(_problem(source.name, unknown("split", name, SPLITS)))
    for name in ("train", "test"):
        if name not in data:
            problems.append(fault(source.name, f"`data` names no {name}", f"add `{name}: file.jsonl`"))
    records = {}
    for name in (n for n in SPLITS if n in data):
        split = "validation" if name == "val" else name
        one = {"split": split, **data[name]} if isinstance(data[name], Mapping) else data[name]
        records[name], found = read_source(one, base=base, key=f"data.{name}")
        problems += found
    return records


def _read_corpus(source: TaskSource, base: Path, problems: list[Problem]) -> tuple[Passage, ...]:
    """Return the passages of the task's corpus, each id once."""
    return read_corpus(source.corpus, base, problems) if source.corpus else ()


def read_corpus(file: str, base: Path, problems: list[Problem]) -> tuple[Passage, ...]:
    """Return the passages of a file with columns `id`, `text` and perhaps `title`; faults go to `problems`."""
    records, found = read_source(file, base=base, key="corpus")
    problems += found
    passages, faults = dict[str, Passage](), list[Problem]()
    for record in records:
        empty = [c for c in ("id", "text") if not text_of(record.values.get(c)).strip()]
        key, title = text_of(record.values.get("id")), text_of(record.values.get("title"))
        if empty:
            faults.append(fault(record.where, f"{empty[0]!r} is empty", "a passage needs `id` and `text`; fill it"))
        elif key in passages:
            faults.append(fault(record.where, f"passage id {key!r} stands twice", "give every passage its own id"))
        else:
            passages[key] = Passage(key, text_of(record.values["text"]), title)
    problems += few(faults)
    return tuple(passages.values())


def cut_val(train: Sequence[dspy.Example], inputs: Sequence[str]) -> tuple[list[dspy.Example], list[dspy.Example]]:
    """Return train without val, and val: a tenth of it by seeded hash, at most 200; equal questions stay together."""
    keys = ["\n".join(fold(e[name]) for name in inputs) for e in train]
    room, taken = min(VAL_MOST, max(1, int(len(train) * VAL_SHARE))), set[str]()
    sizes = Counter(keys)
    for key in sorted(sizes, key=fraction):
        if sizes[key] <= room:
            taken.add(key)
            room -= sizes[key]
    kept = [e for key, e in zip(keys, train, strict=True) if key not in taken]
    return kept, [e for key, e in zip(keys, train, strict=True) if key in taken]


def _metric(source: TaskSource, output: str, base: Path) -> tuple[Metric, str]:
    """Return the metric and its name; the name of a user's own holds its file's hash, so that a change is seen."""
    name = source.metric or USUAL_METRIC.get(source.program, "exact_match")
    metric = metric_for(name, output, base=base)
    if not is_reference(name):
        return metric, name
    path, _, function = name.rpartition(":")
    digest = hashlib.sha256((base / path).read_bytes()).hexdigest()[:8]
    return metric, f"{Path(path).name}:{function}@{digest}"
