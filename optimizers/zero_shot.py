"""The program as it is: instructions and question, without demonstrations."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import dspy

from crossover.models.usage import Usage
from crossover.programs.demos import with_demos
from crossover.programs.task import Budget, FitFacts, Fitted, Metric, Workload


@dataclass(frozen=True)
class ZeroShot:
    """Zero-shot has no options."""

    learns: ClassVar[bool] = False

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
        """Return the program without demonstrations."""
        facts = FitFacts(labels_used=0, zero_shot=True)
        return Fitted(program=with_demos(program, []), lm=lm, spent=Usage(), facts=facts, notes={"demos": 0})
