"""Find all problems of a task before money or time is spent on it."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, pairwise, zip_longest

import dspy
from pydantic import TypeAdapter, ValidationError

from crossover.models.answer_types import labels_of
from crossover.models.errors import UserError, one_line
from crossover.programs.demos import question_key
from crossover.programs.fields import answers_of, right_answers, text_of
from crossover.programs.metrics import normalise
from crossover.programs.modules.classify import Classify
from crossover.programs.modules.record import Record
from crossover.programs.records import Problem, fault, few
from crossover.programs.task import Task

FEWEST_TEST = 50
"""Fewer test examples give intervals too wide to tell arms apart."""
EMPTY_WORDS = ("nan", "none", "null", "n/a", "#n/a", "na")
"""Labels that an export writes for an empty cell."""
RUN_OF_WORDS, NEAR = 3, 0.8
"""Two questions are nearly the same if they share this much of their runs of so many words (Jaccard)."""


def validate(task: Task) -> list[Problem]:
    """Return the problems of ids, shared questions, gold answers, gold passages, labels and size."""
    checks = (_repeated_ids, _shared_questions, _val_in_train, _gold_passages, _contradictions)
    problems = [p for check in checks for p in few(list(check(task)))]
    try:
        program = task.program()
    # DSPy refuses some of the user's field names, by exceptions of many kinds.
    except Exception as e:
        return [*problems, fault(task.name, f"the program cannot be built: {one_line(e, 160)}", "rename its fields")]
    gold = few(list(_gold_answers(task, program)))
    problems += gold or list(_wrong_answer(task))
    problems += few(list(_outside_type(task, program)))
    if isinstance(program, Classify) and task.train:
        problems += few([*_unseen_labels(task), *_doubtful_labels(task)]) + few(list(_several_labels(task)))
    problems += _near_duplicates(task)
    if 0 < len(task.test) < FEWEST_TEST:
        remedy = f"use {FEWEST_TEST} or more, or differences are lost in chance"
        problems.append(Problem("warning", task.name, f"only {len(task.test)} test examples", remedy))
    return problems


def _asked(task: Task, example: dspy.Example) -> dict[str, object]:
    """Return the example's inputs."""
    return {name: example[name] for name in task.inputs}


def _at(task: Task, example: dspy.Example) -> str:
    """Return the file and line of an example."""
    return task.where.get(str(example["id"]), f"{task.name} {example['id']}")


def _repeated_ids(task: Task) -> Iterator[Problem]:
    """Yield the examples whose id is taken by another one."""
    seen = set[str]()
    for example in (e for split in task.splits().values() for e in split):
        if example["id"] in seen:
            yield fault(_at(task, example), f"id {example['id']!r} stands twice", "give every row an id of its own")
        seen.add(example["id"])


def _shared_questions(task: Task) -> Iterator[Problem]:
    """Yield the test questions that are also in train or val."""
    train = {question_key(_asked(task, e)): e for e in reversed(task.train)}
    val = {question_key(_asked(task, e)): e for e in reversed(task.val)}
    for example in task.test:
        key = question_key(_asked(task, example))
        for name, others in (("train", train), ("val", val)):
            if key in others:
                what = f"this test question also stands in {name} ({_at(task, others[key])})"
                yield fault(_at(task, example), what, f"remove it from {name}")


def _val_in_train(task: Task) -> Iterator[Problem]:
    """Yield the val questions that are also in train: selection would favour programs that remember them."""
    train = {question_key(_asked(task, e)): e for e in reversed(task.train)}
    for example in task.val:
        if other := train.get(question_key(_asked(task, example))):
            what = f"this val question also stands in train ({_at(task, other)})"
            yield Problem("warning", _at(task, example), what, "remove it from train, or val will favour memory")


