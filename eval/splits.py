"""What an arm gets to see of train: nested pools; and what is searched for."""

import hashlib

import dspy

from programs.task import Task


def train_pool(task: Task, size: int | None, seed: int) -> list[dspy.Example]:
    """Return the first `size` train examples in an order that the seed alone decides: 64 is inside 256."""
    order = sorted(task.train, key=lambda e: hashlib.sha256(f"{seed}:{e['id']}".encode()).hexdigest())
    return order if size is None else order[:size]


def question_text(example: dspy.Example) -> str:
    """Return what is searched for: every input but the passages."""
    return " ".join(str(v) for k, v in example.inputs().items() if k != "passages")
