"""Widen intervals by the spread of the seeds: how far an estimate would move if other seeds had been run.

An interval over examples takes the seeds as given. With two seeds or more their spread is added in quadrature, times
the t value of that many seeds. This is the closed form of resampling first seeds, then examples, without the bias of
that method towards narrow intervals when there are only two or three seeds. The noise of the examples is part of the
spread of the seeds and is not subtracted again, so such an interval errs on the wide side.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean, stdev

import numpy as np
from scipy import optimize

from crossover.eval.analysis import quantiles
from crossover.eval.analysis.stats import ALPHA, Difference, Estimate, score_interval

Scores = Mapping[str, float]


def seed_error(by_seed: Sequence[Scores]) -> float:
    """Return the standard error of the mean over seeds; 0 for a single seed, which shows no spread.

    Each seed is compared with the mean of the seeds that scored the same examples, so that a failed row does not count
    as a difference between seeds.
    """
    if len(by_seed) < 2:
        return 0.0
    if _alike(by_seed):
        return _error_of([fmean(scores.values()) for scores in by_seed])
    ids = sorted(set().union(*by_seed))
    table = np.array([[scores.get(i, math.nan) for i in ids] for scores in by_seed])
    deviations = np.nanmean(table - np.nanmean(table, axis=0), axis=1)
    return float(np.sqrt(np.sum(deviations**2) / (len(by_seed) - 1) / len(by_seed)))


def _alike(by_seed: Sequence[Scores]) -> bool:
    """Return whether all seeds scored the same examples, and at least one."""
    return bool(by_seed[0]) and all(scores.keys() == by_seed[0].keys() for scores in by_seed[1:])


def _error_of(means: Sequence[float]) -> float:
    """Return the standard error of the mean of the seeds' means; exactly 0 where they are equal."""
    return stdev(means) / math.sqrt(len(means)) if max(means) > min(means) else 0.0


def difference_error(a: Mapping[int, Scores], b: Mapping[int, Scores]) -> tuple[float, int]:
    """Return the standard error of `a - b` over seeds, and the number of seeds behind it; both map seed to scores.

    Seeds that both arms ran are paired. An arm with one seed against an arm with several counts as fixed.
    """
    shared = [s for s in a if s in b]
    if len(shared) > 1:
        if _alike([arm[s] for arm in (a, b) for s in shared]):
            # The mean of the differences is the difference of the means, and needs no differences.
            return _error_of([fmean(a[s].values()) - fmean(b[s].values()) for s in shared]), len(shared)
        pairs = [{i: a[s][i] - b[s][i] for i in a[s].keys() & b[s].keys()} for s in shared]
        return seed_error(pairs), len(shared)
    several = [list(arm.values()) for arm in (a, b) if len(arm) > 1]
    error = math.hypot(*(seed_error(arm) for arm in several))
    return error, min((len(arm) for arm in several), default=1)


def mean_scores(by_seed: Sequence[Scores]) -> Scores:
    """Return the mean score of each example over the seeds that scored it."""
    if len(by_seed) == 1:
        return by_seed[0]
    gathered: dict[str, list[float]] = {}
    for scores in by_seed:
        for i, score in scores.items():
            gathered.setdefault(i, []).append(score)
    return {i: sum(s) / len(s) for i, s in gathered.items()}


def mean_score(
    scores: Scores, clusters: Mapping[str, str], by_seed: Sequence[Scores] = (), *, tail: float = ALPHA / 2
) -> Estimate:
    """Return the mean of scores in 0..1 with its interval, widened by the spread of the seeds where there are several.

    `scores` are the means of `by_seed`, both by example id; the interval misses on each side with chance `tail`.
    """
    groups = [clusters[i] for i in scores] if clusters else None
    estimate, error = score_interval(list(scores.values()), clusters=groups, tail=tail), seed_error(by_seed)
    if error == 0:
        return estimate
    low, high = _widened(estimate.mean, estimate.low, estimate.high, _t(2 * tail, len(by_seed)) * error)
    return replace(estimate, low=max(0.0, low), high=min(1.0, high))


def widen_difference(difference: Difference, error: float, seeds: int) -> Difference:
    """Return the difference with intervals and p widened by the spread of the seeds.

    The p is the level at which the widened interval ends at 0, and never below that of the examples alone.
    """
    if error == 0:
        return difference
    d = difference
    low, high = _widened(d.delta, d.low, d.high, _t(ALPHA, seeds) * error)
    low90, high90 = _widened(d.delta, d.low90, d.high90, _t(2 * ALPHA, seeds) * error)
    examples = (d.high - d.low) / 2 / quantiles.normal(ALPHA / 2)

    def clear_of_0(level: float) -> float:
        half = math.hypot(quantiles.normal(level / 2) * examples, _t(level, seeds) * error)
        return half - abs(d.delta)

    p = 1.0 if clear_of_0(1 - 1e-9) >= 0 else 1e-12
    if p < 1 and clear_of_0(p) > 0:
        p = float(optimize.brentq(clear_of_0, p, 1 - 1e-9, xtol=1e-12))
    return replace(
        d,
        low=max(-1.0, low),
        high=min(1.0, high),
        low90=max(-1.0, low90),
        high90=min(1.0, high90),
        p=max(d.p, p),
        test=f"{d.test}, {seeds} seeds",
        seed_error=error,
    )


def _widened(middle: float, low: float, high: float, half: float) -> tuple[float, float]:
    """Return an interval with a second half-width added in quadrature on both sides."""
    return middle - math.hypot(middle - low, half), middle + math.hypot(high - middle, half)


def _t(level: float, seeds: int) -> float:
    """Return the two-sided t value for a number of seeds."""
    return quantiles.student(level / 2, seeds - 1)
