"""Search instructions and demonstrations together by Bayesian optimization (DSPy's MIPROv2, arXiv 2406.11695)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import dspy

from crossover.optimizers.common.search import UNLIMITED_ERRORS, Search
from crossover.programs.demos import drawn, with_demos
from crossover.programs.task import Budget, Fitted, Metric, Workload

MINIBATCH_FROM = 50
"""With more val examples than this, trials are scored on 35 of them and only the most promising on all (DSPy's)."""


@dataclass(frozen=True)
class Mipro:
    """Grounded proposals, chosen together with demonstrations by trials on val; the defaults are DSPy's `light`."""

    searches: ClassVar[bool] = True

    candidates: int = 6
    """Instructions, and sets of demonstrations, to choose from."""
    trials: int = 0
    """Combinations to score; 0 for DSPy's number, which depends on `candidates`."""
    bootstrapped: int = 4
    """Demonstrations at most with answers of the teacher."""
    labelled: int = 4
    """Labelled demonstrations at most; with both numbers 0, MIPRO is zero-shot and the program holds none."""
    threshold: float = 1.0
    """Lowest score of an answer that is accepted; DSPy's own default takes any score above 0."""
    temperature: float = 1.0
    """Sampling temperature of the proposals."""

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
        """Bootstrap and propose on train, select on val."""
        zero_shot = not self.bootstrapped and not self.labelled
        start = with_demos(program, []) if zero_shot else program
        search = Search(start, val=val, metric=metric, lm=lm, seed=seed, budget=budget)
        order = drawn(train, seed)
        variables = len(program.predictors()) * (1 if zero_shot else 2)
        trials = self.trials or int(max(2 * variables * math.log2(self.candidates), 1.5 * self.candidates))
        with search:
            optimizer = dspy.MIPROv2(
                metric=search.metric,
                metric_threshold=self.threshold,
                prompt_model=search.teacher,
                task_model=search.student,
                teacher_settings={"lm": search.teacher},
                auto=None,
                num_candidates=self.candidates,
                num_threads=search.threads,
                seed=seed,
                max_bootstrapped_demos=self.bootstrapped,
                max_labeled_demos=self.labelled,
                init_temperature=self.temperature,
                max_errors=UNLIMITED_ERRORS,
            )
            search.compiled = optimizer.compile(
                start.deepcopy(),
                trainset=search.affordable(order, passes=self.candidates - 2),
                valset=search.val,
                num_trials=trials,
                minibatch=len(search.val) > MINIBATCH_FROM,
            )
        if zero_shot and search.compiled is not None:
            # DSPy bootstraps in the zero-shot form too, and has let such demonstrations through (DSPy #9039).
            search.compiled = with_demos(search.compiled, [])
        return search.fitted(zero_shot=zero_shot)
