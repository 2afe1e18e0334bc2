"""Turn scores into intervals, differences and tests, with scipy.

Failed rows are absent from the scores, never zeros. Intervals treat the test examples as a sample of a larger
population; seeds.py widens them by the spread of several seeds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossover.eval.analysis import quantiles
from crossover.eval.analysis.shares import effective_size, jackknife, mcnemar, paired_share_bound, wilson
from crossover.models.errors import UserError

Floats = NDArray[np.float64]

ALPHA = 0.05
"""Error rate of every interval and test."""
POWER = 0.80
"""Power at which the smallest detectable difference is stated."""
RESAMPLES = 4999
"""Draws of a bootstrap or a permutation test."""
FEW = 30
"""With fewer independent units a bootstrap is too narrow, and a conservative interval replaces it."""
FEWEST_CLUSTERS = 6
"""With fewer clusters a conservative interval replaces the t interval of a difference."""
MANY = 2000
"""With more independent units the t interval and test agree with the resampled ones."""


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval."""

    mean: float
    """The estimate, for latencies a quantile; NaN without data."""
    low: float
    """Lower end; NaN without data."""
    high: float
    """Upper end; infinite when the data give no bound, such as p99 of 50 latencies; NaN without data."""
    n: int
    """Observations."""


@dataclass(frozen=True)
class Difference:
    """Mean of a minus mean of b, paired by example."""

    delta: float
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end of the 95 % interval."""
    low90: float
    """Lower end of the 90 % interval, which decides equivalence (two one-sided tests at 5 %)."""
    high90: float
    """Upper end of the 90 % interval."""
    p: float
    """Two-sided p of no difference, before any adjustment."""
    test: str
    """`mcnemar`, `sign-flip` or `t`."""
    n: int
    """Pairs."""
    error: float
    """Standard error of `delta` over examples."""
    seed_error: float = 0.0
    """Standard error of `delta` over seeds, which more examples cannot reduce; 0 for a single seed."""

    def detectable(self, level: float = ALPHA) -> float:
        """Return the smallest true difference that a test at `level` detects with 80 % power.

        Above 1 when these data could detect none.
        """
        factor, examples = power_factor(level), power_factor(level) * self.error
        if self.test.startswith("mcnemar"):
            # Without a difference the pairs vary more; and the exact test loses about a pair and a half to its steps.
            wider = self.error * (math.hypot(1, factor / math.sqrt(self.n)) - 1)
            examples += 1.5 / self.n + quantiles.normal(level / 2) * wider
            # However few pairs differ, so many must do so in one direction.
            examples = max(examples, (1 + math.ceil(math.log2(1 / level))) / self.n)
        return math.hypot(examples, factor * self.seed_error)


def score_interval(
    scores: Sequence[float], *, clusters: Sequence[str] | None = None, seed: int = 0, tail: float = ALPHA / 2
) -> Estimate:
    """Return the mean of scores in 0..1 with its interval, which misses the truth on each side with chance `tail`.

    Wilson when every score is 0 or 1, BCa bootstrap otherwise. Where a bootstrap would be too narrow (fewer than `FEW`
    scores, or all equal) Wilson's interval replaces it, because no score in 0..1 varies more than a binary score of the
    same mean. With clusters it is Wilson's interval for their effective sample size, or for graded scores in `FEW`
    clusters or more the t interval of the jackknife over clusters.
    """
    if (n := len(scores)) == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    units = np.asarray(scores, dtype=float)
    mean = float(np.mean(scores))
    binary = set(scores) <= {0.0, 1.0}
    if clusters is not None and not binary and len(set(clusters)) >= FEW and np.ptp(units) > 1e-12:
        error, freedom = jackknife(scores, clusters)
        low, high = quantiles.student_interval(tail, freedom, mean, error)
    elif clusters is not None:
        low, high = wilson(mean, effective_size(scores, clusters, tail), tail)
    elif binary or n < FEW or np.ptp(units) < 1e-12:
        low, high = wilson(mean, n, tail)
    else:
        ((low, high),) = _intervals(units, seed, tails=[tail])
    return Estimate(mean, max(0.0, float(low)), min(1.0, float(high)), n)


def paired_difference(
    a: Mapping[str, float],
    b: Mapping[str, float],
    *,
    clusters: Mapping[str, str] | None = None,
    seed: int = 0,
    resampled: bool = True,
) -> Difference:
    """Return the mean of `a` minus the mean of `b`, paired by example id.

    Both must hold the same ids: a caller whose arms failed on some examples passes the ids that both scored. Binary
    scores get McNemar's exact test, the 95 % interval of Bonett and Price and the 90 % interval of Tango; graded or
    clustered ones the sign-flip test and the BCa bootstrap over units, or the t test and interval above `MANY` units,
    without `resampled` from `FEW` units on.
    """
    most = MANY if resampled else FEW - 1
    if a.keys() != b.keys():
        odd = sorted(a.keys() ^ b.keys())
        what = f"the arms were scored on different examples ({odd[0]!r} and {len(odd) - 1} more)"
        raise UserError(f"{what}; run both on one split")
    if not a:
        raise UserError("no example was scored by both arms; look at the failures of their rows")
    ids, differences = list(a), [a[i] - b[i] for i in a]
    groups = [clusters[i] for i in ids] if clusters else None
    units = _units(differences, groups)
    count, wins, losses = len(units), sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    binary = groups is None and set(a.values()) | set(b.values()) <= {0.0, 1.0}
    if binary:
        p, test = mcnemar(wins, losses), "mcnemar"
    else:
        p, test = _no_difference(_totals(differences, groups), seed, most)
    delta, error = float(np.mean(differences)), 0.0
    if groups is not None and count >= FEWEST_CLUSTERS and np.ptp(units) > 1e-12:
        # Means of clusters are nearly normal even where the scores of examples are not.
        error, freedom = jackknife(differences, groups)
        (low, high), (low90, high90) = (
            quantiles.student_interval(tail, freedom, delta, error) for tail in (ALPHA / 2, ALPHA)
        )
    elif binary or count < FEW or np.ptp(units) < 1e-12:
        units = np.append(units, [1.0, -1.0])
        (low, high), (low90, high90) = _padded_intervals(units)
    else:
        (low, high), (low90, high90) = _intervals(units, seed, most)
    if binary:
        low90, high90 = -paired_share_bound(losses, wins, count, ALPHA), paired_share_bound(wins, losses, count, ALPHA)
    error = error or float(np.std(units)) / math.sqrt(count)
    return Difference(delta, *_within_one(low, high), *_within_one(low90, high90), p, test, len(ids), error)


def mean_interval(values: Sequence[float], *, seed: int = 0) -> Estimate:
    """Return the mean of dollars or seconds with its 95 % interval, which is infinite for fewer than two values."""
    x = np.asarray(values, dtype=float)
    mean = float(np.mean(x)) if len(x) else math.nan
    if len(x) < 2:
        return Estimate(mean, -math.inf, math.inf, len(x))
    low, high = (mean, mean) if np.ptp(x) <= 1e-9 * abs(mean) else _intervals(x, seed)[0]
    return Estimate(mean, low, high, len(x))


def _totals(values: Sequence[float], clusters: Sequence[str] | None) -> Floats:
    """Return the total of each cluster over the mean cluster size; their mean is the mean of the values."""
    x = np.asarray(values, dtype=float)
    if clusters is None:
        return x
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    totals: Floats = np.bincount(index, weights=x).astype(np.float64)
    return totals * (len(totals) / len(x))


def _units(values: Sequence[float], clusters: Sequence[str] | None) -> Floats:
    """Return one independent value for each cluster, whose mean and variance are those of the mean of `values`.

    Values are linearised, so that differences in cluster size do not count as noise.
    """
    totals = _totals(values, clusters)
    mean = float(np.mean(values))
    sizes = _totals([1.0] * len(values), clusters)
    units: Floats = mean + totals - mean * sizes
    return units


def _intervals(
    units: Floats, seed: int, most: int = MANY, tails: Sequence[float] = (ALPHA / 2, ALPHA)
) -> list[tuple[float, float]]:
    """Return an interval of the mean for each of `tails`: BCa bootstrap, or the t interval above `most` units.

    A bootstrap interval is too narrow for few units, because it divides by n rather than n - 1 and uses the normal in
    place of the t distribution; it is expanded by both (Hesterberg 2015).
    """
    if len(units) > most:
        at = (len(units) - 1, float(np.mean(units)), _standard_error(units))
        return [quantiles.student_interval(tail, *at) for tail in tails]
    from scipy import stats  # slow to import

    result: Any = None
    intervals = []
    for tail in tails:
        result = stats.bootstrap(
            (units,),
            np.mean,
            confidence_level=1 - 2 * tail,
            n_resamples=0 if result else RESAMPLES,
            method="BCa",
            bootstrap_result=result,
            rng=np.random.default_rng(seed),
            batch=500,
        )
        mean, n = float(np.mean(units)), len(units)
        wider = math.sqrt(n / (n - 1)) * quantiles.student(tail, n - 1) / quantiles.normal(tail)
        ends = (float(result.confidence_interval.low), float(result.confidence_interval.high))
        intervals.append((mean + wider * (ends[0] - mean), mean + wider * (ends[1] - mean)))
    return intervals


def _padded_intervals(padded: Floats) -> list[tuple[float, float]]:
    """Return the 95 % and 90 % normal intervals of differences padded with one win and one loss.

    For binary scores this is the interval of Bonett and Price (2012), which never has width 0.
    """
    mean, error = float(np.mean(padded)), float(np.std(padded)) / math.sqrt(len(padded))
    half = [quantiles.normal(tail) * error for tail in (ALPHA / 2, ALPHA)]
    return [(mean - h, mean + h) for h in half]


def _standard_error(units: Floats) -> float:
    """Return the standard error of the mean of independent values."""
    return float(np.std(units, ddof=1)) / math.sqrt(len(units))


def _within_one(low: float, high: float) -> tuple[float, float]:
    """Return the interval clipped to -1..1, the range of a difference of scores."""
    return max(-1.0, low), min(1.0, high)


def _no_difference(units: Floats, seed: int, most: int) -> tuple[float, str]:
    """Return the p of mean 0 and the name of the test: sign-flip (exact for few units), or t above `most`."""
    # Flipping a zero changes nothing; without zeros the exact test stays affordable.
    units = units[np.abs(units) > 1e-12]
    # Both flips of a single unit are equally far from 0.
    if len(units) < 2:
        return 1.0, "sign-flip"
    if len(units) > most:
        error = _standard_error(units)
        return quantiles.student_test(float(np.mean(units)) / error if error else math.inf, len(units) - 1), "t"
    from scipy import stats  # slow to import

    result = stats.permutation_test(
        (units,),
        np.sum,
        permutation_type="samples",
        n_resamples=RESAMPLES,
        vectorized=True,
        batch=500,
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue), "sign-flip"


def power_factor(level: float) -> float:
    """Return the number of standard errors in a difference that a test at `level` detects with power `POWER`."""
    return quantiles.normal(level / 2) + quantiles.normal(1 - POWER)
