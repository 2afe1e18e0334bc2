"""Demonstrations that the teacher answered and the metric accepted (DSPy's BootstrapFewShot, arXiv 2310.03714)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import dspy

from crossover.optimizers.common.search import UNLIMITED_ERRORS, Search
from crossover.programs.demos import drawn, with_demos
from crossover.programs.task import Budget, Fitted, Metric, Workload


@dataclass(frozen=True)
class Bootstrap:
    """Bootstrapped demonstrations first, labelled ones after; the defaults are DSPy's."""

    searches: ClassVar[bool] = True

    bootstrapped: int = 4
    """Demonstrations at most with answers of the teacher."""
    labelled: int = 16
    """Demonstrations at most in all; labelled examples fill the rest."""
    rounds: int = 1
    """Attempts at each example."""
    threshold: float = 1.0
    """Score from which an answer is accepted; DSPy's own default takes any score above 0, such as an F1 of 0.1."""

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
        """Let the teacher answer train in an order drawn by seed; val is not read."""
        search = Search(program, val=val, metric=metric, lm=lm, seed=seed, budget=budget)
        order = drawn(train, seed)
        with search:
            pool = order[: search.left]
            optimizer = dspy.BootstrapFewShot(
                metric=search.metric,
                metric_threshold=self.threshold,
                teacher_settings={"lm": search.teacher},
                max_bootstrapped_demos=self.bootstrapped,
                max_labeled_demos=self.labelled,
                max_rounds=self.rounds,
                max_errors=UNLIMITED_ERRORS,
            )
            search.compiled = optimizer.compile(with_demos(program, []), trainset=search.examples(pool))
        fitted = search.unselected()
        fitted.facts = replace(fitted.facts, labels_used=len(pool))
        if not any(d.get("augmented") for p in (search.compiled or program).predictors() for d in p.demos):
            fitted.warnings.append(f"the metric accepted none of the teacher's answers to {len(order)} examples")
        return fitted
