"""Hold the arguments of one `fit`, and score val with them: every training selects by that."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import dspy

from crossover.models.usage import Usage
from crossover.programs.score import mean_score, score_examples, usage_of
from crossover.programs.task import Budget, Metric


@dataclass(frozen=True)
class FitContext:
    """The arguments of `fit` that stay the same whatever the hyper-parameters."""

    program: dspy.Module
    val: Sequence[dspy.Example]
    metric: Metric
    lm: dspy.LM
    seed: int
    budget: Budget
    begun: float = field(default_factory=time.perf_counter)
    """When the fit began."""

    @property
    def checkpoints(self) -> Path:
        """Return the folder in which trainings keep their checkpoints."""
        return self.budget.checkpoints or self.budget.workdir / "checkpoints"

    def score_val(self, lm: dspy.LM) -> tuple[float, Usage]:
        """Return the mean score of the program on val with this model, and the usage of the calls."""
        with dspy.context(lm=lm):
            rows = list(score_examples(self.program, self.val, self.metric, threads=self.budget.threads))
        return mean_score(rows), usage_of(rows)
