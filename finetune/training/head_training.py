"""Train a classification head along with its base, by the library's trainer, with the selection of all trainings.

The head starts as the regression on the frozen base: one that starts at random spoils the states before it has learnt
to read them (arXiv 2202.10054).
"""

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments, set_seed

from crossover.finetune.sft import Sft, learning_rate
from crossover.finetune.training.selection import Pace, Selector, TrainingRun
from crossover.finetune.training.settings import common_arguments, lora_config
from crossover.finetune.training.train import checkpoints_of, identity_of, in_eval, quiet, spent_on, train
from crossover.models.heads import HeadEngine, pooled
from crossover.models.limits import limits_of
from crossover.models.local import BASE, LocalEngine
from crossover.models.prompt import engine_of
from crossover.models.usage import Usage
from crossover.programs.score import mean_score

if TYPE_CHECKING:
    from crossover.finetune.head import Head, Labelled


class Classifier(torch.nn.Module):
    """A base and a linear head over its pooled states."""

    def __init__(self, base: Any, weight: torch.Tensor, bias: torch.Tensor, pooling: str) -> None:
        """Start with the head that is given."""
        super().__init__()
        self.base, self.head, self.pooling = base, torch.nn.Linear(weight.shape[1], weight.shape[0]), pooling
        self.head.load_state_dict({"weight": weight, "bias": bias})
        self.register_state_dict_post_hook(_apart)  # type: ignore[no-untyped-call]

    def forward(self, rows: Sequence[Sequence[int]], labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the loss of the labels."""
        logits = self.head(pooled(self.base, rows, self.pooling).to(self.head.weight.dtype))
        return {"loss": torch.nn.functional.cross_entropy(logits.float(), labels), "logits": logits}


def _apart(module: torch.nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """Copy weights that share memory, such as tied embeddings: safetensors refuses them in a checkpoint."""
    seen: set[int] = set()
    for name, value in state.items():
        if value.data_ptr() in seen:
            state[name] = value.clone()
        seen.add(value.data_ptr())


class Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]  # untyped in use
    """Token ids and labels."""

    def __init__(self, data: "Labelled") -> None:
        """Hold the rows."""
        self.data = data

    def __len__(self) -> int:
        return len(self.data.rows)

    def __getitem__(self, n: int) -> tuple[list[int], int]:
        return self.data.rows[n], self.data.labels[n]


def train_head(options: "Head", data: "Labelled", ground: Any) -> TrainingRun:
    """Train head and base, and keep the best epoch's weights among the checkpoints."""
    engine, folder = engine_of(ground.lm), checkpoints_of(ground.budget) / "head"
    run = TrainingRun(folder=folder / "best")
    pace = Pace(options.epochs, minutes=options.checkpoint_minutes, start=True)
    selector = Selector(
        run,
        pace=pace,
        score=_scorer(options, data, ground),
        save=_save,
        folder=folder,
        budget=ground.budget,
        allowance=limits_of(ground.lm),
        identity=identity_of(ground, asdict(options), data.rows, data.labels, data.answers),
    )
    if run.done:
        return run
    set_seed(ground.seed)
    base = AutoModelForCausalLM.from_pretrained(engine.folder, dtype=torch.float32, use_safetensors=True)
    like = Sft(
        adapter="none" if options.base == "full" else "lora", rank=options.rank, alpha=options.alpha, lr=options.lr
    )
    lr = learning_rate(like, base.num_parameters())
    with quiet():
        if options.base == "lora":
            from peft import get_peft_model

            base = get_peft_model(base, lora_config(like))
        model = Classifier(base, *_regression(options, data, engine), options.pooling)
        trainer = Trainer(
            model=model,
            args=_arguments(options, data, folder, lr, ground.seed),
            train_dataset=Rows(data),
            data_collator=lambda items: {"rows": [r for r, _ in items], "labels": torch.tensor([y for _, y in items])},
        )
        train(trainer, selector)
    run.tokens = round(sum(map(len, data.rows)) * trainer.state.epoch)
    selector.finish()
    return run


def _regression(options: "Head", data: "Labelled", engine: LocalEngine) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the head with which the training starts."""
    from crossover.finetune.head import logistic_regression

    nothing = torch.zeros(1, 1)
    states = HeadEngine(engine, nothing, nothing[0], data.answers, pooling=options.pooling).states(data.rows)
    return logistic_regression(states, torch.tensor(data.labels), len(data.answers), options.ridge or 1.0)


def _arguments(options: "Head", data: "Labelled", folder: Path, lr: float, seed: int) -> TrainingArguments:
    steps = max(1, len(data.rows) * options.epochs // options.batch_size)
    return TrainingArguments(
        **common_arguments(folder, seed, steps),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.batch_size,
        learning_rate=lr,
        lr_scheduler_type="linear",
        warmup_steps=int(options.warmup * steps),
        bf16=options.bf16,
        remove_unused_columns=False,
    )


def _scorer(options: "Head", data: "Labelled", ground: Any) -> Any:
    """Return what scores a classifier in training on val."""
    from crossover.finetune.head import score_val

    def score(model: Any) -> tuple[float, Usage]:
        with in_eval(model):
            served = LocalEngine(model.base, engine_of(ground.lm).tokenizer, in_training=True)
            weight, bias = (p.detach().cpu() for p in (model.head.weight, model.head.bias))
            rows = score_val(HeadEngine(served, weight, bias, data.answers, pooling=options.pooling), ground)
        return mean_score(rows), spent_on(rows)

    return score


def _save(model: Any, folder: Path) -> None:
    """Write base, or its adapter, and head."""
    model.base.save_pretrained(folder)
    state = {"weight": model.head.weight, "bias": model.head.bias}
    save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, folder / "trained_head.safetensors")


def serve_trained(options: "Head", run: TrainingRun, data: "Labelled", ground: Any) -> HeadEngine:
    """Return the head on the trained base: an adapter of the engine that serves already, or a model of its own."""
    engine, folder = engine_of(ground.lm), ground.budget.workdir / "best"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(run.folder, folder)
    kept = load_file(folder / "trained_head.safetensors")
    (folder / "trained_head.safetensors").unlink()
    engine.tokenizer.save_pretrained(folder)
    full = options.base == "full"
    name = BASE if full else engine.add_adapter(folder)
    served = LocalEngine.load(folder) if full else engine
    return HeadEngine(served, kept["weight"], kept["bias"], data.answers, pooling=options.pooling, adapter=name)
