"""The program as it is: instructions and question, without demonstrations."""

from collections.abc import Sequence
from dataclasses import dataclass

import dspy

from crossover.models.usage import Usage
from crossover.programs.demos import with_demos
from crossover.programs.task import Budget, Fitted, Metric


@dataclass(frozen=True)
class ZeroShot:
    """Zero-shot has no options."""

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
        return Fitted(program=with_demos(program, []), lm=lm, spent=Usage(), notes={"demos": 0})
