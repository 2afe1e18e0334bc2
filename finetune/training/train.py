"""Run TRL's SFTTrainer for the methods of this folder, with selection on val and checkpoints."""

import contextlib
import io
import json
import logging
import shutil
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy

from crossover.finetune.training.render import TrainingText, row_ids
from crossover.finetune.training.selection import Pace, Score, Selector, TrainingRun, told
from crossover.finetune.training.settings import base_model, lora_config, sft_config
from crossover.models.limits import limited_like, limits_of
from crossover.models.load import local_lm
from crossover.models.local import LocalEngine
from crossover.models.prompt import engine_of
from crossover.models.usage import Usage
from crossover.programs.score import Row, mean_score, score_examples
from crossover.programs.task import Budget, Fitted, Metric

if TYPE_CHECKING:
    from crossover.finetune.sft import Sft

CHECKED = 32
"""Rows whose tokens are compared with the serving side's."""


@dataclass(frozen=True)
class Ground:
    """What a training stands on, whatever its hyper-parameters."""

    program: dspy.Module
    val: Sequence[dspy.Example]
    metric: Metric
    lm: dspy.LM
    seed: int
    budget: Budget
    begun: float = field(default_factory=time.perf_counter)
    """When the fit began."""


def train_model(options: "Sft", text: TrainingText, ground: Ground, *, folder: Path, pause: float = 0.0) -> TrainingRun:
    """Train a fresh copy of the base on the rows and keep the best epoch's weights in `folder`.

    A training that was killed, or paused after a share of its steps, goes on from its last checkpoint.
    """
    if options.accelerate_file:
        from crossover.finetune.training.launch import train_launched

        return train_launched(options, text, ground, folder)
    engine = engine_of(ground.lm)
    run = TrainingRun(folder=folder / "best")
    pace = Pace(options.epochs, options.patience, options.checkpoint_minutes, last=not ground.val, pause=pause)
    selector = Selector(
        run,
        pace=pace,
        score=val_scorer(ground),
        save=weight_saver(engine.tokenizer),
        folder=folder,
        budget=ground.budget,
        allowance=limits_of(ground.lm),
        identity=identity_of(ground, asdict(options), text.sha256, len(text.rows)),
    )
    if run.done or (pause and run.early_score is not None):
        return run
    with quiet():
        trainer = trainer_of(options, text, engine.folder, engine.tokenizer, folder, ground.seed)
        train(trainer, selector)
    run.tokens = round(sum(text.lengths) * trainer.state.epoch)
    selector.finish()
    return run


def identity_of(ground: Ground, *facts: Any) -> str:
    """Return the hash by which a training is known again: what it stands on, and what else decides its numbers."""
    known = [*facts, engine_of(ground.lm).sha256, ground.seed]
    return sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def trainer_of(
    options: "Sft", text: TrainingText, base: Path, tokenizer: Any, folder: Path, seed: int, **more: Any
) -> Any:
    """Return TRL's trainer on a fresh copy of the base; `more` replaces settings of its configuration.

    Raises:
        RuntimeError: it would train on other tokens than are served.
    """
    from datasets import Dataset
    from transformers import set_seed

    from crossover.finetune.sft import learning_rate
    from crossover.finetune.training.loss import trainer_for

    set_seed(seed)
    model = base_model(options, base)
    lr = learning_rate(options, model.num_parameters())
    engine = LocalEngine(model, tokenizer, in_training=True)
    trainer = trainer_for(model)(
        model=model,
        args=sft_config(options, text, folder, lr, seed, engine.context, **more),
        train_dataset=Dataset.from_list(text.rows),
        processing_class=tokenizer,
        peft_config=None if options.adapter == "none" else lora_config(options),
    )
    check_tokens(trained_ids(trainer.train_dataset, len(text.rows), packed=options.packing), text, engine)
    return trainer


def train(trainer: Any, selector: Selector) -> None:
    """Train from the last checkpoint, where there is one, and tell the selector's run of it."""
    run = selector.run
    run.lr, run.trainable = trainer.args.learning_rate, trainable_parameters(trainer.model)
    trainer.add_callback(selector)
    trainer.train(resume_from_checkpoint=None if selector.checkpoint is None else str(selector.checkpoint))
    run.losses = told(trainer.state, trainer.args.logging_steps)