def _gold_answers(task: Task, program: dspy.Module) -> Iterator[Problem]:
    """Yield the examples whose own gold answer does not score 1.0; every entry of a list of right answers is one."""
    lists = task.lists
    for example in (e for split in task.splits().values() for e in split):
        answers = {n: right_answers(example[n], is_list=n in lists) for n in task.outputs}
        for values in zip_longest(*answers.values()):
            chosen = {n: answers[n][0] if v is None else v for n, v in zip(answers, values, strict=True)}
            try:
                score = float(task.metric(example, dspy.Prediction(**chosen)))
                verdict = f"scores {score:g} under {task.metric_name}"
            except UserError as e:
                yield fault(task.name, *str(e).split("; ", 1))
                return
            # The metric may be the user's own, and can raise anything.
            except Exception as e:
                score, verdict = 0.0, f"makes {task.metric_name} fail: {type(e).__name__}: {one_line(e, 120)}"
            if score != 1.0:
                shown = ", ".join(repr(v)[:60] for v in chosen.values())
                yield fault(_at(task, example), f"the gold answer {shown} {verdict}", "correct the row or the metric")
                break


def _outside_type(task: Task, program: dspy.Module) -> Iterator[Problem]:
    """Yield the first val or test example of each gold answer that a field's type does not let the program give."""
    outputs = {n: f for p in program.predictors() for n, f in p.signature.output_fields.items() if n in task.outputs}
    # The choices of a record are scored by their marks too: `<=50K` is not `>50K`.
    same = str.strip if isinstance(program, Record) else normalise
    typed = {n: (TypeAdapter(f.annotation), {*map(same, labels_of(f))}) for n, f in outputs.items()}
    for example in (*task.val, *task.test):
        for name, (kind, known) in typed.items():
            value = example[name]
            if isinstance(value, list) or same(text_of(value)) in known:
                continue
            try:
                kind.validate_python(value)
            except ValidationError:
                known.add(same(text_of(value)))
                column = task.columns.get(name, name)
                if isinstance(program, Record):
                    what = f"{column!r} holds {text_of(value)!r}, as no train row does: no arm can answer so"
                    remedy = f"add such a train row, or write `output: {{{column}: text}}`"
                else:
                    what = f"the type of {column!r} does not allow {text_of(value)!r}: no arm can answer so"
                    remedy = "correct the row or the program"
                yield Problem("warning", _at(task, example), what, remedy)


def _wrong_answer(task: Task) -> Iterator[Problem]:
    """Yield a problem if the metric cannot score a wrong answer: the gold answer of another example."""
    examples = task.test[:50]
    pairs = ((a, b) for a in examples for b in examples if all(a[n] != b[n] for n in task.outputs))
    for example, other in islice(pairs, 1):
        try:
            task.metric(example, dspy.Prediction(**{n: other[n] for n in task.outputs}))
        except Exception as e:  # the metric may be the user's own
            what = f"a wrong answer makes {task.metric_name} fail: {one_line(e, 120)}"
            yield Problem("warning", _at(task, example), what, "correct it, or such rows have no score")


def _several_labels(task: Task) -> Iterator[Problem]:
    """Yield the examples with several labels, of which `classify` could only ever give one."""
    (output,) = task.outputs
    for example in (e for split in task.splits().values() for e in split):
        if len(labels := answers_of(example[output])) > 1:
            name = task.columns.get(output, output)
            what = f"{name!r} holds {len(labels)} labels, and classify gives one"
            remedy = f"use `program: record` with `output: {{{name}: list}}` to score them all, or keep one a row"
            yield fault(_at(task, example), what, remedy)


def _gold_passages(task: Task) -> Iterator[Problem]:
    """Yield the examples whose gold passages are not in the corpus."""
    known = {p.id for p in task.corpus}
    for example in (e for split in task.splits().values() for e in split if "gold" in e):
        missing = [i for i in example["gold"] if i not in known]
        if missing:
            what = f"gold passage {missing[0]!r} is not in the corpus"
            yield fault(_at(task, example), what, "add the passage to the corpus or correct the id")


