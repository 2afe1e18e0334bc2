"""Build a task from the user's data, and report all of its problems at once."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import dspy

from crossover.models.errors import UserError
from crossover.programs.chats import with_question
from crossover.programs.entities import read_entities
from crossover.programs.fields import RETRIEVING, Columns, answers_of, columns_of, examples_of, text_of
from crossover.programs.folder import gold_passages, read_folder
from crossover.programs.gold import kinds_of, output_types, with_types
from crossover.programs.kinds import Kind, unfolded
from crossover.programs.load import builtin_task, is_reference, load_program, unknown
from crossover.programs.metrics import metric_for
from crossover.programs.records import Problem, Read, Record, fault, few
from crossover.programs.retrieval.base import Passage
from crossover.programs.sources import hf_splits, read_source, shown_path
from crossover.programs.spec import TaskSpec
from crossover.programs.splits import fold, fraction, joined, split_in_proportion
from crossover.programs.task import Metric, Task
from crossover.programs.validate import validate

SPLITS = ("train", "val", "test")
ALL = "all"
"""Key of the rows of one file, which are split here."""
SHARES = {"val": 0.1, "test": 0.2}
"""Shares of the splits of one file, train apart."""
FEWEST_A_LABEL = 4
"""Rows a label must have on average for splits to be held to its share."""
VAL_SHARE, VAL_MOST = 0.1, 200
"""Share of train, and the most rows, that become val when the task has none."""
USUAL_METRIC = {"classify": "label_accuracy", "extract": "entity_f1", "translate": "chrf", "record": "field_accuracy"}
"""Default metric of a program; exact match for any other."""
NO_COLUMNS = Columns({}, {"": ""})


def load_task(spec: TaskSpec, *, base: Path = Path()) -> Task:
    """Return the task; relative paths start at `base`.

    Raises:
        UserError: the task has an error; the message holds the first and counts the others.
    """
    task, problems = load_and_check(spec, base=base)
    errors = [p for p in problems if p.level == "error"]
    if task is None or errors:
        more = f" (and {len(errors) - 1} more; `crossover validate` lists all)" if len(errors) > 1 else ""
        raise UserError(f"{errors[0].where}: {errors[0].what}; {errors[0].remedy}{more}")
    return task


def load_and_check(spec: TaskSpec, *, base: Path = Path()) -> tuple[Task | None, list[Problem]]:
    """Return the task, or None if it has an error, and all of its problems."""
    problems, task = list[Problem](), None
    with _collecting(spec.name, problems):
        task = _users_task(spec, base, problems) if spec.program or spec.data else builtin_task(spec.name)
    if task is not None:
        if not any(p.level == "error" for p in problems):
            empty = [name for name, split in task.splits().items() if not split]
            problems += [fault(spec.name, f"no {name} examples are left", "add rows") for name in empty]
        problems += validate(task)
    return (None if any(p.level == "error" for p in problems) else task), problems


@contextmanager
def _collecting(where: str, problems: list[Problem]) -> Iterator[None]:
    """Turn a `UserError` into a problem, so that those after it are found as well."""
    try:
        yield
    except UserError as e:
        problems.append(_problem(where, e))


def _problem(where: str, error: UserError) -> Problem:
    """Return an error of the form `what; remedy` as a problem."""
    what, _, remedy = str(error).partition("; ")
    return fault(where, what, remedy)


def _users_task(spec: TaskSpec, base: Path, problems: list[Problem]) -> Task | None:
    """Return the task as far as its files can be read, and add their problems to `problems`."""
    records = _read_splits(spec, base, problems)
    corpus = _read_corpus(spec, base, problems)
    if spec.program in RETRIEVING and not spec.corpus:
        problems.append(fault(spec.name, f"{spec.program} has nothing to retrieve from", "add `corpus: file.jsonl`"))
    columns, where = NO_COLUMNS, dict[str, str]()
    splits: dict[str, list[dspy.Example]] = {name: [] for name in SPLITS}
    with _collecting(spec.name, problems):
        spec, records = unfolded(spec, records)
        columns = _columns(spec, records)
        for name, rows in records.items():
            splits[name] = examples_of(rows, columns, split=name, where=where, problems=problems)
        problems += _notes(spec, columns, records)
        if columns.gold and (base / spec.corpus).is_dir():
            _find_gold(splits.values(), columns, corpus)
    inputs = tuple(columns.inputs.values())
    if ALL in records:
        splits = split_rows(splits[ALL], columns, SHARES | dict(spec.split)) if ALL in splits else splits
        counts = ", ".join(f"{name} {len(splits[name])}" for name in SPLITS)
        problems.append(Problem("note", spec.name, f"split by hash: {counts}", "`split: {val: …, test: …}` sets it"))
    elif "val" not in records:
        splits["train"], splits["val"] = cut_val(splits["train"], columns)
    outputs = tuple(columns.outputs.values())
    output, kinds = outputs[0], dict[str, Kind]()
    named = (lambda text: [kind for kind, _ in read_entities(text)]) if columns.entities else answers_of
    labels = [] if columns.record else sorted({label for e in splits["train"] for label in named(e[output])})
    # Stand-ins, so that the data is checked even when the metric or the program has an error.
    metric, metric_name, program = metric_for("exact_match", *outputs), "exact_match", dspy.Module
    with _collecting(spec.name, problems):
        kinds = kinds_of(splits["train"], columns.outputs, spec.output) if columns.record else {}
        metric, metric_name = _metric(spec, outputs, base, kinds)
    with _collecting(spec.name, problems):
        program = load_program(
            spec.program,
            inputs=inputs,
            output=output,
            labels=labels,
            base=base,
            instructions=spec.instructions,
            kinds=kinds,
        )
        readers = output_types(kinds, program, outputs)
        splits = {name: with_types(examples, readers, where, problems) for name, examples in splits.items()}
    if not where:
        return None
    train, val, test = (tuple(splits[name]) for name in SPLITS)
    return Task(
        name=spec.name,
        program=program,
        inputs=inputs,
        outputs=outputs,
        train=train,
        val=val,
        test=test,
        metric=metric,
        metric_name=metric_name,
        corpus=corpus,
        where=where,
        columns={f: c for part in (columns.inputs, columns.outputs) for c, f in part.items() if c != f},
    )


def _columns(spec: TaskSpec, records: Mapping[str, Sequence[Record]]) -> Columns:
    """Return the role of each column of the rows that could be read."""
    rows = records.get("train") or records.get("test") or records.get(ALL) or []
    present = list(dict.fromkeys(c for r in rows for c in r.values))
    return columns_of(spec, present) if present else NO_COLUMNS


def _notes(spec: TaskSpec, columns: Columns, records: Mapping[str, Sequence[Record]]) -> list[Problem]:
    """Return what a person should know of how the data was taken: columns left out, labels that were trimmed."""
    notes = []
    if columns.unused:
        names = ", ".join(map(repr, columns.unused))
        notes.append(Problem("note", spec.name, f"not used: {names}", "name what the model may read under `input`"))
    if spec.program == "classify":
        (output,) = columns.outputs
        values = [r.values.get(output) for rows in records.values() for r in rows]
        if spaced := [v for v in values if isinstance(v, str) and v != v.strip()]:
            what = f"{len(spaced)} labels have space around them, such as {spaced[0]!r}"
            notes.append(Problem("note", spec.name, what, f"they count as {spaced[0].strip()!r}"))
    return notes


def _read_splits(spec: TaskSpec, base: Path, problems: list[Problem]) -> dict[str, list[Record]]:
    """Return the rows of each split that the task names."""
    data = dict(spec.data)
    if "hf" in data:
        data = hf_splits(data)
        if list(data) == ["train"]:
            data = {ALL: data["train"]}
    if "file" in data:
        data = {ALL: data["file"]}
    for name in data:
        if name not in (*SPLITS, ALL):
            problems.append(_problem(spec.name, unknown("split", name, SPLITS)))
    for name in ("train", "test") if ALL not in data else ():
        if name not in data:
            problems.append(fault(spec.name, f"`data` names no {name}", f"add `{name}: file.jsonl`"))
    records = {}
    for name in (n for n in (*SPLITS, ALL) if n in data):
        split = "validation" if name == "val" else name
        one = {"split": split, **data[name]} if isinstance(data[name], Mapping) else data[name]
        rows, found = read_source(one, base=base, key="data" if name == ALL else f"data.{name}")
        records[name] = [with_question(r) for r in rows]
        problems += found
    return records


def read_rows(source: str, base: Path = Path()) -> Read:
    """Return the rows of a data file, or of the train split of a dataset `hf:org/name`."""
    try:
        one = hf_splits({"hf": source.removeprefix("hf:")})["train"] if source.startswith("hf:") else source
    except UserError as e:
        return [], [_problem(source, e)]
    rows, problems = read_source(one, base=base, key="data")
    return [with_question(r) for r in rows], problems


def _read_corpus(spec: TaskSpec, base: Path, problems: list[Problem]) -> tuple[Passage, ...]:
    """Return the passages of the task's corpus, none if it has no corpus."""
    return read_corpus(spec.corpus, base, problems) if spec.corpus else ()


