"""Fit a saturating learning curve, score = limit - drop / (size^power + offset), by least squares.

The curve of Morgan, Mercer and Flodin extrapolated best among sixteen (LCDB 1.0, Mohr et al. 2022). Without an offset
it is the power law with an asymptote; with one it follows a power law from some size on and bends below, as scores do
that start at 0. Power and offset are searched on a grid; limit and drop follow by linear regression, bounded by
0 <= drop and limit <= 1. Many samples are fitted at once.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

POWERS = np.geomspace(0.1, 4.0, 40)
BENDS = 20
"""Grid points for the size at which a curve with an offset bends, evenly over the logarithm."""
BENT = 6
"""Fewest sizes to which an offset, the fourth parameter, is fitted."""
REACH = 4.0
"""Sizes are searched up to this many times the largest measured one."""
STEPS = 600
"""Grid points at which curves are compared, evenly over the logarithm of the size."""
NEVER = float("inf")


@dataclass(frozen=True)
class Curves:
    """Parameters of many curves, one for each sample, in arrays of one length."""

    limit: Array
    drop: Array
    power: Array
    offset: Array

    def at(self, sizes: Sequence[float] | Array) -> Array:
        """Return the scores of all curves at the sizes, shape (samples, sizes)."""
        n = np.asarray(sizes, float)[None, :]
        return self.limit[:, None] - self.drop[:, None] / (n ** self.power[:, None] + self.offset[:, None])


def fit_curves(sizes: Sequence[float], scores: Array) -> Curves:
    """Return the least-squares curve of each row of scores, shape (samples, sizes).

    Raises:
        ValueError: there are fewer than three sizes, through which three parameters always fit exactly.
    """
    if len(sizes) < 3:
        raise ValueError(f"{len(sizes)} sizes: a curve with a limit needs three")
    y, n = np.asarray(scores, float), np.asarray(sizes, float)
    mean, zero = y.mean(1), np.zeros(len(y))
    least, best = np.full(len(y), np.inf), [mean, zero, np.ones(len(y)), zero]
    bends = [0.0, *np.geomspace(n.min(), REACH * n.max(), BENDS)] if len(sizes) >= BENT else [0.0]
    for p, bend in itertools.product(POWERS, bends):
        x = 1 / (n**p + bend**p)
        scale = x.max()
        x = x / scale
        centred = x - x.mean()
        slope = -(y - mean[:, None]) @ centred / (centred @ centred)
        top = mean + slope * x.mean()
        # Where the regression leaves the bounds, the best curve on them: flat, or with a limit of 1.
        slope = np.where(top > 1, (1 - y) @ x / (x @ x), slope)
        top = np.where(top > 1, 1.0, top)
        top, slope = np.where(slope < 0, mean, top), np.maximum(slope, 0)
        error = ((top[:, None] - slope[:, None] * x - y) ** 2).sum(1)
        better = error < least - 1e-12
        least = np.where(better, error, least)
        new = (top, slope / scale, p, bend**p)
        best = [np.where(better, value, old) for value, old in zip(new, best, strict=True)]
    return Curves(*best)


def flat(scores: Array) -> Curves:
    """Return level curves at the scores, shape (samples,), for a method that learns nothing from train."""
    zero = np.zeros(len(scores))
    return Curves(np.asarray(scores, float), zero, zero + 1, zero)


def saturation_size(curves: Curves, gain: float, sizes: Sequence[float]) -> Array:
    """Return the size of each sample from which doubling the examples buys less than `gain`, or `NEVER`.

    The search runs from the smallest size to `REACH` times the largest.
    """
    grid = _grid(sizes)
    return _stays_positive(grid, gain - (curves.at(2 * grid) - curves.at(grid)))


def crossover_size(a: Curves, b: Curves, sizes: Sequence[float], *, gap: Array | None = None) -> Array:
    """Return the size of each sample from which `a` stays above `b`, or `NEVER`.

    The search runs from the smallest size, which is returned where `a` is always above, to `REACH` times the largest.
    With `gap`, shape (samples,), the difference that was measured at the smallest size, the curves are shifted to it.
    """
    grid = _grid(sizes)
    gaps = a.at(grid) - b.at(grid)
    return _stays_positive(grid, gaps if gap is None else gaps - gaps[:, :1] + gap[:, None])


def _grid(sizes: Sequence[float]) -> Array:
    """Return the sizes at which curves are compared, evenly over the logarithm."""
    return np.geomspace(min(sizes), REACH * max(sizes), STEPS)


def _stays_positive(grid: Array, gap: Array) -> Array:
    """Return where each row of gaps, shape (samples, grid), rises above 0 for good, `NEVER` where it ends below."""
    behind = gap <= 1e-9
    last = np.where(behind.any(1), gap.shape[1] - 1 - behind[:, ::-1].argmax(1), -1)
    found = np.full(len(gap), grid[0])
    found[last == len(grid) - 1] = NEVER
    between = np.flatnonzero((last >= 0) & (last < len(grid) - 1))
    i = last[between]
    before, after = gap[between, i], gap[between, i + 1]
    share = np.clip(-before / (after - before), 0, 1)
    found[between] = np.exp(np.log(grid[i]) + share * (np.log(grid[i + 1]) - np.log(grid[i])))
    return found
