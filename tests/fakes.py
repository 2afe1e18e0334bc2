"""What the tests of methods share: a metric, and a fit on the small classification task `intents`."""

from collections.abc import Mapping, Sequence
from typing import Any

import dspy

from crossover.eval.run.methods import method_of
from crossover.programs.modules.classify import Classify
from crossover.programs.task import Budget, Fitted


def metric(gold: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> float:
    """Score 1 for the gold label; the signature is the one that every DSPy optimizer accepts."""
    return float(gold.label == pred.label)


def fit_intents(
    method: str,
    options: Mapping[str, Any],
    examples: Sequence[dspy.Example],
    lm: dspy.LM,
    budget: Budget,
    program: dspy.Module | None = None,
) -> Fitted:
    """Fit a classifier by a method: train on the first twenty examples, select on the rest."""
    return method_of(method, options).fit(
        program or Classify(["text"], "label", []),
        train=examples[:20],
        val=examples[20:],
        metric=metric,
        lm=lm,
        seed=0,
        budget=budget,
    )
