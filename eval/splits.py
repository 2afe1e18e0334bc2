"""What an arm gets to see: nested train pools, and passages found once and shared by all."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import dspy

from eval.experiment import Retrieval
from programs.retrieval.base import Retriever
from programs.retrieval.bm25 import Bm25
from programs.task import Task, UserError


def train_pool(task: Task, size: int | None, seed: int) -> list[dspy.Example]:
    """Return the first `size` train examples in an order that the seed alone decides: 64 is inside 256."""
    order = sorted(task.train, key=lambda e: hashlib.sha256(f"{seed}:{e['id']}".encode()).hexdigest())
    return order if size is None else order[:size]


def question_text(example: dspy.Example) -> str:
    """Return what is searched for: every input but the passages."""
    return " ".join(str(v) for k, v in example.inputs().items() if k != "passages")


class Passages:
    """The passages of every question of a task, found once and kept in the store."""

    def __init__(self, task: Task, retrieval: Retrieval, folder: Path) -> None:
        """Index nothing yet; `folder` keeps what was found."""
        if retrieval.backend != "bm25":
            raise UserError(f"retrieval backend {retrieval.backend!r} is not available; use `backend: bm25`")
        self.task, self.k = task, retrieval.k
        self.texts = {p.id: p.render() for p in task.corpus}
        corpus = hashlib.sha256(json.dumps(sorted(self.texts.items())).encode()).hexdigest()
        self.file = folder / f"{retrieval.backend}-k{self.k}-{corpus[:16]}.json"
        self.found: dict[str, list[str]] = json.loads(self.file.read_text()) if self.file.exists() else {}
        self._retriever: Retriever | None = None

    def search(self, questions: Sequence[str]) -> list[list[str]]:
        """Return the ids of the k best passages for each question."""
        if self._retriever is None:
            self._retriever = Bm25()
            self._retriever.index(self.task.corpus)
        return [[i for i, _ in hits] for hits in self._retriever.search(questions, self.k)]

    def ids(self, examples: Sequence[dspy.Example], knowledge: str) -> list[list[str]]:
        """Return the passage ids of each example under a kind of knowledge."""
        if knowledge == "none":
            return [[] for _ in examples]
        if knowledge == "gold":
            return [[str(g) for g in e.get("gold", [])] for e in examples]
        questions = [question_text(e) for e in examples]
        missing = sorted({q for q in questions if q not in self.found})
        if missing:
            self.found |= dict(zip(missing, self.search(missing), strict=True))
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.write_text(json.dumps(self.found, ensure_ascii=False))
        return [self.found[q] for q in questions]

    def attach(self, examples: Sequence[dspy.Example], knowledge: str) -> list[dspy.Example]:
        """Return the examples with their passages as an input; those of tasks without a corpus as they are."""
        if not self.task.corpus:
            return list(examples)
        inputs = [*self.task.inputs, "passages"]
        return [
            e.copy(passages=[self.texts[i] for i in ids]).with_inputs(*dict.fromkeys(inputs))
            for e, ids in zip(examples, self.ids(examples, knowledge), strict=True)
        ]

    def recall(self, examples: Sequence[dspy.Example], knowledge: str) -> float | None:
        """Return the share of gold passages among those shown, over the examples that name any."""
        shares = [
            len(gold & set(ids)) / len(gold)
            for e, ids in zip(examples, self.ids(examples, knowledge), strict=True)
            if (gold := {str(g) for g in e.get("gold", [])})
        ]
        return sum(shares) / len(shares) if shares and self.task.corpus else None
