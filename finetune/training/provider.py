"""A DSPy provider for models that run here, so that DSPy's own BootstrapFinetune and BetterTogether train by TRL.

DSPy's provider for local models imports a function that TRL has removed, and serves on every address of the machine.
This one trains an adapter in this process and attaches it to the base that already answers.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dspy
from dspy.clients.provider import Provider

from crossover.finetune.training.context import FitContext
from crossover.finetune.training.options import TrainingOptions, check_adapter, check_local
from crossover.finetune.training.render import TrainingText, row_ids
from crossover.finetune.training.sft_training import train_sft
from crossover.models.errors import UserError
from crossover.models.prompt import engine_of
from crossover.models.text import safe_messages
from crossover.models.token_engine import TokenEngine
from crossover.programs.task import Budget


class LocalProvider(Provider):  # type: ignore[misc]  # dspy is untyped
    """Train an adapter on a base whose weights are at hand."""

    def __init__(self, lm: dspy.LM, folder: Path) -> None:
        """Train for the engine of `lm`, and keep each adapter in a folder of its own below `folder`."""
        super().__init__()
        self.finetunable = True
        self.lm, self.folder, self.trained = lm, folder, 0

    def __deepcopy__(self, memo: dict[int, Any]) -> "LocalProvider":
        """Return this provider: copies of a program train the same base."""
        return self

    def finetune(
        self,
        job: Any,
        model: str,
        train_data: Sequence[Mapping[str, Any]],
        train_data_format: Any,
        train_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """Train on conversations whose last turn is the answer, and return the model's name with the adapter.

        `train_kwargs` are hyper-parameters of sft, and `seed`. Every training starts from the base, also a second one
        of the same program: it learns from the traces of the first, not from its weights.

        Raises:
            UserError: full weights are asked for, which cannot be served on the same base.
        """
        given = dict(train_kwargs or {})
        seed = int(given.pop("seed", 0))
        options = TrainingOptions(**given)
        check_adapter(options.adapter)
        if options.adapter == "none":
            raise UserError("DSPy trains adapters on a local model, and `adapter: none` is none; use lora or dora")
        self.trained += 1
        text = conversation_text([d["messages"] for d in train_data], self.lm)
        folder = self.folder / f"training-{self.trained}"
        # Without val the last epoch is kept: DSPy selects by itself.
        context = FitContext(dspy.Predict("a -> b"), (), _no_metric, self.lm, seed, Budget(workdir=folder))
        run = train_sft(options, text, context, folder)
        return f"{self.lm.model.partition('+')[0]}+{engine_of(self.lm).add_adapter(run.folder)}"


def _no_metric(gold: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> float:
    raise ValueError("DSPy selects by itself; nothing is scored while it trains")


def trainable(lm: dspy.LM, folder: Path) -> dspy.LM:
    """Give the model a provider, so that DSPy's optimizers of weights can train it.

    Raises:
        UserError: the model does not run here.
    """
    check_local(lm, "DSPy's finetune")
    return lm.copy(provider=LocalProvider(lm, folder))


def conversation_text(conversations: Sequence[Sequence[Mapping[str, str]]], lm: dspy.LM) -> TrainingText:
    """Make training rows of conversations; the loss falls on the last turn alone.

    Raises:
        UserError: there is no conversation, or none fits the model's context.
    """
    engine: TokenEngine = engine_of(lm)
    rows, lengths, dropped, digest = [], [], 0, hashlib.sha256()
    for *prompt, answer in conversations:
        # An empty system turn says nothing; an empty answer is one.
        shown = [dict(m) for m in (*(m for m in prompt if m["content"]), answer)]
        messages = safe_messages(engine.tokenizer, shown)
        ids = row_ids(engine.tokenizer, messages)
        if len(ids) > engine.context:
            dropped += 1
            continue
        digest.update(json.dumps(ids).encode())
        rows.append({"prompt": messages[:-1], "completion": messages[-1:]})
        lengths.append(len(ids))
    if not rows and dropped:
        raise UserError(f"none of {dropped} training rows fits the model's context of {engine.context} tokens")
    if not rows:
        raise UserError("DSPy handed over no training rows: no trace was good enough for the metric")
    return TrainingText(rows, lengths, dropped, digest.hexdigest())
