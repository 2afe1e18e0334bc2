"""Name the standard-library callable that a question describes, from retrieved documentation strings."""

from collections import Counter
from functools import partial

import dspy

from crossover.programs.metrics import metric_for
from crossover.programs.modules.rag import build
from crossover.programs.splits import fold, fraction, opening, split_by_hash
from crossover.programs.task import Passage, Task
from crossover.programs.tasks.stdlib.docstrings import Documented, harvest, mask

WORDS = 25
"""Words of each documentation string in the corpus."""
INSTRUCTIONS = "Name the function or class that the question describes, as it stands in one of the passages."
SENTENCE = range(5, 31)
"""Bounds of the words of a sentence that becomes a question."""
SHARES = {"test": 0.1, "val": 0.05, "train": 0.85}
SIZES = {"test": 200, "val": 100, "train": 2000}


def load() -> Task:
    """Return the task, the same for every run on one version of Python."""
    items = harvest()
    examples = [_example(item) for item in items if len(item.sentence.split()) in SENTENCE]
    # A sentence that describes two callables has no single right answer.
    times = Counter(fold(e["question"]) for e in examples)
    asked = sorted((e for e in examples if times[fold(e["question"])] == 1), key=lambda e: fraction(e["id"]))
    splits = split_by_hash(asked, group=lambda e: opening(e["question"]), shares=SHARES)
    train, val, test = (tuple(splits[name][: SIZES[name]]) for name in ("train", "val", "test"))
    return Task(
        name="stdlib_rag",
        program=partial(build, ("question",), output="answer", labels=(), instructions=INSTRUCTIONS),
        inputs=("question",),
        outputs=("answer",),
        train=train,
        val=val,
        test=test,
        metric=metric_for("exact_match", "answer"),
        metric_name="exact_match",
        corpus=tuple(Passage(item.name, " ".join(item.text.split()[:WORDS]), item.name) for item in items),
    )


def _example(item: Documented) -> dspy.Example:
    """Return the question for one callable: what it does, without its own name."""
    question = mask(item.sentence, {item.name.rpartition(".")[2]})
    return dspy.Example(id=item.name, question=question, answer=item.name, gold=[item.name]).with_inputs("question")
