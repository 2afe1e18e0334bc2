"""Simulate what the verdict is built on, for `simulation.py verdicts`, beside each figure as it was before."""

import math
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from crossover.eval.analysis.contrast import adjust_pairs
from crossover.eval.analysis.rules import MARGIN
from crossover.eval.analysis.shares import paired_share_bound
from crossover.eval.analysis.stats import ALPHA, Difference, paired_difference, score_interval

Floats = NDArray[np.float64]


class Line(NamedTuple):
    """One line of the table."""

    what: str
    before: str
    """The figure of the audited version, of the same simulation or of the audit."""
    bar: str
    simulate: Callable[[int], float]
    """Return the share of so many draws, or a difference of scores."""
    unit: str = "%"


def equal_arms(rng: np.random.Generator, arms: int, n: int) -> Floats:
    """Return right/wrong scores of arms that are equally good, shape (arms, n)."""
    return (rng.random((arms, n)) < rng.beta(2, 1, n)).astype(float)


def mcnemar(wins: Floats, losses: Floats) -> Floats:
    """Return the exact p of many pairs of arms at once."""
    p: Floats = np.minimum(1.0, 2 * stats.binom.cdf(np.minimum(wins, losses), wins + losses, 0.5))
    return p


def difference(delta: float, p: float) -> Difference:
    """Return a difference of which only the sign and the p are known."""
    return Difference(delta, *[math.nan] * 4, p, "mcnemar", 0, math.nan)


def false_difference(arms: int, worse: int = 0, n: int = 200) -> Callable[[int], float]:
    """Return the share of draws in which any two equal arms are called different, `worse` of them equally bad."""
    first, second = np.array(list(combinations(range(arms), 2))).T
    names = [(str(a), str(b)) for a, b in zip(first, second, strict=True)]
    equal = (first < arms - worse) == (second < arms - worse)

    def simulate(draws: int) -> float:
        rng, found = np.random.default_rng(7), []
        for _ in range(draws):
            scores = equal_arms(rng, arms, n)
            scores[arms - worse :] *= rng.random((worse, n)) < 0.6
            wins = scores @ (1 - scores).T
            wins, losses = wins[first, second], wins[second, first]
            p = mcnemar(wins, losses)
            adjusted = adjust_pairs(names, [difference(*x) for x in zip(wins - losses, p, strict=True)])
            found.append(any(q <= ALPHA for (q, _), same in zip(adjusted, equal, strict=True) if same))
        return float(np.mean(found))

    return simulate


def lead(arms: int, gain: float, n: int, rng: np.random.Generator) -> Floats:
    """Return scores of equal arms, shape (arms, n), of which the first answers a share `gain` of its errors right."""
    scores = equal_arms(rng, arms, n)
    scores[0] = np.maximum(scores[0], rng.random(n) < gain)
    return scores


def power(arms: int, n: int = 400) -> Callable[[int], float]:
    """Return how often a lead of exactly the stated detectable difference is found over one other arm."""
    names = [(str(a), str(b)) for a, b in combinations(range(arms), 2)]
    first, second = np.array(list(combinations(range(arms), 2))).T

    def excess(gain: float) -> float:
        """Return a lead less the difference that is stated to be detectable with it."""
        a, b = lead(2, gain, 400_000, np.random.default_rng(1))
        stated = Difference(0, 0, 0, 0, 0, 1, "mcnemar", n, float(np.std(a - b)) / math.sqrt(n))
        return float(np.mean(a - b)) - stated.detectable(ALPHA / len(names))

    gain = float(optimize.brentq(excess, 0.0, 0.9, xtol=1e-3))

    def simulate(draws: int) -> float:
        rng, found = np.random.default_rng(8), 0
        for _ in range(draws):
            scores = lead(arms, gain, n, rng)
            wins = scores @ (1 - scores).T
            wins, losses = wins[first, second], wins[second, first]
            differences = [difference(*x) for x in zip(wins - losses, mcnemar(wins, losses), strict=True)]
            found += adjust_pairs(names, differences)[0][0] <= ALPHA
        return found / draws

    return simulate


