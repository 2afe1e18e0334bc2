"""Measure a ranking of passages against the gold passages: recall, MRR and nDCG."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Ranking:
    """Means over the questions that have gold passages."""

    recall: float
    """Share of the gold passages that are among the first k."""
    mrr: float
    """Reciprocal rank of the first gold passage, 0 if none is among the first k."""
    ndcg: float
    """Discounted gain divided by the best possible one: 1 when the gold passages come first."""
    with_gold: int
    """Questions that have gold passages."""


def rank_quality(shown: Sequence[Sequence[str]], gold: Sequence[Collection[str]]) -> Ranking | None:
    """Return the quality of the rankings against their questions' gold passages; None if no question has any."""
    pairs = [(list(dict.fromkeys(s)), set(g), len(s)) for s, g in zip(shown, gold, strict=True) if g]
    if not pairs:
        return None
    n = len(pairs)
    return Ranking(
        recall=sum(len(g.intersection(s)) / len(g) for s, g, _ in pairs) / n,
        mrr=sum(reciprocal_rank(s, g) for s, g, _ in pairs) / n,
        ndcg=sum(ndcg(s, g, k) for s, g, k in pairs) / n,
        with_gold=n,
    )


def reciprocal_rank(ids: Sequence[str], gold: Collection[str]) -> float:
    """Return 1 / (position of the first gold passage), 0 if there is none."""
    return next((1 / place for place, i in enumerate(ids, 1) if i in gold), 0.0)


def ndcg(ids: Sequence[str], gold: Collection[str], k: int) -> float:
    """Return the discounted gain divided by that of the best ranking of k passages."""
    gain = sum(1 / math.log2(place + 1) for place, i in enumerate(ids, 1) if i in gold)
    best = sum(1 / math.log2(place + 1) for place in range(1, min(k, len(gold)) + 1))
    return gain / best if best else 0.0
