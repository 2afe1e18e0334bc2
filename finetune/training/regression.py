"""Fit a head on a frozen base: a multinomial regression of the labels on the states of the prompts."""

from collections.abc import Sequence
from dataclasses import dataclass

import dspy
import torch

from crossover.finetune.training.context import FitContext
from crossover.finetune.training.targets import labelled_fields
from crossover.models.errors import UserError
from crossover.models.heads import HeadEngine
from crossover.models.limits import limited_like
from crossover.models.load import local_lm
from crossover.models.local import LocalEngine
from crossover.models.prompt import engine_of, first_messages
from crossover.models.usage import Usage


@dataclass(frozen=True)
class Labelled:
    """The train examples as token ids and label numbers."""

    rows: list[list[int]]
    """Token ids of the prompts, as the serving side encodes them."""
    labels: list[int]
    """Position of each row's answer among `answers`."""
    answers: list[str]
    """Every label once, in the words of the prompt format."""
    dropped: int
    """Rows longer than the model's context."""


def labelled(program: dspy.Module, examples: Sequence[dspy.Example], lm: dspy.LM) -> Labelled:
    """Render every example by the calling context's DSPy adapter and the model's own chat template.

    Raises:
        UserError: the program is more than one predictor of one answer, or an example lacks a field of it.
    """
    predictors = program.named_predictors()
    if len(predictors) != 1 or len(predictors[0][1].signature.output_fields) != 1:
        raise UserError("head gives one label by one predictor, and this program does more; use sft")
    predictor, engine = predictors[0][1], engine_of(lm)
    adapter = dspy.settings.adapter or dspy.ChatAdapter()
    rows, texts, dropped = [], [], 0
    for e in examples:
        values = labelled_fields(e, predictor)
        ids = engine.encode(first_messages(program, e, predictor))
        if len(ids) > engine.context:
            dropped += 1
            continue
        rows.append(ids)
        texts.append(str(adapter.format_assistant_message_content(predictor.signature, values)))
    if not rows:
        raise UserError(f"all {dropped} prompts exceed the model's context of {engine.context} tokens; shorten them")
    answers = sorted(set(texts))
    return Labelled(rows, [answers.index(a) for a in texts], answers, dropped)


def regression(states: torch.Tensor, data: Labelled, ridge: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weight and bias of the head on the states of the rows."""
    return logistic_regression(states, torch.tensor(data.labels), len(data.answers), ridge)


def base_states(engine: LocalEngine, data: Labelled, pooling: str) -> torch.Tensor:
    """Return one pooled state of the base for each row."""
    no_head = torch.zeros(1, 1)
    return HeadEngine(engine, no_head, no_head[0], data.answers, pooling=pooling).states(data.rows)


def score_head(engine: HeadEngine, context: FitContext) -> tuple[float, Usage]:
    """Return the mean score of a head on val, served as it will be on test, and the usage of the calls."""
    served = local_lm(f"{context.lm.model}+head-on-val", engine, context.lm.kwargs["max_tokens"], 0.0)
    return context.score_val(limited_like(served, context.lm))


def logistic_regression(
    states: torch.Tensor, labels: torch.Tensor, classes: int, ridge: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weight and bias of the multinomial regression with the least penalized loss, by L-BFGS.

    The states are standardized, and the penalty is `ridge` times half the squared weights, over the number of rows.
    The weights returned apply to states that are not standardized.
    """
    x = states.double()
    mean, spread = x.mean(0), x.std(0, correction=0).clamp(min=1e-6)
    x = (x - mean) / spread
    weight = torch.zeros(classes, x.shape[1], dtype=torch.double, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.double, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=300, tolerance_grad=1e-6, history_size=10, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        solver.zero_grad()
        value = torch.nn.functional.cross_entropy(x @ weight.T + bias, labels)
        value = value + ridge / 2 * weight.pow(2).sum() / len(labels)
        value.backward()  # type: ignore[no-untyped-call]  # torch's own
        return value

    solver.step(loss)  # type: ignore[no-untyped-call]  # torch's own
    scaled = weight.detach() / spread
    return scaled.float(), (bias.detach() - scaled @ mean).float()
