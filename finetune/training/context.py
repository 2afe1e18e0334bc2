"""Hold the arguments of one `fit`, and score val with them: every training selects by that."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import dspy

from crossover.models.usage import Usage, add_usd
from crossover.programs.score import Row, mean_score, score_examples
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


def usage_of(rows: Sequence[Row]) -> Usage:
    """Add up the calls, tokens and dollars of scored examples; their seconds overlap and must be measured outside."""
    return Usage(
        calls=sum(r.calls for r in rows),
        prompt_tokens=sum(r.prompt_tokens for r in rows),
        cached_tokens=sum(r.cached_tokens for r in rows),
        completion_tokens=sum(r.completion_tokens for r in rows),
        usd=add_usd(*(r.usd for r in rows)),
    )
