"""Drop arms from a race as soon as they cannot win, by a test that stays valid however often it is applied.

For each pair (i, j) a bettor starts with one unit and bets on each example in turn that i is better than j. If j is at
least as good as i over the whole test set, the expected capital of the bettor never grows, so by Ville's inequality the
chance that it ever reaches 1/alpha is at most alpha: the confidence sequence of Waudby-Smith and Ramdas (2020, 2024)
for sampling without replacement. An arm is dropped when the mean capital of all who bet against it reaches 1/alpha,
which bounds the chance of ever dropping the arm that is best on the whole test set.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from crossover.eval.analysis.stats import ALPHA

Floats = NDArray[np.float64]

STAKES = np.array([0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9])
"""Shares of the largest safe bet; capital is spread evenly over them because the effect size is unknown."""


class Race(NamedTuple):
    """Outcome of a race."""

    winner: int
    """The arm with the best mean among those that were never dropped."""
    alive: tuple[int, ...]
    """Arms that were never dropped."""
    scored: tuple[int, ...]
    """Examples on which each arm was scored."""

    @property
    def calls(self) -> int:
        """Return the number of scored pairs of arm and example."""
        return sum(self.scored)


class Racer:
    """Bets on every pair of arms; takes the scores in 0..1 of one test set block by block, in random order."""

    def __init__(self, arms: int, examples: int, *, alpha: float = ALPHA, margin: float = 0.0) -> None:
        """Start with every arm alive; with a margin, drop also arms that cannot win by more than that."""
        self.alpha, self.left = alpha, examples
        self.alive = np.ones(arms, dtype=bool)
        self.lead: Floats = np.full((arms, arms), margin * examples)
        self.log_capital = np.zeros((arms, arms, len(STAKES)))

    def update(self, scores: Floats) -> NDArray[np.bool_]:
        """Take the scores of one block, arms by examples, and return which arms are still alive.

        The rows of dropped arms are ignored; NaN, a failed row, counts as 0 as in every selection.
        """
        for column in np.nan_to_num(scores).T:
            self._bet(column)
        beaten = self.alive & (self._against() >= 1 / self.alpha)
        if (beaten == self.alive).all():
            # Within a margin arms can beat each other; the leader stays.
            beaten[int(np.argmax(np.where(self.alive, self.lead.sum(axis=1), -np.inf)))] = False
        self.alive &= ~beaten
        return self.alive

    def _bet(self, column: Floats) -> None:
        """Settle the bets of the arms alive on one example."""
        racing = np.ix_(self.alive, self.alive)
        difference = column[self.alive][:, None] - column[self.alive][None, :]
        # If j just drew level over the whole set, the rest of it would have this mean difference.
        fair = -self.lead[racing] / self.left
        capital = self.log_capital[racing]
        # At -1 no rest can make up the lead, and any bet is safe.
        open_still = fair > -1 + 1e-9
        safe = 1 / np.where(open_still, 1 + fair, 1.0)
        capital += np.log(np.where(open_still[:, :, None], 1 + STAKES * (safe * (difference - fair))[:, :, None], 1.0))
        capital[~open_still] = np.inf
        self.log_capital[racing] = capital
        self.lead[racing] += difference
        self.left -= 1

    def _against(self) -> Floats:
        """Return the mean capital of all bettors against each arm; those of dropped arms keep their capital."""
        capital = np.exp(np.minimum(self.log_capital, 600)).mean(axis=2)
        np.fill_diagonal(capital, 0)
        against: Floats = capital.sum(axis=0) / max(1, len(self.alive) - 1)
        return against


def race_of_means(
    table: Floats, *, block: int = 10, alpha: float = ALPHA, margin: float = 0.0, seed: int | None = None
) -> Race:
    """Replay a race over a recorded full grid, arms by examples, shuffled by `seed` or in the order given."""
    arms, examples = table.shape
    order = np.arange(examples) if seed is None else np.random.default_rng(seed).permutation(examples)
    racer, scored = Racer(arms, examples, alpha=alpha, margin=margin), np.zeros(arms, dtype=int)
    total = np.zeros(arms)
    for start in range(0, examples, block):
        if racer.alive.sum() < 2 and start:
            break
        columns = np.nan_to_num(table[:, order[start : start + block]])
        scored += racer.alive * columns.shape[1]
        total += np.where(racer.alive, columns.sum(axis=1), 0.0)
        racer.update(columns)
    means = np.where(racer.alive, total / scored, -np.inf)
    alive: Sequence[int] = np.flatnonzero(racer.alive).tolist()
    return Race(int(np.argmax(means)), tuple(alive), tuple(scored.tolist()))
