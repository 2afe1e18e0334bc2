"""Rules in plain words, induced from labelled examples and added to the instructions (DSPy's InferRules)."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import dspy

from crossover.optimizers.common.search import UNLIMITED_ERRORS, Search
from crossover.programs.demos import drawn, with_demos
from crossover.programs.task import Budget, Fitted, Metric, Workload


class _OwnSignatures(dspy.InferRules):  # type: ignore[misc]  # dspy is untyped
    """DSPy's optimizer, but each candidate has instructions of its own.

    DSPy writes the rules onto the signature class, which all copies of a program share: the best program would end
    with the rules of the last, and so would the program that was given.
    """

    def update_program_instructions(self, predictor: dspy.Predict, natural_language_rules: str) -> None:
        """Give the predictor a new signature, with the rules behind its instructions."""
        shared = predictor.signature
        predictor.signature = shared.with_instructions(shared.instructions)
        super().update_program_instructions(predictor, natural_language_rules)


@dataclass(frozen=True)
class InferRules:
    """Induced rules beside bootstrapped demonstrations; the defaults are DSPy's."""

    searches: ClassVar[bool] = True

    candidates: int = 10
    """Sets of rules to choose from."""
    rules: int = 10
    """Rules in a set."""
    examples: int = 64
    """Examples that the rules are induced from, and demonstrations bootstrapped from; DSPy shows all of train."""
    bootstrapped: int = 4
    """Demonstrations at most with answers of the teacher."""
    labelled: int = 16
    """Demonstrations at most in all; labelled examples fill the rest."""
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
        """Induce from train by the teacher, select on val."""
        search = Search(program, val=val, metric=metric, lm=lm, seed=seed, budget=budget)
        order = drawn(train, seed, self.examples)
        with search:
            search.score_start()
            optimizer = _OwnSignatures(
                num_candidates=self.candidates,
                num_rules=self.rules,
                num_threads=search.threads,
                teacher_settings={"lm": search.teacher},
                metric=search.metric,
                metric_threshold=self.threshold,
                max_bootstrapped_demos=self.bootstrapped,
                max_labeled_demos=self.labelled,
                max_errors=UNLIMITED_ERRORS,
            )
            optimizer.rules_induction_program.rng = random.Random(seed)
            search.compiled = optimizer.compile(
                with_demos(program, []), trainset=search.affordable(order, passes=1), valset=search.val
            )
        return search.fitted()
