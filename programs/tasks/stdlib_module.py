"""Classify documentation strings, their names masked, by standard-library module (16 labels)."""

from collections import Counter
from collections.abc import Iterable
from functools import partial

import dspy

from crossover.programs.metrics import metric_for
from crossover.programs.modules.classify import build
from crossover.programs.splits import fold, fraction, opening, split_by_hash
from crossover.programs.task import Task
from crossover.programs.tasks.stdlib.docstrings import Documented, harvest, mask

WORDS = 30
"""Words of each documentation string that are shown."""
LABELS = [
    "asyncio",
    "calendar",
    "curses",
    "decimal",
    "email",
    "http",
    "logging",
    "mailbox",
    "math",
    "multiprocessing",
    "socket",
    "sqlite3",
    "tarfile",
    "threading",
    "unittest",
    "xml",
]
"""Modules that people know by name, so that a model can guess without an example; submodules are of the same label."""
MOST = 40
"""Examples per label, at most, which keeps frequent labels from dominating."""
SHARES = {"test": 0.25, "val": 0.1, "train": 0.65}
SIZES = {"test": 200, "val": 60, "train": 400}


def load() -> Task:
    """Return the task, the same for every run on one version of Python."""
    examples = {fold(e["text"]): e for e in map(_example, harvest()) if _has_enough_words(e["text"])}
    splits = split_by_hash(_balanced(examples.values()), group=lambda e: opening(e["text"]), shares=SHARES)
    train = splits["train"][: SIZES["train"]]
    labels = {e["label"] for e in train}
    val, test = ([e for e in splits[name] if e["label"] in labels][: SIZES[name]] for name in ("val", "test"))
    return Task(
        name="stdlib_module",
        program=partial(build, ("text",), output="label", labels=tuple(sorted(labels)), instructions=""),
        inputs=("text",),
        outputs=("label",),
        train=tuple(train),
        val=tuple(val),
        test=tuple(test),
        metric=metric_for("label_accuracy", "label"),
        metric_name="label_accuracy",
    )


def _example(item: Documented) -> dspy.Example:
    """Return the masked text of one callable and its label."""
    text = mask(" ".join(item.text.split()[:WORDS]), {*item.module.split("."), *item.name.split(".")})
    return dspy.Example(id=item.name, text=text, label=item.module.split(".")[0]).with_inputs("text")


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
