"""Drop arms as soon as they cannot win any more, however often one looks: pure functions over paired scores.

For each pair (i, j) a bettor starts with one unit and bets, example after example, that i is better than j. As long as
j is at least as good as i over the whole test set, the bettor's expected capital never grows, so that by Ville's
inequality the chance that it ever reaches 1/alpha is at most alpha: the confidence sequence of Waudby-Smith and Ramdas
(2020, 2024) for sampling without replacement. An arm is dropped when the mean capital of all who bet against it
reaches 1/alpha, which bounds the chance of ever dropping the arm that is best on the whole test set.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crossover.eval.analysis.stats import ALPHA

Floats = NDArray[np.float64]

STAKES = np.array([0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9])
"""Shares of the largest safe bet; capital is spread evenly over them, so that no effect size must be guessed."""


@dataclass(frozen=True)
class Race:
    """How a race ended."""

    winner: int
    """The best of the arms that were left, by the mean over the examples that they were scored on."""
    alive: tuple[int, ...]
    """Arms never dropped."""
    scored: tuple[int, ...]
    """Examples on which each arm was scored."""

    @property
    def calls(self) -> int:
        """Return how many arm-example pairs were scored."""
        return sum(self.scored)


class Racer:
    """Bets on every pair of arms, fed block by block with scores in 0..1 of one test set in random order."""

    def __init__(self, arms: int, examples: int, *, alpha: float = ALPHA, margin: float = 0.0) -> None:
        """Start with every arm alive; with a margin, arms that cannot win by more than it are dropped as well."""
        self.alpha, self.left = alpha, examples
        self.alive = np.ones(arms, dtype=bool)
        self.lead: Floats = np.full((arms, arms), margin * examples)
        self.log_capital = np.zeros((arms, arms, len(STAKES)))

    def update(self, scores: Floats) -> NDArray[np.bool_]:
        """Take the scores of one block, arms by examples, and return which arms are still alive.

        The lines of dropped arms are not read; a failed row counts as wrong, as in every selection.
        """
        for column in np.nan_to_num(scores).T:
            self._bet(column)
        beaten = self.alive & (self._against() >= 1 / self.alpha)
        if (beaten == self.alive).all():
            # Within a margin arms can beat each other; the one that leads goes on.
            beaten[int(np.argmax(np.where(self.alive, self.lead.sum(axis=1), -np.inf)))] = False
        self.alive &= ~beaten
        return self.alive

    def _bet(self, column: Floats) -> None:
        """Settle the bets of the arms alive on one example."""
        racing = np.ix_(self.alive, self.alive)
        difference = column[self.alive][:, None] - column[self.alive][None, :]
        # Were j just not beaten over the whole set, what is left of it would have this mean difference.
        fair = -self.lead[racing] / self.left
        capital = self.log_capital[racing]
        # At -1 the lead cannot be made up any more, and the largest safe bet is endless.
        open_still = fair > -1 + 1e-9
        safe = 1 / np.where(open_still, 1 + fair, 1.0)
        capital += np.log(np.where(open_still[:, :, None], 1 + STAKES * (safe * (difference - fair))[:, :, None], 1.0))
        capital[~open_still] = np.inf
        self.log_capital[racing] = capital
        self.lead[racing] += difference
        self.left -= 1

    def _against(self) -> Floats:
        """Return the mean capital of all who bet against each arm; a dropped bettor keeps what it had."""
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
