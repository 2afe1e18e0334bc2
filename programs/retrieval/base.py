"""The interface of a retrieval backend."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np

Hits = list[tuple[str, float]]
"""Passage ids with their scores, best first."""


WORD = re.compile(r"[^\W_]")


@dataclass(frozen=True)
class Passage:
    """One retrievable text."""

    id: str
    """Stable id, referred to by the examples' gold ids."""
    text: str
    title: str = ""
    """Shown before the text, unless empty."""

    def render(self) -> str:
        """Return the passage as every arm and every model sees it."""
        return f"{self.title}: {self.text}" if self.title else self.text


class RetrievalFailed(Exception):
    """A backend stopped answering in the middle of a run; the cell that needed it fails, the others continue."""


@dataclass(frozen=True)
class Indexed:
    """Counts of passages after indexing a corpus."""

    added: int
    """New or changed passages."""
    kept: int
    """Passages that were indexed already."""
    removed: int = 0
    """Passages that had left the corpus."""


def silent(line: str) -> None:
    """Discard a progress message."""


def hits_of_worded(questions: Sequence[str], search: Callable[[list[str]], list[Hits]]) -> list[Hits]:
    """Return the hits of each question; one without a letter or digit has none, and is not searched for."""
    worded = [q for q in questions if WORD.search(q)]
    hits = iter(search(worded) if worded else [])
    return [next(hits) if WORD.search(q) else [] for q in questions]


def best_hits(ids: Sequence[str], scores: "np.ndarray", k: int) -> Hits:
    """Return the `k` highest scores, of equal ones the first; `scores` has shape (passages,)."""
    import numpy as np

    # All passages that reach the k-th best score, so that ties are broken by position alone.
    candidates = np.flatnonzero(scores >= np.partition(scores, -k)[-k])
    best = candidates[np.argsort(-scores[candidates], kind="stable")][:k]
    return [(ids[i], float(scores[i])) for i in best]


class Retriever(Protocol):
    """Index passages once, then search for many questions at a time.

    A backend is a dataclass whose fields, except `folder`, are its options in the experiment file.
    """

    def index(self, corpus: Sequence[Passage], progress: Callable[[str], None] = silent) -> Indexed:
        """Make the index equal to the corpus; passages that are indexed already are not indexed again."""
        ...

    def search(self, questions: Sequence[str], k: int) -> list[Hits]:
        """Return, for each question, up to `k` passage ids with their scores, best first.

        A question without a letter or digit has no hits.
        """
        ...

    def identity(self) -> str:
        """Return the hash of the model that decides the hits, empty if none does."""
        ...
