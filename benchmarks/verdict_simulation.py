"""Simulate what the verdict is built on; `simulation.py verdicts` writes the table, with each figure before its mending."""

from collections.abc import Callable
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from crossover.eval.analysis.contrast import holm
from crossover.eval.analysis.stats import ALPHA

Floats = NDArray[np.float64]


class Line(NamedTuple):
    """One line of the table."""

    what: str
    before: str
    """The figure of the audited version, of the same simulation or of the audit."""
    bar: str
    simulate: Callable[[int], float]
    """Return the share of so many draws."""


def equal_arms(rng: np.random.Generator, arms: int, n: int) -> Floats:
    """Return right/wrong scores of arms that are equally good, shape (arms, n)."""
    return (rng.random((arms, n)) < rng.beta(2, 1, n)).astype(float)


def mcnemar(wins: Floats, losses: Floats) -> Floats:
    """Return the exact p of many pairs of arms at once."""
    p: Floats = np.minimum(1.0, 2 * stats.binom.cdf(np.minimum(wins, losses), wins + losses, 0.5))
    return p


def false_difference(arms: int, n: int = 200) -> Callable[[int], float]:
    """Return the share of draws of equal arms in which Holm's p calls any two different."""
    first, second = np.array(list(combinations(range(arms), 2))).T

    def simulate(draws: int) -> float:
        rng = np.random.default_rng(7)
        wins = np.empty((draws, arms, arms))
        for k in range(draws):
            scores = equal_arms(rng, arms, n)
            wins[k] = scores @ (1 - scores).T
        p = mcnemar(wins[:, first, second], wins[:, second, first])
        return float(np.mean([min(holm(row.tolist())) <= ALPHA for row in p]))

    return simulate


LINES: tuple[Line, ...] = (
    Line("any two of 2 equal arms called different", "4.3 %", "<= 5 %", false_difference(2)),
    Line("any two of 8 equal arms called different", "2.3 %", "<= 5 %", false_difference(8)),
    Line("any two of 9 equal arms called different", "9.9 %", "<= 5 %", false_difference(9)),
    Line("any two of 16 equal arms called different", "15.1 %", "<= 5 %", false_difference(16)),
    Line("any two of 32 equal arms called different", "22.3 %", "<= 5 %", false_difference(32)),
)