def read_corpus(file: str, base: Path, problems: list[Problem]) -> tuple[Passage, ...]:
    """Return the passages of a folder of documents, or of a file with `id`, `text` and optionally `title`.

    Problems go to `problems`.
    """
    if (base / file).is_dir():
        documents, found = read_folder(base / file, shown_path(base / file, base))
        problems += found
        return tuple(documents)
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


def split_rows(
    rows: Sequence[dspy.Example], columns: Columns, shares: Mapping[str, float]
) -> dict[str, list[dspy.Example]]:
    """Return the rows of one file by split: equal questions and clusters together, labels in proportion."""
    inputs, label = tuple(columns.inputs.values()), _label(rows, columns)
    return split_in_proportion(rows, keys=lambda e: _links(e, inputs), label=label, shares=shares)


def _label(rows: Sequence[dspy.Example], columns: Columns) -> Callable[[dspy.Example], str]:
    """Return what gives a row's label; an empty one for every row where answers are free texts or records."""
    output = next(iter(columns.outputs.values()))
    if columns.record or len({text_of(answers_of(e[output])[0]) for e in rows}) * FEWEST_A_LABEL > len(rows):
        return lambda example: ""
    return lambda example: text_of(answers_of(example[output])[0])


def _find_gold(splits: Iterable[Sequence[dspy.Example]], columns: Columns, corpus: Sequence[Passage]) -> None:
    """Replace the names of documents in `gold` by the ids of their passages."""
    files: dict[str, list[Passage]] = {}
    for passage in corpus:
        files.setdefault(passage.title, []).append(passage)
    for example in (e for split in splits for e in split):
        answers = [text_of(a) for field in columns.outputs.values() for a in answers_of(example[field])]
        example["gold"] = gold_passages(example["gold"], answers, files)


