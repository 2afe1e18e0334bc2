"""Say what a function or class of the standard library does, from retrieved documentation strings."""

from collections import Counter
from collections.abc import Sequence
from functools import partial

import dspy

from crossover.programs.metrics import metric_for
from crossover.programs.modules.rag import build
from crossover.programs.retrieval.base import Passage
from crossover.programs.splits import fold, fraction, opening, split_by_hash
from crossover.programs.task import Task
from crossover.programs.tasks.stdlib.docstrings import Documented, harvest

WORDS = 16
"""Words of each documentation string in the corpus."""
INSTRUCTIONS = "Answer in one sentence, in the words of the passage that the question is about."
SENTENCE = range(5, 14)
"""Bounds of the words of a sentence that is an answer; its passage holds all of it."""
SHARES = {"test": 0.1, "val": 0.05, "train": 0.85}
SIZES = {"test": 200, "val": 100, "train": 2000}


def load() -> Task:
    """Return the task, the same for every run on one version of Python."""
    items = harvest()
    examples = [_example(item) for item in items if len(item.sentence.split()) in SENTENCE]
    asked = sorted(_distinct(examples), key=lambda e: fraction(e["id"]))
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
        metric=metric_for("token_f1", "answer"),
        metric_name="token_f1",
        corpus=tuple(Passage(item.name, " ".join(item.text.split()[:WORDS]), item.name) for item in items),
    )


def _distinct(examples: Sequence[dspy.Example]) -> list[dspy.Example]:
    """Return the examples without those that another resembles, which would teach the answers of the test set.

    `inspect.signature` and `inspect.Signature` are one question to a search, and methods of several classes share a
    sentence.
    """
    questions = Counter(fold(e["question"]) for e in examples)
    answers = Counter(opening(e["answer"]) for e in examples)
    return [e for e in examples if questions[fold(e["question"])] == answers[opening(e["answer"])] == 1]


def _example(item: Documented) -> dspy.Example:
    """Return the question for one callable, and the first sentence of its documentation as the answer."""
    question, answer = f"What does {item.name} do?", item.sentence
    return dspy.Example(id=item.name, question=question, answer=answer, gold=[item.name]).with_inputs("question")
