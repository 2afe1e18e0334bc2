"""Train a classification head along with its base, by the library's trainer, with the selection of all trainings.

The head starts as the regression on the frozen base: one that starts at random spoils the states before it has learnt
to read them (arXiv 2202.10054).
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainingArguments

from crossover.finetune.training.batch_size import by_rows
from crossover.finetune.training.checkpoints import TrainingRun
from crossover.finetune.training.context import FitContext
from crossover.finetune.training.options import TrainingOptions, learning_rate
from crossover.finetune.training.regression import Labelled, base_states, regression, score_head
from crossover.finetune.training.settings import base_model, base_of, lora_config, trainer_arguments
from crossover.finetune.training.train import Training, copy_best, in_eval, run_training
from crossover.models.heads import HeadEngine, pooled
from crossover.models.local import LocalEngine
from crossover.models.prompt import engine_of
from crossover.models.token_engine import BASE
from crossover.models.usage import Usage

HEAD_FILE = "trained_head.safetensors"


class Classifier(torch.nn.Module):
    """A base and a linear head over its pooled states."""

    def __init__(self, base: Any, weight: torch.Tensor, bias: torch.Tensor, pooling: str) -> None:
        """Start with the given weight and bias of the head."""
        super().__init__()
        self.base, self.head, self.pooling = base, torch.nn.Linear(weight.shape[1], weight.shape[0]), pooling
        self.head.load_state_dict({"weight": weight, "bias": bias})
        self.register_state_dict_post_hook(_apart)  # type: ignore[no-untyped-call]

    def forward(self, rows: Sequence[Sequence[int]], labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the loss of the labels, and the logits."""
        logits = self.head(pooled(self.base, rows, self.pooling).to(self.head.weight.dtype))
        return {"loss": torch.nn.functional.cross_entropy(logits.float(), labels), "logits": logits}


def _apart(module: torch.nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """Copy weights that share memory, such as tied embeddings: safetensors refuses them in a checkpoint."""
    seen: set[int] = set()
    for name, value in state.items():
        if value.data_ptr() in seen:
            state[name] = value.clone()
        seen.add(value.data_ptr())


def _collate(items: Sequence[tuple[list[int], int]]) -> dict[str, Any]:
    return {"rows": [row for row, _ in items], "labels": torch.tensor([label for _, label in items])}


def train_head(
    options: TrainingOptions, ridge: float, pooling: str, data: Labelled, context: FitContext
) -> TrainingRun:
    """Train head and base, and keep the best epoch's weights among the checkpoints."""
    engine, folder = engine_of(context.lm), context.checkpoints / "head"

    def build(options: TrainingOptions) -> Any:
        base = base_model(replace(options, adapter="none"), base_of(engine))
        rate = learning_rate(options, base.num_parameters())
        if options.adapter == "lora":
            from peft import get_peft_model

            base = get_peft_model(base, lora_config(options))
        model = Classifier(base, *regression(base_states(engine, data, pooling), data, ridge), pooling)
        arguments = trainer_arguments(replace(options, lr=rate), folder, context.seed, rows=len(data.rows))
        return by_rows(Trainer)(
            model=model,
            args=TrainingArguments(**arguments, remove_unused_columns=False),
            train_dataset=list(zip(data.rows, data.labels, strict=True)),
            data_collator=_collate,
        )

    def score(model: Any) -> tuple[float, Usage]:
        with in_eval(model):
            served = LocalEngine(model.base, engine.tokenizer, in_training=True)
            weight, bias = (p.detach().cpu() for p in (model.head.weight, model.head.bias))
            return score_head(HeadEngine(served, weight, bias, data.answers, pooling=pooling), context)

    training = Training(
        data=[ridge, pooling, data.rows, data.labels, data.answers],
        lengths=[len(row) for row in data.rows],
        build=build,
        score=score,
        save=_save,
        keep_start=True,
    )
    return run_training(training, context, options, folder)


def _save(model: Any, folder: Path) -> None:
    """Write the base, or its adapter, and the head."""
    model.base.save_pretrained(folder)
    state = {"weight": model.head.weight, "bias": model.head.bias}
    save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, folder / HEAD_FILE)


def serve_trained(run: TrainingRun, pooling: str, data: Labelled, context: FitContext) -> HeadEngine:
    """Return the head on the trained base: an adapter of the engine that serves already, or a model of its own."""
    engine, folder = engine_of(context.lm), copy_best(run, context)
    head = load_file(folder / HEAD_FILE)
    (folder / HEAD_FILE).unlink()
    engine.tokenizer.save_pretrained(folder)
    whole = not (folder / "adapter_config.json").exists()
    name = BASE if whole else engine.add_adapter(folder)
    served = LocalEngine.load(folder, trust_remote_code=engine.trust_remote_code) if whole else engine
    return HeadEngine(served, head["weight"], head["bias"], data.answers, pooling=pooling, adapter=name)
