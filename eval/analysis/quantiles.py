"""Give the quantiles of the distributions behind intervals and tests.

From scipy.special, because importing scipy.stats takes longer than showing a finished run.
"""

import numpy as np
from scipy import special


def normal(tail: float) -> float:
    """Return the value that a standard normal variable exceeds with probability `tail`."""
    return -float(special.ndtri(tail))


def student(tail: float, freedom: float) -> float:
    """Return the value that a t variable with so many degrees of freedom exceeds with probability `tail`."""
    return -float(special.stdtrit(freedom, tail))


def student_interval(tail: float, freedom: float, mean: float, error: float) -> tuple[float, float]:
    """Return the t interval around `mean`, with `tail` outside each end, for a standard error and its freedom."""
    half = student(tail, freedom) * error
    return mean - half, mean + half


def student_test(ratio: float, freedom: float) -> float:
    """Return the two-sided p of a mean that is `ratio` standard errors away from 0."""
    return 2 * float(special.stdtr(freedom, -abs(ratio)))


def beta(tail: float, a: float, b: float) -> float:
    """Return the value that a beta variable with shapes `a` and `b` exceeds with probability `tail`."""
    return float(special.betainccinv(a, b, tail))


def binomial(below: float, n: int, share: float) -> int:
    """Return the smallest count of successes in `n` trials whose distribution function reaches `below`."""
    return int(np.searchsorted(special.bdtr(np.arange(n + 1), n, share), below))
