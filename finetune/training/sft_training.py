"""Train on prompts and completions by TRL's SFTTrainer, on exactly the tokens that serving sends."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from crossover.finetune.training.checkpoints import TrainingRun
from crossover.finetune.training.context import FitContext
from crossover.finetune.training.loss import trainer_for
from crossover.finetune.training.options import TrainingOptions, learning_rate
from crossover.finetune.training.render import TrainingText, row_ids
from crossover.finetune.training.settings import Base, base_model, base_of, lora_config, sft_config
from crossover.finetune.training.train import Training, run_training, val_scorer, weight_saver
from crossover.models.local import LocalEngine
from crossover.models.prompt import engine_of

CHECKED = 32
"""Rows whose tokens are compared with the serving side's."""


def train_sft(
    options: TrainingOptions, text: TrainingText, context: FitContext, folder: Path, *, pause: float = 0.0
) -> TrainingRun:
    """Train a fresh copy of the base on the rows, and keep the best epoch's weights in `folder`."""
    engine = engine_of(context.lm)
    training = Training(
        data=[text.sha256, len(text.rows)],
        lengths=text.lengths,
        build=lambda options: sft_trainer(options, text, base_of(engine), engine.tokenizer, folder, context.seed),
        score=val_scorer(context),
        save=weight_saver(engine.tokenizer),
    )
    return run_training(training, context, options, folder, pause=pause)


def sft_trainer(
    options: TrainingOptions,
    text: TrainingText,
    base: Base,
    tokenizer: Any,
    folder: Path,
    seed: int,
    *,
    save_epochs: bool = False,
) -> Any:
    """Return TRL's trainer on a fresh copy of the base.

    Raises:
        RuntimeError: it would train on other tokens than are served.
    """
    from datasets import Dataset

    model = base_model(options, base)
    options = replace(options, lr=learning_rate(options, model.num_parameters()))
    engine = LocalEngine(model, tokenizer, in_training=True)
    trainer = trainer_for(model)(
        model=model,
        args=sft_config(options, text, folder, seed, context=engine.context, save_epochs=save_epochs),
        train_dataset=Dataset.from_list(text.rows),
        processing_class=tokenizer,
        peft_config=None if options.adapter == "none" else lora_config(options),
    )
    check_tokens(trained_ids(trainer.train_dataset, len(text.rows), packed=options.packing), text, engine)
    return trainer


def trained_ids(dataset: Any, rows: int, *, packed: bool) -> list[list[int]]:
    """Return the token ids of the first rows as TRL prepared them; of packs, those of every row.

    Raises:
        RuntimeError: a row was lost on the way.
    """
    if not packed:
        if len(dataset) != rows:
            raise RuntimeError(f"TRL kept {len(dataset)} of {rows} training rows")
        return [list(dataset[i]["input_ids"]) for i in range(min(CHECKED, rows))]
    unpacked = []
    for pack in dataset:
        ends = [sum(pack["seq_lengths"][: n + 1]) for n in range(len(pack["seq_lengths"]))]
        unpacked += [list(pack["input_ids"][end - n : end]) for n, end in zip(pack["seq_lengths"], ends, strict=True)]
    if len(unpacked) != rows:
        raise RuntimeError(f"TRL packed {len(unpacked)} of {rows} training rows")
    return unpacked


def check_tokens(trained: Sequence[Sequence[int]], text: TrainingText, engine: LocalEngine) -> None:
    """Raise unless the first rows are trained on exactly the token ids that serving sends.

    Raises:
        RuntimeError: TRL's rendering differs from the serving one, so that a comparison would be unfair.
    """
    known = {tuple(ids) for ids in trained}
    for row in text.rows[: min(CHECKED, len(trained))]:
        served = engine.encode(row["prompt"])
        whole = row_ids(engine.tokenizer, [*row["prompt"], *row["completion"]])
        if tuple(whole) not in known or whole[: len(served)] != served:
            raise RuntimeError("training and serving render the same example to different tokens")
