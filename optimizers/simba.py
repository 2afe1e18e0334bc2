"""Rules and demonstrations from the examples on which the model's answers differ most (DSPy's SIMBA)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import dspy

from crossover.optimizers.common.search import Search
from crossover.programs.demos import drawn
from crossover.programs.task import Budget, Fitted, Metric, Workload


@dataclass(frozen=True)
class Simba:
    """Stochastic introspective mini-batch ascent; the defaults are DSPy's."""

    searches: ClassVar[bool] = True

    batch: int = 32
    """Examples in a step, or all of train if it is smaller."""
    candidates: int = 6
    """New programs in a step, and answers to each example."""
    steps: int = 8
    """Steps at most; fewer if the budget is too small."""
    demos: int = 4
    """Demonstrations at most; 0 for rules alone."""

    def workload(self, train: int) -> Workload:
        """Return what `train` examples make of these options."""
        return Workload(demos=self.demos)

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
        """Improve on train, and keep the new program if it scores better on val."""
        search = Search(program, val=val, metric=metric, lm=lm, seed=seed, budget=budget)
        order = drawn(train, seed)
        with search:
            search.score_start()
            steps, pool = self._plan(search.left, len(train), len(val))
            optimizer = dspy.SIMBA(
                metric=search.metric,
                bsize=min(self.batch, pool),
                num_candidates=self.candidates,
                max_steps=steps,
                max_demos=self.demos,
                prompt_model=search.teacher,
                num_threads=search.threads,
            )
            search.compiled = optimizer.compile(program.deepcopy(), trainset=search.examples(order[:pool]), seed=seed)
        return search.fitted()

    def _plan(self, left: int | None, train: int, val: int) -> tuple[int, int]:
        """Return the numbers of steps and of train examples that the budget allows.

        A step scores a batch once for each answer and for each new program; the end scores the winners on train and
        the best of them on val.
        """
        batch = min(self.batch, train)
        for steps in range(self.steps, 0, -1) if left is not None else ():
            rest = (left or 0) - val - steps * batch * (2 * self.candidates + 1)
            pool = rest // (min(steps, self.candidates) + 1)
            if pool >= batch:
                return steps, min(train, pool)
        return (self.steps, train) if left is None else (1, batch)
