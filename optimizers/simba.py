"""Rules and demonstrations from the examples on which the model's answers differ most (DSPy's SIMBA)."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import dspy

from optimizers.search import Search
from programs.task import Budget, Fitted, Metric


@dataclass(frozen=True)
class Simba:
    """Stochastic introspective mini-batch ascent; the defaults are DSPy's."""

    batch: int = 32
    """Examples a step, fewer where train holds fewer."""
    candidates: int = 6
    """New programs a step, and answers to each example."""
    steps: int = 8
    """Steps at most; fewer where the budget does not reach."""
    demos: int = 4
    """Demonstrations at most; 0 for rules alone."""

    def fit(
        self,
        program: dspy.Module,
        *,
        train: Sequence[dspy.Example],
        val: Sequence[dspy.Example],
        metric: Metric,
        lm: dspy.LM,
        seed: int,
        budget: Budget,
    ) -> Fitted:
        """Improve on train, and keep the outcome if it scores better on val."""
        search = Search(program, val=val, metric=metric, lm=lm, seed=seed, budget=budget)
        batch = min(self.batch, len(train))
        with search:
            search.score_start()
            optimizer = dspy.SIMBA(
                metric=search.metric, bsize=batch, num_candidates=self.candidates,
                max_steps=self._steps(search.left, batch, len(train), len(val)), max_demos=self.demos,
                prompt_model=search.teacher, num_threads=search.threads,
            )  # fmt: skip
            order = random.Random(seed).sample(list(train), len(train))
            search.found = optimizer.compile(program.deepcopy(), trainset=search.examples(order), seed=seed)
        return search.fitted()

    def _steps(self, left: int | None, batch: int, train: int, val: int) -> int:
        """Return how many steps the budget allows: each scores a batch twice, and the end scores train and val."""
        if left is None:
            return self.steps
        step = batch * (2 * self.candidates + 1)
        return max(1, min(self.steps, (left - (self.candidates + 1) * train - 2 * val) // step))
