"""A few labelled examples in the prompt, the same for every question."""

from collections.abc import Sequence
from dataclasses import dataclass

import dspy

from crossover.models.usage import Usage
from crossover.programs.demos import drawn, with_demos
from crossover.programs.task import Budget, FitFacts, Fitted, Metric, Workload


@dataclass(frozen=True)
class FewShot:
    """Labelled demonstrations drawn by seed."""

    demos: int = 4
    """Demonstrations to show."""

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
        """Show `demos` examples of train, drawn by seed."""
        chosen = drawn(train, seed, self.demos)
        facts = FitFacts(labels_used=len(chosen))
        return Fitted(with_demos(program, chosen), lm, Usage(), facts=facts, notes={"demos": len(chosen)})
