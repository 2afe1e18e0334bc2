"""A fixed block of demonstrations, which providers cache, and after it a few chosen for each question."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dspy

from crossover.models.usage import Usage
from crossover.optimizers.common.context import fits_context, leading_that_fit
from crossover.optimizers.common.nearest import NearestDemos, demo_index
from crossover.programs.demos import drawn, with_demos
from crossover.programs.task import Budget, FitFacts, Fitted, Metric, Workload

BLOCK = 0.75
"""Share of the context that the block may fill: the rest is for the demonstrations of each question."""


@dataclass(frozen=True)
class Hybrid:
    """The block comes first and never changes, so that its tokens are a shared prefix."""

    fixed: int = 32
    """Demonstrations in the block, fewer if they would fill more than three quarters of the context."""
    demos: int = 4
    """Demonstrations retrieved for each question from the rest of train."""
    index: str = "bm25"
    """`bm25`, `dense` or `weaviate`."""
    index_options: Mapping[str, Any] | None = None
    """Options of the index, as under `retrieval`."""

    def __post_init__(self) -> None:
        """Refuse an index that does not exist, before anything is spent.

        Raises:
            UserError: there is no such index, or it has no such option.
        """
        demo_index(self.index, self.index_options)

    def workload(self, train: int) -> Workload:
        """Return what `train` examples make of these options."""
        return Workload(demos=self.fixed, retrieved=self.demos)

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
        """Draw the block from train by seed; all other examples can be retrieved."""
        order = drawn(train, seed)
        block = order[: self.fixed]
        block = block[: leading_that_fit(program, block, [*val, *train], lm, share=BLOCK)]
        rest = order[len(block) :]
        nearest = NearestDemos(
            with_demos(program, block),
            rest,
            self.demos,
            fits_context(lm),
            index=self.index,
            options=self.index_options,
            folder=budget.shared,
        )
        notes = {"fixed": len(block), "demos": self.demos, "pool": len(rest)}
        fitted = Fitted(nearest, lm, Usage(), facts=FitFacts(labels_used=len(train)), notes=notes)
        if len(block) < min(self.fixed, len(order)):
            fitted.warnings.append(f"{len(block)} of {self.fixed} demonstrations of the block fit the model's context")
        if not rest:
            fitted.warnings.append("the block holds all of train: nothing is left to retrieve")
        return fitted
