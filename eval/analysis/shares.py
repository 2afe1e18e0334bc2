"""Compute intervals and tests of right/wrong scores, paired or not, and the spread of scores in clusters."""

import math
from collections.abc import Sequence

import numpy as np
from scipy import optimize, special

from crossover.eval.analysis import quantiles


def wilson(mean: float, count: float, tail: float) -> tuple[float, float]:
    """Return the interval of Wilson (1927), with `tail` outside each end, for a share of `count`.

    Unlike scipy's, `count` may be a fraction. statsmodels has it too, but takes a third of a second to import.
    """
    z = quantiles.normal(tail)
    middle, room = mean + z * z / (2 * count), z * math.sqrt(mean * (1 - mean) / count + (z / (2 * count)) ** 2)
    return (middle - room) / (1 + z * z / count), (middle + room) / (1 + z * z / count)


def mcnemar(wins: int, losses: int) -> float:
    """Return the p of McNemar's exact test, which is the sign test over the pairs that differ."""
    return min(1.0, 2 * float(special.bdtr(min(wins, losses), wins + losses, 0.5)))


def paired_share_bound(wins: int, losses: int, n: int, tail: float) -> float:
    """Return the upper bound, with probability `tail` above it, of a difference of paired right/wrong scores.

    The score bound of Tango (1998), Statistics in Medicine 17:891; `wins` and `losses` count the pairs of which only
    the first or the second arm is right. Where no pair is lost, the exact bound of Clopper and Pearson (1934) for the
    share of wins replaces it if that is wider, because no score interval holds its level for a share so near 0.
    """
    z = quantiles.normal(tail)

    def excess(d: float) -> float:
        b = (2 * n - wins + losses) * d - wins - losses
        share = (math.sqrt(max(0.0, b * b + 8 * n * losses * d * (1 - d))) - b) / (4 * n)
        return wins - losses - n * d + z * math.sqrt(max(0.0, n * (2 * share + d * (1 - d))))

    if wins == n:
        return 1.0
    score = float(optimize.brentq(excess, (wins - losses) / n, 1.0))
    return score if losses else max(score, quantiles.beta(tail, wins + 1, n - wins))


def jackknife(values: Sequence[float], clusters: Sequence[str]) -> tuple[float, float]:
    """Return the standard error of the mean by leaving out one cluster at a time, and its degrees of freedom.

    With clusters of uneven size these are (sum of sizes)^2 / (sum of squared sizes) - 1, not their number less one.
    """
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    totals, sizes = np.bincount(index, weights=np.asarray(values, dtype=float)), np.bincount(index).astype(float)
    freedom = float(sizes.sum() ** 2 / (sizes**2).sum()) - 1
    if len(sizes) < 2:
        return 0.0, freedom
    without = (totals.sum() - totals) / (sizes.sum() - sizes)
    spread = float(((without - np.mean(values)) ** 2).sum())
    return math.sqrt(spread * (len(sizes) - 1) / len(sizes)), freedom


def effective_size(scores: Sequence[float], clusters: Sequence[str], tail: float) -> float:
    """Return the effective sample size: how many independent binary scores are worth the scores in these clusters.

    After Korn and Graubard (1998), with the penalty of the t distribution for few clusters at `tail`; never below the
    number of clusters of even size that these are worth, which is also the result when all clusters are equal.
    """
    mean = float(np.mean(scores))
    error, freedom = jackknife(scores, clusters)
    if error < 1e-9:
        return freedom + 1
    penalty = (quantiles.normal(tail) / quantiles.student(tail, freedom)) ** 2
    return float(np.clip(mean * (1 - mean) / error**2 * penalty, freedom + 1, len(scores)))
