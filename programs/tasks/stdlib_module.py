"""Name the standard-library module of a method from its name and what it does (24 labels)."""

from collections import Counter
from collections.abc import Iterable
from functools import partial

import dspy

from crossover.programs.metrics import metric_for
from crossover.programs.modules.classify import build
from crossover.programs.splits import fold, fraction, opening, split_by_hash
from crossover.programs.task import Task
from crossover.programs.tasks.stdlib.docstrings import Documented, harvest, mask

WORDS = 12
"""Words of each documentation string that are shown."""
INSTRUCTIONS = "Name the module of Python's standard library that this method belongs to."
LABELS = [
    "asyncio",
    "bdb",
    "calendar",
    "curses",
    "datetime",
    "decimal",
    "email",
    "ftplib",
    "http",
    "imaplib",
    "importlib",
    "io",
    "logging",
    "mailbox",
    "multiprocessing",
    "pathlib",
    "pdb",
    "smtplib",
    "socket",
    "sqlite3",
    "symtable",
    "tarfile",
    "unittest",
    "xml",
]
"""Modules with enough methods for neighbours in train; the methods of a submodule have the label of its parent."""
MOST = 24
"""Examples per label, at most, which keeps frequent labels from dominating."""
SHARES = {"test": 0.25, "val": 0.1, "train": 0.65}
SIZES = {"test": 200, "val": 60, "train": 400}


def load() -> Task:
    """Return the task, the same for every run on one version of Python."""
    examples = {fold(e["text"]): e for e in map(_example, harvest()) if _is_method(e) and _has_enough_words(e["text"])}
    chosen = _balanced(examples.values())
    splits = split_by_hash(chosen, group=lambda e: opening(e["text"].partition(": ")[2]), shares=SHARES)
    train = splits["train"][: SIZES["train"]]
    labels = {e["label"] for e in train}
    val, test = ([e for e in splits[name] if e["label"] in labels][: SIZES[name]] for name in ("val", "test"))
    return Task(
        name="stdlib_module",
        program=partial(build, ("text",), output="label", labels=tuple(sorted(labels)), instructions=INSTRUCTIONS),
        inputs=("text",),
        outputs=("label",),
        train=tuple(train),
        val=tuple(val),
        test=tuple(test),
        metric=metric_for("label_accuracy", "label"),
        metric_name="label_accuracy",
    )


def _example(item: Documented) -> dspy.Example:
    """Return the name and the text of one callable, the names of its module masked, and its label."""
    text = f"{item.name.removeprefix(item.module + '.')}: {' '.join(item.text.split()[:WORDS])}"
    shown = mask(text, set(item.module.split(".")))
    return dspy.Example(id=item.name, text=shown, label=item.module.split(".")[0]).with_inputs("text")


def _is_method(example: dspy.Example) -> bool:
    """Return whether the text starts with the names of a class and one of its methods."""
    return "." in example["text"].partition(": ")[0]


def _has_enough_words(text: str) -> bool:
    """Return whether enough words are left after masking."""
    return sum("___" not in word for word in text.split()) >= 5


def _balanced(examples: Iterable[dspy.Example]) -> list[dspy.Example]:
    """Return the examples of the labels, at most `MOST` of each, in the order of their hashes."""
    chosen, seen = list[dspy.Example](), Counter[str]()
    for example in sorted(examples, key=lambda e: fraction(e["id"])):
        seen[example["label"]] += 1
        if example["label"] in LABELS and seen[example["label"]] <= MOST:
            chosen.append(example)
    return chosen
