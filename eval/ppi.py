"""Correct what a judge says of many answers by what people say of a few: prediction-powered inference.

Angelopoulos, Bates, Fannjiang, Jordan and Zrnic (2023), with the weight of PPI++ (Angelopoulos, Duchi and Zrnic 2023):
the judge's mean over the unrated answers, moved by the mean of (human - judge) over the rated ones. The rated ones must
be a random sample. With a judge that knows nothing the weight goes to 0, and the human mean alone is left.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats
from statsmodels.stats.inter_rater import cohens_kappa

from eval.stats import ALPHA, Estimate


def corrected_mean(human: Sequence[float], judge: Sequence[float], unrated: Sequence[float]) -> Estimate:
    """Return the mean human score over all answers with its 95 % interval, scores being 0 to 1.

    `human` and `judge` are the two scores of the rated answers, `unrated` the judge's scores of the others.
    """
    y, f, rest = (np.asarray(v, dtype=float) for v in (human, judge, unrated))
    n, others = len(y), len(rest)
    if n < 2:
        return Estimate(float(np.mean(y)) if n else math.nan, 0.0, 1.0, n + others)
    weight = _weight(y, f, rest)
    left = y - weight * f
    parts = [(float(np.var(left, ddof=1)) / n, n - 1)]
    mean = float(np.mean(left))
    if others > 1:
        mean += weight * float(np.mean(rest))
        parts.append((weight**2 * float(np.var(rest, ddof=1)) / others, others - 1))
    elif weight:
        mean += weight * float(np.mean(f))
    variance = sum(v for v, _ in parts)
    freedom = variance**2 / sum(v**2 / d for v, d in parts if v) if variance else n - 1
    half = float(stats.t.ppf(1 - ALPHA / 2, freedom)) * math.sqrt(variance)
    # Raters who never differed so far may still differ in 3 of n answers: the rule of three.
    if np.ptp(left) < 1e-12:
        half += 3 / n
    return Estimate(mean, max(0.0, mean - half), min(1.0, mean + half), n + others)


def _weight(y: np.ndarray, f: np.ndarray, rest: np.ndarray) -> float:
    """Return how much the judge counts: what makes the interval shortest, from 0 to 1."""
    spread = float(np.var(np.concatenate([f, rest]), ddof=1))
    if len(rest) < 2 or spread < 1e-12:
        return 0.0
    covariance = float(np.cov(y, f, ddof=1)[0, 1])
    return min(1.0, max(0.0, covariance / ((1 + len(y) / len(rest)) * spread)))


def kappa(pairs: Sequence[tuple[str, str]], grades: Sequence[str]) -> float:
    """Return Cohen's kappa of two raters over ordered grades, a step apart counting less than two (linear weights).

    NaN where both gave one and the same grade to everything: chance alone would agree as well.
    """
    table = np.zeros((len(grades), len(grades)))
    for one, other in pairs:
        table[grades.index(one), grades.index(other)] += 1
    if not pairs or (np.count_nonzero(table.sum(axis=0)) < 2 and np.count_nonzero(table.sum(axis=1)) < 2):
        return math.nan
    return float(cohens_kappa(table, wt="linear", return_results=False))
