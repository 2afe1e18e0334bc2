"""A saturating learning curve: score = limit - drop x size^-power, fitted by least squares, many samples at once.

Of the power a grid is tried; limit and drop follow from it by linear regression, within 0 <= drop and limit <= 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

POWERS = np.geomspace(0.1, 4.0, 60)
REACH = 4.0
"""Times the largest measured size up to which a crossing is looked for."""
STEPS = 600
"""Sizes at which curves are compared, evenly over the logarithm."""
NEVER = float("inf")


@dataclass(frozen=True)
class PowerLaw:
    """Curves, one a sample: arrays of the same length."""

    limit: Array
    drop: Array
    power: Array

    def at(self, sizes: Sequence[float] | Array) -> Array:
        """Return the scores, shape (samples, sizes)."""
        return self.limit[:, None] - self.drop[:, None] * np.asarray(sizes, float)[None, :] ** -self.power[:, None]


def fit_power_laws(sizes: Sequence[float], scores: Array) -> PowerLaw:
    """Return the curve of least squares for each row of scores, shape (samples, sizes).

    Raises:
        ValueError: fewer than three sizes, which three parameters go through whatever they are.
    """
    if len(sizes) < 3:
        raise ValueError(f"{len(sizes)} sizes: a curve with a limit needs three")
    y, n = np.asarray(scores, float), np.asarray(sizes, float)
    least = np.full(len(y), np.inf)
    limit, drop, power = y.mean(1), np.zeros(len(y)), np.ones(len(y))
    for p in POWERS:
        x = n**-p
        centred = x - x.mean()
        slope = -(y - y.mean(1, keepdims=True)) @ centred / (centred @ centred)
        top = y.mean(1) + slope * x.mean()
        # Where the regression leaves what is possible, the best on its border: flat, or a limit of 1.
        slope = np.where(top > 1, (1 - y) @ x / (x @ x), slope)
        top = np.where(top > 1, 1.0, top)
        top, slope = np.where(slope < 0, y.mean(1), top), np.maximum(slope, 0)
        error = ((top[:, None] - slope[:, None] * x - y) ** 2).sum(1)
        better = error < least - 1e-12
        least = np.where(better, error, least)
        limit, drop, power = (
            np.where(better, new, old) for new, old in ((top, limit), (slope, drop), (np.full(len(y), p), power))
        )
    return PowerLaw(limit, drop, power)


def flat(scores: Array) -> PowerLaw:
    """Return curves of a method that learns nothing from more examples; shape (samples,)."""
    return PowerLaw(np.asarray(scores, float), np.zeros(len(scores)), np.ones(len(scores)))


def enough(curves: PowerLaw, gain: float, smallest: float) -> Array:
    """Return the size from which doubling the examples buys less than `gain`, at least the smallest measured."""
    with np.errstate(divide="ignore", over="ignore"):
        size = (curves.drop * (1 - 2.0**-curves.power) / gain) ** (1 / curves.power)
    return np.maximum(size, smallest)


def overtakes(a: PowerLaw, b: PowerLaw, sizes: Sequence[float]) -> Array:
    """Return the size from which `a` stays above `b`: the smallest measured where it always is, else maybe `NEVER`.

    Looked for up to `REACH` times the largest measured size.
    """
    grid = np.geomspace(min(sizes), REACH * max(sizes), STEPS)
    gap = a.at(grid) - b.at(grid)
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