def _unseen_labels(task: Task) -> Iterator[Problem]:
    """Yield the first test example of each label that no train example has."""
    (output,) = task.outputs
    seen = {label for e in task.train for label in answers_of(e[output])}
    val = {label: _at(task, e) for e in task.val for label in answers_of(e[output])}
    for example in task.test:
        labels = answers_of(example[output])
        if seen.isdisjoint(labels):
            seen.update(labels)
            what = f"label {labels[0]!r} never stands in train"
            what += f", only in val ({val[labels[0]]})" if labels[0] in val else ""
            yield Problem("warning", _at(task, example), what, "add train rows with it; no arm can learn it from train")


def _doubtful_labels(task: Task) -> Iterator[Problem]:
    """Yield labels that look like one, or like none, and a task that has a single one."""
    (output,) = task.outputs
    counts = Counter(label for split in task.splits().values() for e in split for label in answers_of(e[output]))
    if len(counts) == 1:
        what = f"{next(iter(counts))!r} is the only label"
        yield Problem("warning", task.name, what, "add rows with others; now every arm can be right unread")
    for one, other in pairwise(sorted(counts, key=lambda label: (label.casefold(), label))):
        if one.casefold() == other.casefold():
            what = f"labels {one!r} ({counts[one]} rows) and {other!r} ({counts[other]}) differ by case alone"
            yield Problem("warning", task.name, what, "write them one way, or they are two labels")
    for label in (n for n in counts if n.casefold() in EMPTY_WORDS):
        rows = f"{counts[label]} row{'s' * (counts[label] != 1)}"
        what = f"label {label!r} ({rows}) looks like an empty cell"
        yield Problem("warning", task.name, what, "if it is, delete these rows")


def _contradictions(task: Task) -> Iterator[Problem]:
    """Yield the train questions that stand there twice without an answer in common."""
    first: dict[str, dspy.Example] = {}
    for example in task.train:
        other = first.setdefault(question_key(_asked(task, example)), example)
        if any(not _answer_set(example, name) & _answer_set(other, name) for name in task.outputs):
            what = f"this train question has another answer in {_at(task, other)}"
            yield Problem("warning", _at(task, example), what, "keep the right one; no arm can learn both")


def _answer_set(example: dspy.Example, output: str) -> set[str]:
    return {text_of(a) for a in answers_of(example[output])}


def _near_duplicates(task: Task) -> list[Problem]:
    """Return a warning that counts the test questions which are nearly the same as one of train."""
    train = [_runs(task, e) for e in task.train]
    holding: dict[str, list[int]] = {}
    for n, runs in enumerate(train):
        for run in runs:
            holding.setdefault(run, []).append(n)
    near = [(e, _nearest(_runs(task, e), train, holding)) for e in task.test]
    pairs = [(e, task.train[n]) for e, n in near if n is not None]
    if not pairs:
        return []
    one, other = pairs[0]
    what = f"{len(pairs)} of {len(task.test)} test questions nearly repeat one of train ({_at(task, other)})"
    remedy = "remove it, or memory will pass for skill"
    return [Problem("warning", _at(task, one), what, remedy)]


def _runs(task: Task, example: dspy.Example) -> set[str]:
    """Return the runs of words in an example's inputs."""
    words = question_key(_asked(task, example)).split()
    return {" ".join(words[n : n + RUN_OF_WORDS]) for n in range(max(1, len(words) - RUN_OF_WORDS + 1))}


def _nearest(runs: set[str], others: Sequence[set[str]], holding: Mapping[str, Sequence[int]]) -> int | None:
    """Return the first of the others that shares enough runs, though it is no exact copy.

    Two sets that share that much share at least one of the rarest runs, so that only those are looked up.
    """
    rare = sorted(runs, key=lambda run: (len(holding.get(run, ())), run))[: int(len(runs) * (1 - NEAR)) + 1]
    for n in sorted({n for run in rare for n in holding.get(run, ())}):
        if runs != others[n] and len(runs & others[n]) >= NEAR * len(runs | others[n]):
            return n
    return None
