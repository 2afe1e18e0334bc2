"""Rewrite the instructions round by round, each round shown the earlier ones with their scores (DSPy's COPRO)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import dspy

from crossover.optimizers.common.search import Search
from crossover.programs.task import Budget, Fitted, Metric, Workload


@dataclass(frozen=True)
class Copro:
    """Coordinate ascent over instructions; the defaults are DSPy's."""

    searches: ClassVar[bool] = True

    breadth: int = 10
    """Instructions in a round."""
    depth: int = 3
    """Rounds."""
    temperature: float = 1.4
    """Sampling temperature of the proposals."""

    def workload(self, train: int) -> Workload:
        """Return what `train` examples make of these options."""
        return Workload()

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
        """Propose by the teacher, score every proposal on val, and keep the best."""
        search = Search(program, val=val, metric=metric, lm=lm, seed=seed, budget=budget)
        with search:
            optimizer = dspy.COPRO(
                prompt_model=search.teacher,
                metric=search.metric,
                breadth=self.breadth,
                depth=self.depth,
                init_temperature=self.temperature,
            )
            # COPRO selects on its trainset, and shows no example to the model that proposes: so val it is.
            search.compiled = optimizer.compile(
                program.deepcopy(), trainset=search.val, eval_kwargs={"num_threads": search.threads}
            )
        return search.fitted()
