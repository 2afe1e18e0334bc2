"""What an arm gets to see: nested pools of train, a sample of a limited test; and what is searched for."""

import hashlib
from collections.abc import Sequence

import dspy

from crossover.programs.splits import fraction
from crossover.programs.task import Task


def train_pool(task: Task, size: int | None, seed: int) -> list[dspy.Example]:
    """Return the first `size` train examples in an order that the seed alone decides: 64 is inside 256."""
    order = sorted(task.train, key=lambda e: hashlib.sha256(f"{seed}:{e['id']}".encode()).hexdigest())
    return order if size is None else order[:size]


def sample(examples: Sequence[dspy.Example], limit: int | None) -> list[dspy.Example]:
    """Return at most `limit` examples, chosen by the hash of their id, in their order: nested, the same for every arm.

    The first ones would not do: files are often sorted by label.
    """
    if limit is None or limit >= len(examples):
        return list(examples)
    chosen = {str(e["id"]) for e in sorted(examples, key=lambda e: fraction(str(e["id"])))[:limit]}
    return [e for e in examples if str(e["id"]) in chosen]


def sample_val(val: Sequence[dspy.Example], limit: int | None) -> list[dspy.Example]:
    """Return the val examples that a limit on test examples leaves: half as many, twenty at least."""
    return sample(val, None if limit is None else max(20, limit // 2))


def question_text(example: dspy.Example) -> str:
    """Return what is searched for: every input but the passages."""
    return " ".join(str(v) for k, v in example.inputs().items() if k != "passages")
