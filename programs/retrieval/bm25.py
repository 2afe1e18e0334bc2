"""Retrieve by BM25 with the bm25s package, in process."""

from collections.abc import Sequence
from typing import Any

from programs.task import Passage


class Bm25:
    """BM25 over lower-cased words without English stop words; equal scores keep the order of the corpus."""

    def __init__(self) -> None:
        """Start with an empty index."""
        self._ids: list[str] = []
        self._scorer: Any = None

    def index(self, corpus: Sequence[Passage]) -> None:
        """Index the passages, in place of any indexed before."""
        import bm25s

        self._ids = [p.id for p in corpus]
        words = _words([p.render() for p in corpus])
        # bm25s cannot index texts that hold no word at all.
        self._scorer = bm25s.BM25(backend="numpy") if any(words) else None
        if self._scorer is not None:
            self._scorer.index(words, show_progress=False)

    def search(self, questions: Sequence[str], k: int) -> list[list[tuple[str, float]]]:
        """Return, for each question, up to `k` passage ids with their scores, best first.

        A question without a known word scores every passage 0.0.
        """
        import numpy as np

        k = min(k, len(self._ids))
        if k < 1:
            return [[] for _ in questions]
        found = []
        for words in _words(questions):
            known = self._scorer.get_tokens_ids(words) if self._scorer is not None else []
            scores = self._scorer.get_scores(known) if known else np.zeros(len(self._ids), dtype=np.float32)
            # Candidates are all that reach the k-th best score, so that ties are broken by position alone.
            candidates = np.flatnonzero(scores >= np.partition(scores, -k)[-k])
            best = candidates[np.argsort(-scores[candidates], kind="stable")][:k]
            found.append([(self._ids[i], float(scores[i])) for i in best])
        return found


def _words(texts: Sequence[str]) -> list[list[str]]:
    """Return the words of each text that BM25 counts."""
    import bm25s

    words: list[list[str]] = bm25s.tokenize(list(texts), stopwords="en", return_ids=False, show_progress=False)
    return words
