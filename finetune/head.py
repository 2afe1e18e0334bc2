"""A linear head that chooses a label, on the states of the base: frozen, or trained along with it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dspy

from crossover.models.errors import UserError
from crossover.models.usage import Usage
from crossover.programs.task import Budget, Fitted, Metric

if TYPE_CHECKING:
    import torch

    from crossover.models.heads import HeadEngine

BASES = ("frozen", "lora", "full")
RIDGES = (0.01, 0.1, 1.0, 10.0, 100.0)
"""Strengths of the penalty that are tried on val."""


@dataclass(frozen=True)
class Head:
    """Options of a classification head."""

    pooling: str = "mean"
    """The state that stands for a prompt: the `mean` over its tokens, or that of its `last` one."""
    base: str = "frozen"
    """`frozen`: multinomial logistic regression. `lora`, `full`: head and base are trained together."""
    ridge: float = 0.0
    """Penalty on the squared weights, over standardized states; 0 for the one of five that is best on val,
    or for 1 where the base is trained."""
    rank: int = 16
    alpha: int = 32
    epochs: int = 3
    """Of training with the base, as all that follows."""
    lr: float = 0.0
    """Learning rate; 0 for one that follows the model's size."""
    batch_size: int = 8
    warmup: float = 0.05
    bf16: bool = True
    checkpoint_minutes: float = 1.0
    """Between checkpoints, from which a training that was killed goes on."""

    def __post_init__(self) -> None:
        """Refuse what cannot be trained, before anything is spent."""
        for name, value, known in (("pooling", self.pooling, ("mean", "last")), ("base", self.base, BASES)):
            if value not in known:
                raise UserError(f"head {name} {value!r} is not one of {', '.join(known)}; set `{name}: {known[0]}`")

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
        from crossover.finetune.sft import check_local, without_demos
        from crossover.finetune.training.train import Ground
        from crossover.models.limits import limited_like
        from crossover.models.load import local_lm

        check_local(lm, "head")
        ground = Ground(without_demos(program), val, metric, lm, seed, budget)
        data = labelled(ground.program, train, lm)
        engine, notes, spent = self._frozen(data, ground) if self.base == "frozen" else self._trained(data, ground)
        folder = budget.workdir / "best"
        engine.save(folder)
        tuned = limited_like(
            local_lm(f"{lm.model}+head-{engine.sha256[:12]}", engine, lm.kwargs["max_tokens"], 0.0), lm
        )
        spent.seconds = max(spent.seconds, time.perf_counter() - ground.begun)
        notes |= {"labels": len(data.answers), "rows": len(data.rows), "dropped_too_long": data.dropped}
        fitted = Fitted(program=ground.program, lm=tuned, spent=spent, artifact=folder, notes=notes)
        if data.dropped:
            fitted.warnings.append(f"{data.dropped} training rows exceed the context and were left out")
        if 2 * len(set(data.labels)) > len(data.rows):
            fitted.warnings.append("most labels of the head stand in one training row alone; is this classification?")
        return fitted

    def _frozen(self, data: "Labelled", ground: Any) -> tuple["HeadEngine", dict[str, Any], Usage]:
        """Return a logistic regression on the states of the base as it is."""
        import torch

        from crossover.finetune.training.train import spent_on
        from crossover.models.heads import HeadEngine
        from crossover.models.prompt import engine_of
        from crossover.programs.score import mean_score

        base, width = engine_of(ground.lm), torch.zeros(1, 1)
        reader = HeadEngine(base, width, width[0], data.answers, pooling=self.pooling)
        states = reader.states(data.rows)
        labels, tried = torch.tensor(data.labels), []
        for ridge in (self.ridge,) if self.ridge else RIDGES:
            weight, bias = logistic_regression(states, labels, len(data.answers), ridge)
            engine = HeadEngine(base, weight, bias, data.answers, pooling=self.pooling)
            rows = score_val(engine, ground)
            tried.append((mean_score(rows), engine, ridge, spent_on(rows)))
        best = max(tried, key=lambda t: t[0])
        spent = sum((t[3] for t in tried), Usage(prompt_tokens=sum(map(len, data.rows)), calls=len(data.rows)))
        return best[1], {"ridge": best[2], "val_scores": [t[0] for t in tried]}, spent

    def _trained(self, data: "Labelled", ground: Any) -> tuple["HeadEngine", dict[str, Any], Usage]:
        """Return a head trained along with the base, and served on what became of it."""
        from crossover.finetune.training.head_training import serve_trained, train_head

        run = train_head(self, data, ground)
        engine = serve_trained(self, run, data, ground)
        return engine, run.notes, run.spent


