"""Drop an arm from a race once it is shown to be worse than another by more than a margin, however often one looks.

For each pair (i, j) a bettor starts with one unit and bets on each example in turn that i is better than j by more than
the margin. If it is not, in the population that the examples come from, the expected capital of the bettor never grows,
so by Ville's inequality the chance that it ever reaches 1/alpha is at most alpha (betting on means of bounded values,
Waudby-Smith and Ramdas 2024). An arm is dropped when the mean capital of all who bet against it reaches arms/alpha: the
chance that any arm within the margin of the best is ever dropped is at most alpha, over all arms and blocks together.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from crossover.eval.analysis.rules import MARGIN
from crossover.eval.analysis.stats import ALPHA

Floats = NDArray[np.float64]

BLOCKS = 10
"""Most blocks of a race: more looks save few calls, and each waits for the slowest answer of its block."""

STAKES = np.array([0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9])
"""Shares of the largest safe bet; capital is spread evenly over them because the effect size is unknown."""


def block_size(examples: int, threads: int) -> int:
    """Return the examples of a block: whole rounds of the calls in flight, in at most `BLOCKS` blocks.

    Smaller blocks would be answered in smaller batches, and make the arms of a race look dearer than without one.
    """
    return threads * max(1, math.ceil(examples / (threads * BLOCKS)))


class Racer:
    """Bets on every pair of arms; takes scores in 0..1 block by block, the examples in random order."""

    def __init__(self, arms: int, *, alpha: float = ALPHA, margin: float = MARGIN) -> None:
        """Start with every arm alive and one unit of capital for each pair."""
        self.alpha, self.margin = alpha, margin
        self.alive = np.ones(arms, dtype=bool)
        self.log_capital = np.zeros((arms, arms, len(STAKES)))

    def update(self, scores: Floats, clusters: Sequence[str] | None = None) -> NDArray[np.bool_]:
        """Take the scores of one block, shape (arms, examples), and return which arms are still alive.

        The rows of dropped arms are ignored. A failed row is NaN and decides nothing. A cluster, which no two blocks
        may share, is one bet on the mean of its examples.
        """
        differences = scores[:, None, :] - scores[None, :, :]
        if clusters is not None:
            _, member = np.unique(clusters, return_inverse=True)
            known = ~np.isnan(differences)
            sums, counts = (x @ np.eye(member.max() + 1)[member] for x in (np.nan_to_num(differences), known))
            differences = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
        gains = np.nan_to_num((differences - self.margin) / (1 + self.margin))
        racing = np.ix_(self.alive, self.alive)
        self.log_capital[racing] += np.log1p(STAKES[:, None] * gains[racing][:, :, None, :]).sum(axis=-1)
        capital = np.exp(np.minimum(self.log_capital, 600)).mean(axis=2)
        # The bettors of dropped arms keep their capital.
        np.fill_diagonal(capital, 0)
        against = capital.sum(axis=0) / max(1, len(self.alive) - 1)
        self.alive &= against < len(self.alive) / self.alpha
        return self.alive


class Race(NamedTuple):
    """Outcome of a race."""

    alive: tuple[int, ...]
    """Arms that were never dropped."""
    scored: tuple[int, ...]
    """Examples on which each arm was scored."""


def replay(table: Floats, *, block: int, seed: int = 0) -> Race:
    """Replay a race over a recorded full grid, shape (arms, examples), in an order drawn by `seed`."""
    arms, examples = table.shape
    order = np.random.default_rng(seed).permutation(examples)
    racer, scored = Racer(arms), np.zeros(arms, dtype=int)
    for start in range(0, examples, block):
        columns = order[start : start + block]
        scored[racer.alive] += len(columns)
        # After the last block nothing is left to save.
        if start + block < examples:
            racer.update(table[:, columns])
    return Race(tuple(np.flatnonzero(racer.alive).tolist()), tuple(scored.tolist()))
