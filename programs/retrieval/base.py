"""What every retrieval backend can do."""

from collections.abc import Sequence
from typing import Protocol

from programs.task import Passage


class Retriever(Protocol):
    """Index passages once, then find those nearest to questions, many questions at a time."""

    def index(self, corpus: Sequence[Passage]) -> None:
        """Index the passages, in place of any indexed before."""
        ...

    def search(self, questions: Sequence[str], k: int) -> list[list[tuple[str, float]]]:
        """Return, for each question, up to `k` passage ids with their scores, best first."""
        ...
