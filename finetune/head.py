"""A linear head that chooses a label, on the states of the base: frozen, or trained along with it."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import dspy

from crossover.finetune.training.options import TrainingOptions, check_local, without_demos
from crossover.models.errors import UserError
from crossover.models.usage import Usage
from crossover.programs.task import Budget, FitFacts, Fitted, Metric, Workload

if TYPE_CHECKING:
    from crossover.finetune.training.context import FitContext
    from crossover.finetune.training.regression import Labelled
    from crossover.models.heads import HeadEngine

BASES = ("frozen", "lora", "full")
RIDGES = (0.01, 0.1, 1.0, 10.0, 100.0)
"""Penalties to choose from on val."""


@dataclass(frozen=True)
class Head:
    """Options of a classification head."""

    pooling: str = "mean"
    """State of a prompt: the `mean` over its tokens, or that of its `last` one."""
    base: str = "frozen"
    """`frozen`: multinomial logistic regression. `lora`, `full`: head and base are trained together."""
    ridge: float = 0.0
    """Penalty on the squared weights, over standardized states; 0 for the best of five on val, or for 1 where the base
    is trained."""
    rank: int = 16
    alpha: int = 32
    epochs: int = 3
    """This and the options below are of training with the base."""
    lr: float = 0.0
    """Learning rate; 0 for one that follows the model's size."""
    batch_size: int = 8
    warmup: float = 0.05
    bf16: bool = True
    checkpoint_minutes: float = 1.0
    """Minutes between checkpoints, from which a training that was killed goes on."""

    def __post_init__(self) -> None:
        """Refuse what cannot be trained, before anything is spent."""
        for name, value, known in (("pooling", self.pooling, ("mean", "last")), ("base", self.base, BASES)):
            if value not in known:
                raise UserError(f"head {name} {value!r} is not one of {', '.join(known)}; set `{name}: {known[0]}`")

    def workload(self, train: int) -> Workload:
        """Return what `train` examples make of these options."""
        if self.base == "frozen":
            return Workload(epochs=1, readings=1 if self.ridge else len(RIDGES))
        return Workload(epochs=self.epochs, readings=1 + self.epochs)

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
        """Learn the labels of `train`, select on `val`, and answer through the same prompt and the same parser."""
        from crossover.finetune.training.context import FitContext
        from crossover.finetune.training.regression import labelled
        from crossover.models.limits import limited_like
        from crossover.models.load import local_lm

        check_local(lm, "head")
        context = FitContext(without_demos(program), val, metric, lm, seed, budget)
        data = labelled(context.program, train, lm)
        engine, notes, spent = self._frozen(data, context) if self.base == "frozen" else self._trained(data, context)
        folder = budget.workdir / "best"
        engine.save(folder)
        tuned = limited_like(
            local_lm(f"{lm.model}+head-{engine.sha256[:12]}", engine, lm.kwargs["max_tokens"], 0.0), lm
        )
        # A training that was killed and went on took time before this process began.
        spent.seconds = max(spent.seconds, time.perf_counter() - context.begun)
        notes |= {"labels": len(data.answers), "rows": len(data.rows), "dropped_too_long": data.dropped}
        facts = FitFacts(val_score=max(notes["val_scores"], default=None))
        fitted = Fitted(program=context.program, lm=tuned, spent=spent, artifact=folder, facts=facts, notes=notes)
        if data.dropped:
            fitted.warnings.append(f"{data.dropped} training rows exceed the context and were left out")
        if 2 * len(set(data.labels)) > len(data.rows):
            fitted.warnings.append("most labels of the head stand in one training row alone; is this classification?")
        return fitted

    def _frozen(self, data: "Labelled", context: "FitContext") -> tuple["HeadEngine", dict[str, Any], Usage]:
        """Return the best logistic regression on the states of the untrained base."""
        from crossover.finetune.training.regression import base_states, regression, score_head
        from crossover.models.heads import HeadEngine
        from crossover.models.prompt import engine_of

        base = engine_of(context.lm)
        states = base_states(base, data, self.pooling)
        spent = Usage(prompt_tokens=sum(map(len, data.rows)), calls=len(data.rows))
        engines, scores = [], []
        ridges = (self.ridge,) if self.ridge else RIDGES
        for ridge in ridges:
            weight, bias = regression(states, data, ridge)
            engines.append(HeadEngine(base, weight, bias, data.answers, pooling=self.pooling))
            score, used = score_head(engines[-1], context)
            scores.append(score)
            spent += used
        best = scores.index(max(scores))
        return engines[best], {"ridge": ridges[best], "val_scores": scores}, spent

    def _trained(self, data: "Labelled", context: "FitContext") -> tuple["HeadEngine", dict[str, Any], Usage]:
        """Return a head trained together with its base, served on the trained base."""
        from crossover.finetune.training.head_training import serve_trained, train_head

        options = replace(TrainingOptions.among(asdict(self)), adapter="none" if self.base == "full" else "lora")
        run = train_head(options, self.ridge or 1.0, self.pooling, data, context)
        return serve_trained(run, self.pooling, data, context), run.notes, run.spent