def trainable_parameters(model: Any) -> int:
    """Return the number of parameters that a training moves."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def trained_ids(dataset: Any, rows: int, *, packed: bool) -> list[list[int]]:
    """Return the token ids of the first rows as they are trained; of packs, every row they hold.

    Raises:
        RuntimeError: a row was lost on the way.
    """
    if not packed:
        if len(dataset) != rows:
            raise RuntimeError(f"TRL kept {len(dataset)} of {rows} training rows")
        return [list(dataset[i]["input_ids"]) for i in range(min(CHECKED, rows))]
    found = []
    for pack in dataset:
        ends = [sum(pack["seq_lengths"][: n + 1]) for n in range(len(pack["seq_lengths"]))]
        found += [list(pack["input_ids"][end - n : end]) for n, end in zip(pack["seq_lengths"], ends, strict=True)]
    if len(found) != rows:
        raise RuntimeError(f"TRL packed {len(found)} of {rows} training rows")
    return found


def val_scorer(ground: Ground) -> Score:
    """Return what scores a model in training on val, by the task's own metric, as the serving side would."""
    tokenizer, context = engine_of(ground.lm).tokenizer, dspy.settings.copy()

    def score(model: Any) -> tuple[float, Usage]:
        with in_eval(model):
            engine = LocalEngine(model, tokenizer, in_training=True)
            served = local_lm(
                ground.lm.model + "-in-training",
                engine,
                ground.lm.kwargs["max_tokens"],
                ground.lm.kwargs["temperature"],
            )
            try:
                with dspy.context(lm=limited_like(served, ground.lm), adapter=context["adapter"], rm=context["rm"]):
                    rows = list(
                        score_examples(ground.program, ground.val, ground.metric, threads=ground.budget.threads)
                    )
            finally:
                engine.close()
        return mean_score(rows), spent_on(rows)

    return score


@contextlib.contextmanager
def in_eval(model: Any) -> Any:
    """Turn dropout off for a while, and back to what it was."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def weight_saver(tokenizer: Any) -> Callable[[Any, Path], None]:
    """Return what writes the weights with the tokenizer, so that the folder can be served."""

    def save(model: Any, folder: Path) -> None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return save


def fitted_with(
    run: TrainingRun, ground: Ground, *, probe: list[dict[str, str]], spent: Usage, notes: Mapping[str, Any]
) -> Fitted:
    """Return the program on the weights that a training kept, copied to where they outlive its checkpoints.

    `probe` is a prompt whose logits tell whether the weights are in use; `spent` and `notes` are added to the run's.
    """
    from crossover.finetune.sft import serve

    run = copy_best(run, ground.budget)
    tuned, change = serve(run.folder, ground.lm, probe=probe)
    spent = run.spent + spent
    # A training that went on, or targets that another fit built, took time that this process did not.
    spent.seconds = max(spent.seconds, time.perf_counter() - ground.begun)
    fitted = Fitted(ground.program, tuned, spent, run.folder, {"logit_change": change, **run.notes, **notes})
    if run.best_epoch == 0:
        fitted.warnings.append("no epoch beat the untrained model on val")
    return fitted


def checkpoints_of(budget: Budget) -> Path:
    """Return where checkpoints are kept."""
    return budget.checkpoints or budget.workdir / "checkpoints"


def copy_best(run: TrainingRun, budget: Budget) -> TrainingRun:
    """Return the run with a copy of its best weights in the work folder, which outlives the checkpoints."""
    kept = budget.workdir / "best"
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(run.folder, kept)
    return replace(run, folder=kept)


def spent_on(rows: Sequence[Row]) -> Usage:
    """Return the calls and tokens of scored examples; their seconds overlap and are measured outside."""
    return Usage(
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
    known = {tuple(ids) for ids in trained}
    for row in text.rows[: min(CHECKED, len(trained))]:
        served = engine.encode(row["prompt"])
        whole = row_ids(engine.tokenizer, [*row["prompt"], *row["completion"]])
        if tuple(whole) not in known or whole[: len(served)] != served:
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
