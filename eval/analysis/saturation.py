"""A saturating learning curve: score = limit - drop / (size^power + offset), fitted by least squares.

The curve of Morgan, Mercer and Flodin, which foretold learning curves best among sixteen (LCDB 1.0, Mohr et al. 2022).
Without offset it is the power law with an asymptote; with one it is a power law from some size on and bends below,
as scores do that start at nothing. Of power and offset a grid is tried; limit and drop follow from them by linear
regression, within 0 <= drop and limit <= 1; many samples at once.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

POWERS = np.geomspace(0.1, 4.0, 40)
BENDS = 20
"""Sizes at which a curve with an offset may bend, evenly over the logarithm."""
BENT = 6
"""Sizes from which an offset is tried: it is a fourth parameter."""
REACH = 4.0
"""Times the largest measured size up to which a crossing is looked for."""
STEPS = 600
"""Sizes at which curves are compared, evenly over the logarithm."""
NEVER = float("inf")


@dataclass(frozen=True)
class Curves:
    """Curves, one a sample: arrays of the same length."""

    limit: Array
    drop: Array
    power: Array
    offset: Array

    def at(self, sizes: Sequence[float] | Array) -> Array:
        """Return the scores, shape (samples, sizes)."""
        n = np.asarray(sizes, float)[None, :]
        return self.limit[:, None] - self.drop[:, None] / (n ** self.power[:, None] + self.offset[:, None])


def fit_curves(sizes: Sequence[float], scores: Array) -> Curves:
    """Return the curve of least squares for each row of scores, shape (samples, sizes).

    Raises:
        ValueError: fewer than three sizes, which three parameters go through whatever they are.
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
        # Where the regression leaves what is possible, the best on its border: flat, or a limit of 1.
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
    """Return curves of a method that learns nothing from more examples; shape (samples,)."""
    zero = np.zeros(len(scores))
    return Curves(np.asarray(scores, float), zero, zero + 1, zero)


def enough(curves: Curves, gain: float, sizes: Sequence[float]) -> Array:
    """Return the size from which doubling the examples buys less than `gain`: the smallest measured, or maybe `NEVER`.

    Looked for up to `REACH` times the largest measured size.
    """
    grid = _grid(sizes)
    return _for_good(grid, gain - (curves.at(2 * grid) - curves.at(grid)))


def overtakes(a: Curves, b: Curves, sizes: Sequence[float]) -> Array:
    """Return the size from which `a` stays above `b`: the smallest measured where it always is, else maybe `NEVER`.

    Looked for up to `REACH` times the largest measured size.
    """
    grid = _grid(sizes)
    return _for_good(grid, a.at(grid) - b.at(grid))


def _grid(sizes: Sequence[float]) -> Array:
    """Return the sizes that are looked at, evenly over the logarithm."""
    return np.geomspace(min(sizes), REACH * max(sizes), STEPS)


def _for_good(grid: Array, gap: Array) -> Array:
    """Return where each row of gaps, shape (samples, grid), rises above 0 for good; `NEVER` where it ends below."""
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