def false_equivalence(losses: float, examples: Sequence[int] = range(120, 401, 40)) -> Callable[[int], float]:
    """Return how often arms that differ by exactly the margin are called equivalent, at the worst number of examples.

    The worse arm alone is right on a share `losses` of the examples.
    """

    def simulate(draws: int) -> float:
        rng, worst = np.random.default_rng(9), 0.0
        for n in examples:
            counts = rng.multinomial(n, [losses + MARGIN, losses, 1 - MARGIN - 2 * losses], size=25 * draws)[:, :2]
            kinds, often = np.unique(counts, axis=0, return_counts=True)
            bounds = [
                (-paired_share_bound(b, a, n, ALPHA), paired_share_bound(a, b, n, ALPHA)) for a, b in kinds.tolist()
            ]
            found = [low > -MARGIN and high < MARGIN for low, high in bounds]
            worst = max(worst, float(often @ np.array(found)) / often.sum())
        return worst

    return simulate


def uneven_clusters(clusters: int, *, graded: bool) -> Callable[[int], float]:
    """Return how often the interval of a difference, or of a right/wrong score, holds the truth.

    The sizes of the clusters vary by 95 % of their mean.
    """

    def simulate(draws: int) -> float:
        rng, held = np.random.default_rng(10), 0
        for _ in range(draws):
            sizes = np.maximum(1, rng.lognormal(2, 0.8, clusters).round().astype(int))
            group = np.repeat(np.arange(clusters), sizes)
            names = [str(g) for g in group]
            if graded:
                shift = rng.normal(0, 0.15, clusters)[group] + rng.normal(0, 0.3, len(group))
                ids = dict(enumerate(names))
                zero = dict.fromkeys(map(str, ids), 0.0)
                d = paired_difference(
                    {str(i): float(s) for i, s in enumerate(shift)}, zero, clusters={str(i): g for i, g in ids.items()}
                )
                held += d.low <= 0 <= d.high
            else:
                right = rng.random(len(group)) < rng.beta(7, 3, clusters)[group]
                e = score_interval(right.astype(float).tolist(), clusters=names)
                held += e.low <= 0.7 <= e.high
        return held / draws

    return simulate


LINES: tuple[Line, ...] = (
    Line("any two of 2 equal arms called different", "4.3 %", "<= 5 %", false_difference(2)),
    Line("any two of 4 equal arms called different", "2.5 %", "<= 5 %", false_difference(4)),
    Line("any two of 8 equal arms called different", "2.3 %", "<= 5 %", false_difference(8)),
    Line("any two of 9 equal arms called different", "9.9 %", "<= 5 %", false_difference(9)),
    Line("any two of 12 equal arms called different", "–", "<= 5 %", false_difference(12)),
    Line("any two of 16 equal arms called different", "15.1 %", "<= 5 %", false_difference(16)),
    Line("any two of 32 equal arms called different", "22.3 %", "<= 5 %", false_difference(32)),
    Line("any two equal arms of 4 good and 4 bad ones called different", "2.6 %", "<= 5 %", false_difference(8, 4)),
    Line("any two equal arms of 4 good and 28 bad ones called different", "5.9 %", "<= 5 %", false_difference(32, 28)),
    Line("the stated detectable lead found, 2 arms", "77 %", ">= 80 %", power(2)),
    Line("the stated detectable lead found, 3 arms", "65 %", ">= 80 %", power(3)),
    Line("the stated detectable lead found, 5 arms", "46 %", ">= 80 %", power(5)),
    Line("the stated detectable lead found, 8 arms", "34 %", ">= 80 %", power(8)),
    Line("equivalent at the margin, all disagreements one way", "9.8 %", "<= 5 %", false_equivalence(0.0)),
    Line("equivalent at the margin, the worse arm alone right on 1 %", "4.8 %", "<= 5 %", false_equivalence(0.01)),
    Line("interval of a score, 40 uneven clusters", "88-95 %", "93-97.5 %", uneven_clusters(40, graded=False)),
    Line("interval of a score, 15 uneven clusters", "88-95 %", "93-97.5 %", uneven_clusters(15, graded=False)),
    Line("interval of a difference, 40 uneven clusters", "88-95 %", "93-97.5 %", uneven_clusters(40, graded=True)),
    Line("interval of a difference, 15 uneven clusters", "88-95 %", "93-97.5 %", uneven_clusters(15, graded=True)),
)
