"""Evolve the instructions by reflection on wrong answers and feedback in words (DSPy's GEPA, arXiv 2507.19457)."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import dspy
from dspy.teleprompt.gepa import InstructionProposer

from crossover.models.errors import UserError
from crossover.optimizers.common.search import Search
from crossover.programs.demos import list_outputs
from crossover.programs.fields import right_answers
from crossover.programs.task import Budget, Fitted, Metric, Workload

SIZES = ("light", "medium", "heavy")


@dataclass(frozen=True)
class Gepa:
    """Reflective evolution along the Pareto front of val; the defaults are DSPy's."""

    searches: ClassVar[bool] = True

    auto: str = "light"
    """`light`, `medium` or `heavy`: the number of metric calls if the budget sets none; an experiment always does."""
    minibatch: int = 3
    """Examples shown to one reflection."""
    merge: bool = True
    """Also try to merge candidates that are good at different examples."""

    def __post_init__(self) -> None:
        """Refuse a size that does not exist, before anything is spent.

        Raises:
            UserError: the size is not one of SIZES.
        """
        if self.auto not in SIZES:
            raise UserError(f"gepa auto {self.auto!r} is not one of {', '.join(SIZES)}; set `auto: light`")

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
        """Reflect on train, select on val."""
        search = Search(program, val=val, metric=metric, lm=lm, seed=seed, budget=budget)
        lists = list_outputs(program)

        def explained(
            gold: dspy.Example, pred: dspy.Prediction, trace: Any = None, pred_name: Any = None, pred_trace: Any = None
        ) -> dspy.Prediction:
            # With a predictor's name DSPy asks for the words alone: this answer was scored, and counted, before.
            score = metric(gold, pred, trace) if pred_name else search.metric(gold, pred, trace)
            return dspy.Prediction(score=score, feedback=feedback(gold, pred, score, lists))

        with search:
            optimizer = dspy.GEPA(
                metric=explained,
                auto=None if search.left else self.auto,
                max_metric_calls=search.left,
                reflection_minibatch_size=self.minibatch,
                reflection_lm=search.teacher,
                use_merge=self.merge,
                instruction_proposer=InstructionProposer(adapter=search.teacher_format),
                num_threads=search.threads,
                seed=seed,
                warn_on_score_mismatch=False,
            )
            search.compiled = optimizer.compile(program.deepcopy(), trainset=list(train), valset=search.val)
        return search.fitted()


def feedback(gold: dspy.Example, pred: dspy.Prediction, score: float, lists: Collection[str] = ()) -> str:
    """Describe how good an answer is, and name the right one for every output that the example holds.

    The outputs named in `lists` hold one answer that is a list; a list in any other holds several right answers.
    """
    if score >= 1:
        return "Right."
    lines = [f"Wrong (score {score:g})." if score <= 0 else f"Only partly right (score {score:g})."]
    for name, value in pred.items():
        if name in gold and name not in gold.inputs():
            right = " or ".join(repr(a) for a in right_answers(gold[name], is_list=name in lists))
            lines.append(f"The {name} was {str(value)[:300]!r}, but the right {name} is {right[:300]}.")
    return " ".join(lines)
