"""What every retrieval backend can do."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from crossover.programs.task import Passage

Hits = list[tuple[str, float]]
"""Passage ids with their scores, best first."""


class RetrievalFailed(Exception):
    """A backend that answered before stopped answering; the cell that needed it fails, the others go on."""


@dataclass(frozen=True)
class Indexed:
    """What indexing a corpus changed."""

    added: int
    """Passages that were new, or whose text had changed."""
    kept: int
    """Passages that were there already."""
    removed: int = 0
    """Passages that are no longer in the corpus."""


def silent(line: str) -> None:
    """Show no progress."""


class Retriever(Protocol):
    """Index passages once, then find those nearest to questions, many questions at a time.

    A backend is a dataclass; its fields are its options in the experiment file, all but `folder`.
    """

    def index(self, corpus: Sequence[Passage], progress: Callable[[str], None] = silent) -> Indexed:
        """Index the passages, in place of any indexed before; what is there already is not done again."""
        ...

    def search(self, questions: Sequence[str], k: int) -> list[Hits]:
        """Return, for each question, up to `k` passage ids with their scores, best first."""
        ...

    def identity(self) -> str:
        """Return what can change the hits besides options and corpus: the hash of a model, or nothing."""
        ...