def cut_val(train: Sequence[dspy.Example], columns: Columns) -> tuple[list[dspy.Example], list[dspy.Example]]:
    """Return train without val, and val: a tenth by seeded hash, at most 200 rows.

    Equal questions stay together, and so do clusters where the rows name one; train keeps a row of every label.
    """
    label, inputs = _label(train, columns), tuple(columns.inputs.values())
    links = [_links(e, inputs) for e in train]
    room, taken = min(VAL_MOST, max(1, int(len(train) * VAL_SHARE))), set[int]()
    left = Counter(map(label, train))
    for group in sorted(joined(links, lambda keys: keys), key=lambda g: min(fraction(k) for n in g for k in links[n])):
        kinds = Counter(label(train[n]) for n in group)
        if len(group) <= room and all(n < left[kind] for kind, n in kinds.items()):
            taken.update(group)
            room -= len(group)
            left -= kinds
    return [e for n, e in enumerate(train) if n not in taken], [train[n] for n in sorted(taken)]


def _links(example: dspy.Example, inputs: Sequence[str]) -> list[str]:
    """Return keys that rows share which belong into one split: an equal question, or one cluster."""
    return [_question(example, inputs), *([f"cluster {example['cluster']}"] if "cluster" in example else [])]


def _question(example: dspy.Example, inputs: Sequence[str]) -> str:
    """Return a key that equal questions share."""
    return "\n".join(fold(example[name]) for name in inputs)


def _metric(spec: TaskSpec, outputs: Sequence[str], base: Path, kinds: Mapping[str, Kind]) -> tuple[Metric, str]:
    """Return the metric and its name; that of a user's metric holds the hash of its file, so that changes count."""
    name = spec.metric or USUAL_METRIC.get(spec.program, "exact_match")
    # Of `<=50K` and `>50K` normalising would leave the same.
    closed = [field for field, kind in kinds.items() if kind.name in ("one of", "boolean")]
    metric = metric_for(name, *outputs, base=base, closed=closed)
    if not is_reference(name):
        return metric, name
    path, _, function = name.rpartition(":")
    digest = hashlib.sha256((base / path).read_bytes()).hexdigest()[:8]
    return metric, f"{Path(path).name}:{function}@{digest}"
