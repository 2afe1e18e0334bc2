"""Bootstrap many sets of demonstrations and keep the one that scores best on val (DSPy's random search)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import dspy

from crossover.optimizers.common.search import UNLIMITED_ERRORS, Search
from crossover.programs.demos import drawn, with_demos
from crossover.programs.task import Budget, Fitted, Metric, Workload


@dataclass(frozen=True)
class BootstrapSearch:
    """Random search over bootstrapped demonstrations (BootstrapFewShotWithRandomSearch); the defaults are DSPy's."""

    searches: ClassVar[bool] = True

    candidates: int = 16
    """Bootstrapped sets; DSPy adds no demonstrations, labelled ones alone, and train in its own order."""
    bootstrapped: int = 4
    """Demonstrations at most with answers of the teacher."""
    labelled: int = 16
    """Demonstrations at most in all; labelled examples fill the rest."""
    rounds: int = 1
    """Attempts at each example."""
    threshold: float = 1.0
    """Lowest score of an answer that is accepted; DSPy's own default takes any score above 0."""

    def workload(self, train: int) -> Workload:
        """Return what `train` examples make of these options."""
        return Workload(demos=max(self.bootstrapped, self.labelled))

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
        """Bootstrap on train, select on val."""
        search = Search(program, val=val, metric=metric, lm=lm, seed=seed, budget=budget)
        order = drawn(train, seed)
        with search:
            optimizer = dspy.BootstrapFewShotWithRandomSearch(
                metric=search.metric,
                metric_threshold=self.threshold,
                teacher_settings={"lm": search.teacher},
                max_bootstrapped_demos=self.bootstrapped,
                max_labeled_demos=self.labelled,
                max_rounds=self.rounds,
                num_candidate_programs=self.candidates,
                num_threads=search.threads,
                max_errors=UNLIMITED_ERRORS,
            )
            search.compiled = optimizer.compile(
                with_demos(program, []),
                trainset=search.affordable(order, passes=self.candidates + 1),
                valset=search.val,
            )
        return search.fitted()
