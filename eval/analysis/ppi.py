"""Correct the scores of a judge on many answers by human grades of a few: prediction-powered inference.

Angelopoulos, Bates, Fannjiang, Jordan and Zrnic (2023), with the weight of PPI++ (Angelopoulos, Duchi and Zrnic 2023):
the mean of the judge over the unrated answers, plus the mean of (human - judge) over the rated ones, which must be a
random sample. For a judge that is uncorrelated with people the weight goes to 0 and leaves the human mean alone.
"""

import math
from collections.abc import Sequence

import numpy as np

from crossover.eval.analysis import quantiles
from crossover.eval.analysis.stats import ALPHA, Estimate, Floats

IMAGINED = 0.6
"""Difference of two imagined ratings, one each way, that widen the interval.

Where judge and people rarely differ, a sample may hold no difference at all: without the imagined ratings the interval
holds the truth in 90 of 100 samples of 40, with them in 94 to 99.
"""
FOLDS = 5
"""Folds of the cross-fitted weight."""


def corrected_mean(human: Sequence[float], judge: Sequence[float], unrated: Sequence[float]) -> Estimate:
    """Return the mean human score over all answers with its 95 % interval, scores being 0 to 1.

    `human` and `judge` are the two scores of the rated answers, `unrated` the judge's scores of the others.
    """
    y, f, rest = (np.asarray(v, dtype=float) for v in (human, judge, unrated))
    n, others = len(y), len(rest)
    if n < 2:
        return Estimate(float(np.mean(y)) if n else math.nan, 0.0, 1.0, n + others)
    weights = _weights(y, f, rest)
    left, weight = y - weights * f, float(np.mean(weights))
    mean = float(np.mean(left))
    parts = [(float(np.var([*left, mean + IMAGINED, mean - IMAGINED], ddof=1)) / n, n - 1)]
    if weight:
        mean += weight * float(np.mean(rest))
        parts.append((weight**2 * float(np.var(rest, ddof=1)) / others, others - 1))
    variance = sum(v for v, _ in parts)
    freedom = variance**2 / sum(v**2 / d for v, d in parts)
    half = quantiles.student(ALPHA / 2, freedom) * math.sqrt(variance)
    return Estimate(mean, max(0.0, mean - half), min(1.0, mean + half), n + others)


def _weights(y: Floats, f: Floats, rest: Floats) -> Floats:
    """Return the weight of the judge in each rated answer, estimated on the other folds so that it is independent."""
    folds = np.arange(len(y)) % FOLDS
    return np.array([_weight(y[folds != k], f[folds != k], rest) for k in range(FOLDS)])[folds]


def _weight(y: Floats, f: Floats, rest: Floats) -> float:
    """Return the weight from 0 to 1 that makes the interval shortest."""
    if len(y) < 2 or len(rest) < 2:
        return 0.0
    spread = float(np.var(np.concatenate([f, rest]), ddof=1))
    if spread < 1e-12:
        return 0.0
    covariance = float(np.cov(y, f, ddof=1)[0, 1])
    return min(1.0, max(0.0, covariance / ((1 + len(y) / len(rest)) * spread)))


def kappa(pairs: Sequence[tuple[str, str]], grades: Sequence[str]) -> float:
    """Return Cohen's kappa of two raters over ordered grades with linear weights.

    NaN where both gave one and the same grade to everything, where chance alone would agree as well.
    """
    from statsmodels.stats.inter_rater import cohens_kappa  # slow to import, and few runs have people's grades

    table = np.zeros((len(grades), len(grades)))
    for one, other in pairs:
        table[grades.index(one), grades.index(other)] += 1
    if not pairs or (np.count_nonzero(table.sum(axis=0)) < 2 and np.count_nonzero(table.sum(axis=1)) < 2):
        return math.nan
    return float(cohens_kappa(table, wt="linear", return_results=False))
