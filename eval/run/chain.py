"""Methods one after another: each adapts what the one before it made, on the model that it left.

Where several of them train, each one's adapter is merged into the weights that it was trained on: the next training
starts from what the one before it gave, and what is kept of the last stands without the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import dspy

from crossover.eval.experiment.spec import adapts_weights
from crossover.models.usage import Usage
from crossover.programs.task import Budget, Fitted, Method, Metric


@dataclass(frozen=True)
class Chain:
    """Prompt and weights in any order, such as prompt, weights, prompt (BetterTogether, arXiv 2407.10930).

    Composed here, so that optimizers/ and finetune/ stay strangers.
    """

    steps: tuple[tuple[str, Method], ...]
    """Name and method of each step."""

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
        """Fit every step; the budget is that of one arm, and each step gets what is left of it."""
        whole = Fitted(program=program, lm=lm, spent=Usage())
        several = sum(adapts_weights(name) for name, _ in self.steps) > 1
        for number, (name, method) in enumerate(self.steps, 1):
            place = f"{number}-{name}"
            with dspy.context(lm=whole.lm):
                step = method.fit(
                    whole.program,
                    train=train,
                    val=val,
                    metric=metric,
                    lm=whole.lm,
                    seed=seed,
                    budget=_left(budget, whole.spent, place),
                )
            whole = Fitted(
                program=step.program,
                lm=_merged(step, whole.lm, lm) if several and step.artifact is not None else step.lm,
                spent=whole.spent + step.spent,
                artifact=step.artifact or whole.artifact,
                notes=whole.notes | {f"{place}.{k}": v for k, v in step.notes.items()},
                warnings=[*whole.warnings, *(f"{place}: {w}" for w in step.warnings)],
            )
            if "logit_change" in step.notes:
                whole.notes["logit_change"] = step.notes["logit_change"]
        return whole


def _merged(step: Fitted, before: dspy.LM, first: dspy.LM) -> dspy.LM:
    """Return the model of a step on whole weights of its own, named after the chain's first model.

    `before` is the model that the step trained. A head stays as it is: nothing can be trained on top of it.
    """
    from crossover.finetune.training.merge import merge_in_place
    from crossover.models.load import tuned_lm, whole_lm
    from crossover.models.local import LocalEngine
    from crossover.models.prompt import engine_of

    engine, folder = engine_of(step.lm), step.artifact
    if folder is None or not isinstance(engine, LocalEngine):
        return step.lm
    if not (folder / "adapter_config.json").exists():
        return whole_lm(first, engine)
    merge_in_place(engine_of(before).folder, folder)
    return tuned_lm(first, folder)


def _left(budget: Budget, spent: Usage, place: str) -> Budget:
    """Return what is left of the budget, with a folder and a file of answers for the step alone."""
    folder = budget.workdir / place
    folder.mkdir(parents=True, exist_ok=True)
    calls = None if budget.metric_calls is None else max(1, budget.metric_calls - spent.metric_calls)
    # Where a price is unknown the dollars cannot be kept, which the step will say.
    usd = None if budget.usd is None else max(1e-9, budget.usd - (spent.usd or 0.0))
    answers = None if budget.answers is None else budget.answers.with_name(f"{place}-{budget.answers.name}")
    checkpoints = None if budget.checkpoints is None else budget.checkpoints / place
    return replace(budget, metric_calls=calls, usd=usd, workdir=folder, answers=answers, checkpoints=checkpoints)
