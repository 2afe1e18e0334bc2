"""Fit several methods in turn: each adapts the program and the model that the one before it left.

Where several of them train, each adapter is merged into the weights that it was trained on, so that the next training
starts from these and the last one's weights stand without the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import dspy

from crossover.eval.experiment.method import MethodSpec
from crossover.models.usage import Usage, add_usd
from crossover.programs.task import Budget, FitFacts, Fitted, Method, Metric, Workload


@dataclass(frozen=True)
class Chain:
    """Prompt and weights in any order, such as prompt, weights, prompt (BetterTogether, arXiv 2407.10930).

    Chains are composed here because optimizers/ and finetune/ may not import each other.
    """

    steps: tuple[tuple[str, Method], ...]
    """Name and method of each step."""

    def workload(self, train: int) -> Workload:
        """Return the sum of the steps; a question meets the demonstrations of the last step that shows any."""
        steps = [method.workload(train) for _, method in self.steps]
        last = next((w for w in reversed(steps) if w.demos or w.retrieved), Workload())
        return Workload(
            demos=last.demos,
            retrieved=last.retrieved,
            batch=max(w.batch for w in steps),
            calls=prod(w.calls for w in steps),
            epochs=sum(w.epochs for w in steps),
            readings=sum(w.readings for w in steps),
            attempts=sum(w.attempts for w in steps),
            traced=sum(w.traced for w in steps),
        )

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
        # No label is needed before the first step says so.
        whole = Fitted(program, lm, Usage(), facts=FitFacts(labels_used=0))
        several = sum(MethodSpec(name).trains for name, _ in self.steps) > 1
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
                facts=whole.facts + (_training_facts(step) if MethodSpec(name).trains else step.facts),
                notes=whole.notes | {f"{place}.{k}": v for k, v in step.notes.items()},
                warnings=[*whole.warnings, *(f"{place}: {w}" for w in step.warnings)],
            )
        return whole


def _training_facts(step: Fitted) -> FitFacts:
    """Return the facts of a step that trains, with its seconds and dollars marked as those of a training."""
    facts = step.facts
    teacher_usd = None if facts.teacher_usd is None else -facts.teacher_usd
    return replace(
        facts,
        training_seconds=step.spent.seconds - facts.discarded_seconds,
        training_usd=add_usd(step.spent.usd, teacher_usd),
    )


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
    """Return the rest of the budget, with a folder and a file of answers for the step alone."""
    folder = budget.workdir / place
    folder.mkdir(parents=True, exist_ok=True)
    calls = None if budget.metric_calls is None else max(1, budget.metric_calls - spent.metric_calls)
    # An unknown price leaves the budget in dollars without effect; the step warns of it.
    usd = None if budget.usd is None else max(1e-9, budget.usd - (spent.usd or 0.0))
    answers = None if budget.answers is None else budget.answers.with_name(f"{place}-{budget.answers.name}")
    checkpoints = None if budget.checkpoints is None else budget.checkpoints / place
    return replace(budget, metric_calls=calls, usd=usd, workdir=folder, answers=answers, checkpoints=checkpoints)
