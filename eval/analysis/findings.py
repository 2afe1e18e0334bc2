"""What follows from a difference: a word for it, the adjustment for many of them, how many more examples it takes."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from crossover.eval.analysis.stats import ALPHA, Difference

Finding = Literal["better", "worse", "equivalent", "inconclusive"]


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p values adjusted by Holm's method for a family of tests, in the order given."""
    # statsmodels has it too, and collects garbage first: a second in a process that has loaded models.
    adjusted, most = [0.0] * len(p_values), 0.0
    for rank, n in enumerate(np.argsort(p_values, kind="stable")):
        adjusted[n] = most = max(most, min(1.0, (len(p_values) - rank) * p_values[n]))
    return adjusted


def classify_difference(difference: Difference, p_holm: float, *, margin: float) -> Finding:
    """Return what the first arm is, compared with the second.

    Better or worse: adjusted p at most 0.05 and the 95 % interval clear of 0. Equivalent: the 90 % interval lies
    within the margin on both sides. Everything else is inconclusive.
    """
    if p_holm <= ALPHA and difference.low > 0:
        return "better"
    if p_holm <= ALPHA and difference.high < 0:
        return "worse"
    if -margin < difference.low90 and difference.high90 < margin:
        return "equivalent"
    return "inconclusive"


def examples_needed(difference: Difference, *, margin: float = 0.0) -> int | None:
    """Return about how many more examples would find a difference as large as the observed one, or the margin.

    The larger of the two counts, for a difference below the margin does not matter; None when no number of examples
    would: both are 0, or the seeds hide a difference of that size.
    """
    target, d = max(abs(difference.delta), margin), difference
    if target <= d.from_seeds:
        return None
    share = (d.detectable**2 - d.from_seeds**2) / (target**2 - d.from_seeds**2)
    return max(0, math.ceil(d.n * share) - d.n)
