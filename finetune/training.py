"""Run TRL's SFTTrainer for the methods of this folder, with selection on val after every epoch."""

import contextlib
import io
import logging
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy

from finetune.render import TrainingText, row_ids
from models.load import local_lm
from models.local import LocalEngine
from models.prompt import engine_of
from programs.score import Row, mean_score, score_examples
from programs.task import Budget, Metric, Spent

if TYPE_CHECKING:
    from finetune.sft import Sft


@dataclass
class TrainingRun:
    """What came of a training."""

    folder: Path
    """The best weights: a PEFT adapter, or a whole model."""
    lr: float = 0.0
    trainable: int = 0
    tokens: int = 0
    best_epoch: int = 0
    """1-based; 0 when nothing beat the untrained model (the last epoch is kept all the same)."""
    val_scores: list[float] = field(default_factory=list)
    """Mean on val before training and after each epoch."""
    losses: list[float] = field(default_factory=list)
    selection: Spent = field(default_factory=Spent)
    """What reading val cost in tokens; its time is inside the training's."""
    trained_ids: list[list[int]] = field(default_factory=list)
    """Token ids of the first rows as TRL trained them."""


def train_model(
    options: "Sft",
    text: TrainingText,
    *,
    program: dspy.Module,
    val: Sequence[dspy.Example],
    metric: Metric,
    lm: dspy.LM,
    seed: int,
    budget: Budget,
) -> TrainingRun:
    """Train a fresh copy of the base on the rows and keep the best epoch's weights in `budget.workdir`."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, set_seed

    from finetune.loss import trainer_for
    from finetune.sft import learning_rate

    set_seed(seed)
    engine = engine_of(lm)
    import torch

    model = AutoModelForCausalLM.from_pretrained(engine.folder, dtype=torch.float32, use_safetensors=True)
    run = TrainingRun(folder=budget.workdir / "best", lr=learning_rate(options, model.num_parameters()))
    checkpoints = budget.workdir / "checkpoints"
    with quiet():
        trainer = trainer_for(model)(
            model=model,
            args=sft_config(options, text, checkpoints, run.lr, seed),
            train_dataset=Dataset.from_list(text.rows),
            processing_class=engine.tokenizer,
            peft_config=lora_config(options) if options.adapter == "lora" else None,
        )
        if len(trainer.train_dataset) != len(text.rows):
            raise RuntimeError(f"TRL kept {len(trainer.train_dataset)} of {len(text.rows)} training rows")
        run.trained_ids = [list(trainer.train_dataset[i]["input_ids"]) for i in range(min(32, len(text.rows)))]
        run.trainable = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
        selector = _selector(run, program, val, metric, lm, budget, options.epochs)
        trainer.add_callback(selector)
        trainer.train()
    run.tokens = sum(text.lengths) * options.epochs
    run.losses = [round(float(h["loss"]), 4) for h in trainer.state.log_history if "loss" in h]
    shutil.rmtree(checkpoints, ignore_errors=True)
    return run


def sft_config(options: "Sft", text: TrainingText, folder: Path, lr: float, seed: int) -> Any:
    """Return TRL's configuration: nothing truncated, nothing reported elsewhere, nothing saved but what we choose."""
    import torch
    from trl import SFTConfig

    steps = max(1, len(text.rows) * options.epochs // options.batch_size)
    return SFTConfig(
        output_dir=str(folder),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.batch_size,
        learning_rate=lr,
        lr_scheduler_type="linear",
        warmup_steps=int(options.warmup * steps),
        max_length=max(text.lengths),
        packing=False,
        train_sampling_strategy="group_by_length",
        completion_only_loss=True,
        gradient_checkpointing=False,
        bf16=options.bf16,
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
        data_seed=seed,
        logging_steps=max(1, steps // 20),
        save_strategy="no",
        eval_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


def lora_config(options: "Sft") -> Any:
    """Return PEFT's configuration: every linear layer of the blocks, as in QLoRA (arXiv 2305.14314)."""
    from peft import LoraConfig

    return LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def _selector(
    run: TrainingRun,
    program: dspy.Module,
    val: Sequence[dspy.Example],
    metric: Metric,
    lm: dspy.LM,
    budget: Budget,
    epochs: int,
) -> Any:
    """Return the callback that scores val after every epoch and keeps the best weights."""
    from transformers import TrainerCallback

    tokenizer = engine_of(lm).tokenizer
    context = dspy.settings.copy()

    def score(model: Any) -> float:
        was_training = model.training
        model.eval()
        engine = LocalEngine(model, tokenizer, in_training=True)
        served = local_lm(lm.model + "-in-training", engine, lm.kwargs["max_tokens"], lm.kwargs["temperature"])
        try:
            with dspy.context(lm=served, adapter=context["adapter"]):
                rows = list(score_examples(program, val, metric, threads=budget.threads))
        finally:
            engine.close()
            model.train(was_training)
        run.selection += spent_on(rows)
        return mean_score(rows)

    class Selector(TrainerCallback):  # type: ignore[misc]  # transformers' callback is untyped
        """Keep the weights of the epoch that scores best on val."""

        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            run.val_scores.append(score(model))

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if logs and "loss" in logs:
                budget.progress(f"sft step {state.global_step}/{state.max_steps}, loss {float(logs['loss']):.3f}")

        def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            run.val_scores.append(score(model))
            epoch, best = len(run.val_scores) - 1, max(run.val_scores[:-1])
            budget.progress(f"sft epoch {epoch}/{epochs}, val {run.val_scores[-1]:.3f}")
            if run.val_scores[-1] > best or not run.folder.exists():
                run.best_epoch = epoch if run.val_scores[-1] > best else 0
                model.save_pretrained(run.folder)
                tokenizer.save_pretrained(run.folder)

    return Selector()


def spent_on(rows: Sequence[Row]) -> Spent:
    """Return the calls and tokens of scored examples; their seconds overlap and are measured outside."""
    return Spent(
        calls=sum(r.calls for r in rows),
        prompt_tokens=sum(r.prompt_tokens for r in rows),
        cached_tokens=sum(r.cached_tokens for r in rows),
        completion_tokens=sum(r.completion_tokens for r in rows),
    )


def check_tokens(trained: Sequence[Sequence[int]], text: TrainingText, engine: LocalEngine) -> None:
    """Raise unless the first rows were trained on exactly the token ids that serving sends.

    Raises:
        RuntimeError: TRL's rendering differs from the serving one, so that a comparison would be unfair.
    """
    for ids, row in zip(trained, text.rows, strict=False):
        served = engine.encode(row["prompt"])
        whole = row_ids(engine.tokenizer, [*row["prompt"], *row["completion"]])
        if list(ids) != whole or whole[: len(served)] != served:
            raise RuntimeError("training and serving render the same example to different tokens")


@contextlib.contextmanager
def quiet() -> Any:
    """Keep the libraries' own tables and warnings off stdout and stderr while they train."""
    loggers = [logging.getLogger(n) for n in ("transformers", "trl", "peft", "accelerate", "datasets")]
    levels = [x.level for x in loggers]
    from datasets.utils.logging import disable_progress_bar

    disable_progress_bar()
    for x in loggers:
        x.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for x, level in zip(loggers, levels, strict=True):
            x.setLevel(level)
