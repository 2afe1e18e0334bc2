"""The labelled examples most similar to each question, by words (BM25) or by meaning, most similar last."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dspy

from crossover.models.usage import Usage
from crossover.optimizers.common.context import fits_context
from crossover.optimizers.common.nearest import NearestDemos, demo_index
from crossover.programs.demos import with_demos
from crossover.programs.task import Budget, FitFacts, Fitted, Metric, Workload


@dataclass(frozen=True)
class RetrievedDemos:
    """Nearest demonstrations (protocol: arXiv 2405.00200, BM25 over the train questions)."""

    demos: int = 8
    """Demonstrations for each question."""
    index: str = "bm25"
    """`bm25`, `dense` or `weaviate`."""
    index_options: Mapping[str, Any] | None = None
    """Options of the index, as under `retrieval`: `{url: "http://localhost:8080", query: hybrid}`."""

    def __post_init__(self) -> None:
        """Refuse an index that does not exist, before anything is spent.

        Raises:
            UserError: there is no such index, or it has no such option.
        """
        demo_index(self.index, self.index_options)

    def workload(self, train: int) -> Workload:
        """Return what `train` examples make of these options."""
        return Workload(retrieved=self.demos)

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
        """Index train and let every question choose its own demonstrations."""
        nearest = NearestDemos(
            with_demos(program, []),
            train,
            self.demos,
            fits_context(lm),
            index=self.index,
            options=self.index_options,
            folder=budget.shared,
        )
        notes = {"demos": self.demos, "pool": len(train)}
        return Fitted(nearest, lm, Usage(), facts=FitFacts(labels_used=len(train)), notes=notes)