@dataclass(frozen=True)
class Labelled:
    """The train examples as a head learns them."""

    rows: list[list[int]]
    """Token ids of the prompts, as the serving side encodes them."""
    labels: list[int]
    """Position of each row's answer among `answers`."""
    answers: list[str]
    """Every label once, as the prompt frame writes it."""
    dropped: int
    """Rows longer than the model's context."""


def labelled(program: dspy.Module, examples: Sequence[dspy.Example], lm: dspy.LM) -> Labelled:
    """Render every example by the calling context's DSPy adapter and the model's own chat template.

    Raises:
        UserError: the program is more than one predictor of one answer, or an example lacks a field of it.
    """
    from crossover.models.prompt import engine_of, first_messages
    from crossover.programs.demos import fields_of

    predictors = program.named_predictors()
    if len(predictors) != 1 or len(predictors[0][1].signature.output_fields) != 1:
        raise UserError("head gives one label by one predictor, and this program does more; use sft")
    predictor, engine = predictors[0][1], engine_of(lm)
    adapter = dspy.settings.adapter or dspy.ChatAdapter()
    rows, said, dropped = [], [], 0
    for e in examples:
        if (demo := fields_of(e, predictor)) is None:
            missing = sorted(set(predictor.signature.fields) - set(e.keys()))
            raise UserError(f"train example {e['id']} lacks {', '.join(missing)}; add it to the data or to `fields`")
        ids = engine.encode(first_messages(program, e, predictor))
        if len(ids) > engine.context:
            dropped += 1
            continue
        rows.append(ids)
        said.append(str(adapter.format_assistant_message_content(predictor.signature, demo)))
    if not rows:
        raise UserError(f"all {dropped} prompts exceed the model's context of {engine.context} tokens; shorten them")
    answers = sorted(set(said))
    return Labelled(rows, [answers.index(a) for a in said], answers, dropped)


def score_val(engine: "HeadEngine", ground: Any) -> list[Any]:
    """Return the rows of val, answered and scored as a test would be."""
    from crossover.models.limits import limited_like
    from crossover.models.load import local_lm
    from crossover.programs.score import score_examples

    served = local_lm(f"{ground.lm.model}+head-on-val", engine, ground.lm.kwargs["max_tokens"], 0.0)
    with dspy.context(lm=limited_like(served, ground.lm)):
        return list(score_examples(ground.program, ground.val, ground.metric, threads=ground.budget.threads))


def logistic_regression(
    states: "torch.Tensor", labels: "torch.Tensor", classes: int, ridge: float
) -> tuple["torch.Tensor", "torch.Tensor"]:
    """Return weight and bias of the multinomial regression with the least penalized loss, by L-BFGS.

    The states are standardized, and the penalty is `ridge` times half the squared weights, over the number of rows.
    What comes back works on states as they are.
    """
    import torch

    x = states.double()
    middle, spread = x.mean(0), x.std(0, correction=0).clamp(min=1e-6)
    x = (x - middle) / spread
    weight = torch.zeros(classes, x.shape[1], dtype=torch.double, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.double, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=300, tolerance_grad=1e-6, history_size=10, line_search_fn="strong_wolfe"
    )

    def loss() -> "torch.Tensor":
        solver.zero_grad()
        value = torch.nn.functional.cross_entropy(x @ weight.T + bias, labels)
        value = value + ridge / 2 * weight.pow(2).sum() / len(labels)
        value.backward()  # type: ignore[no-untyped-call]  # torch's own
        return value

    solver.step(loss)  # type: ignore[no-untyped-call]  # torch's own
    scaled = weight.detach() / spread
    return scaled.float(), (bias.detach() - scaled @ middle).float()
