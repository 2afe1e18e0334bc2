"""Run one of the libraries' trainers with selection on val and checkpoints, and serve the weights it kept."""

import contextlib
import io
import json
import logging
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import dspy
import torch
from transformers import set_seed

from crossover.finetune.training.batch_size import rows_expected, split, train_in_parts
from crossover.finetune.training.checkpoints import Checkpoints, TrainingRun
from crossover.finetune.training.context import FitContext
from crossover.finetune.training.options import TrainingOptions
from crossover.finetune.training.selection import Save, Score, Selector, loss_history
from crossover.finetune.training.settings import tokens_of_row
from crossover.models.limits import limited_like
from crossover.models.load import local_lm, tuned_lm
from crossover.models.local import LocalEngine
from crossover.models.memory import free_bytes, release_memory
from crossover.models.prompt import engine_of
from crossover.models.token_engine import TokenEngine
from crossover.models.usage import Usage
from crossover.programs.task import FitFacts, Fitted

PROBED = 16
"""Last tokens of a prompt whose log-probabilities show that trained weights answer."""


@dataclass(frozen=True)
class Training:
    """The parts in which one kind of training differs from another."""

    data: Any
    """JSON values that identify the train data; checkpoints of other data are removed."""
    lengths: Sequence[int]
    """Tokens of each row."""
    build: Callable[[TrainingOptions], Any]
    """Makes the library's trainer on a fresh copy of the base."""
    score: Score
    save: Save
    keep_start: bool = False
    """Whether the weights before training can be served, and are kept if no epoch is better."""


def run_training(
    training: Training, context: FitContext, options: TrainingOptions, folder: Path, *, pause: float = 0.0
) -> TrainingRun:
    """Train and keep the best epoch's weights in `folder`.

    A training that was killed, or paused after a share of its steps, goes on from its newest checkpoint; one that is
    over is read from its folder.
    """
    identity, note = identity_of(context, options, training.data), context.budget.progress
    checkpoints = Checkpoints(folder, identity, note)
    if checkpoints.run.done or (pause and checkpoints.run.early_score is not None):
        return checkpoints.run
    batch = options.rows_per_batch
    # Tells what fits in memory, and trains if the whole batch does; a list, so that a split can drop it.
    first, expected = [_built(training, context, split(options, batch))], batch
    if not torch.cuda.is_available():
        with quiet():
            expected = rows_expected(first[0], training.lengths, batch, free_bytes(torch.device("cpu")))

    begun = [checkpoints]

    def train(options: TrainingOptions) -> TrainingRun:
        # The clock of the first attempt has run since before the estimate; another one reads what the last one saved.
        checkpoints = begun.pop() if begun else Checkpoints(folder, identity, note)
        if options.rows_per_batch < batch:
            checkpoints.run.micro_batch = options.rows_per_batch
            first.clear()
            release_memory()
        trainer = first.pop() if first else _built(training, context, options)
        return _train(trainer, training, context, options, checkpoints, pause)

    tokens = tokens_of_row(options, training.lengths, engine_of(context.lm).context)
    return train_in_parts(train, options, expected, tokens, note)


def _built(training: Training, context: FitContext, options: TrainingOptions) -> Any:
    """Return the trainer; new weights of an adapter follow the seed."""
    set_seed(context.seed)
    with quiet():
        return training.build(options)


def _train(
    trainer: Any,
    training: Training,
    context: FitContext,
    options: TrainingOptions,
    checkpoints: Checkpoints,
    pause: float,
) -> TrainingRun:
    """Train from the newest checkpoint on, and keep the best epoch's weights."""
    run = checkpoints.run
    selector = Selector(
        checkpoints,
        context,
        options,
        score=training.score,
        save=training.save,
        keep_start=training.keep_start,
        pause=pause,
    )
    run.lr, run.trainable = trainer.args.learning_rate, trainable_parameters(trainer.model)
    trainer.add_callback(selector)
    with quiet():
        trainer.train(resume_from_checkpoint=checkpoints.newest and str(checkpoints.newest))
    run.losses = loss_history(trainer.state, trainer.args.logging_steps)
    run.margins = loss_history(trainer.state, trainer.args.logging_steps, "rewards/margins")
    run.tokens = round(sum(training.lengths) * trainer.state.epoch)
    if selector.paused:
        checkpoints.write_state()
    else:
        checkpoints.finish()
    return run


def identity_of(context: FitContext, options: TrainingOptions, data: Any) -> str:
    """Return a hash of everything that a training's numbers depend on."""
    facts = [asdict(options), data, engine_of(context.lm).sha256, context.seed]
    return sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def trainable_parameters(model: Any) -> int:
    """Return the number of parameters that the optimizer updates."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def val_scorer(context: FitContext) -> Score:
    """Return a function that scores a model in training by the task's own metric, with the prompts of serving."""
    tokenizer, lm = engine_of(context.lm).tokenizer, context.lm

    def score(model: Any) -> tuple[float, Usage]:
        with in_eval(model):
            engine = LocalEngine(model, tokenizer, in_training=True)
            served = local_lm(f"{lm.model}-in-training", engine, lm.kwargs["max_tokens"], lm.kwargs["temperature"])
            try:
                return context.score_val(limited_like(served, lm))
            finally:
                engine.close()

    return score


@contextlib.contextmanager
def in_eval(model: Any) -> Iterator[None]:
    """Turn dropout off inside the block."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def weight_saver(tokenizer: Any) -> Save:
    """Return a function that writes the weights and the tokenizer, so that the folder can be served."""

    def save(model: Any, folder: Path) -> None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return save


def fitted_with(
    run: TrainingRun, context: FitContext, *, probe: list[dict[str, str]], spent: Usage, notes: Mapping[str, Any]
) -> Fitted:
    """Return the program on the weights that a training kept, with the note by how much they change a logit of `probe`.

    `spent` and `notes` are those of preparing the training, and are added to the run's.
    """
    folder = copy_best(run, context)
    tuned, change = serve(folder, context.lm, probe=probe)
    spent = run.spent + spent
    # A resumed training, or targets that another fit built, took time before this process began.
    spent.seconds = max(spent.seconds, time.perf_counter() - context.begun)
    facts = FitFacts(logit_change=change, val_score=run.kept_score)
    fitted = Fitted(context.program, tuned, spent, folder, facts, {**run.notes, **notes})
    if run.best_epoch == 0:
        fitted.warnings.append("no epoch beat the untrained model on val")
    return fitted


def copy_best(run: TrainingRun, context: FitContext) -> Path:
    """Copy the best weights to the work folder, which outlives the checkpoints."""
    folder = context.budget.workdir / "best"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(run.folder, folder)
    return folder


def serve(folder: Path, lm: dspy.LM, *, probe: list[dict[str, str]]) -> tuple[dspy.LM, float]:
    """Return the model with the trained weights, and the largest change of a log-probability on the probe prompt."""
    engine: TokenEngine = engine_of(lm)
    ids = engine.encode(probe)
    last = min(PROBED, len(ids) - 1)
    before, again, tuned = engine.token_logprobs(ids, last), engine.token_logprobs(ids, last), tuned_lm(lm, folder)
    after = engine_of(tuned).token_logprobs(ids, last, tuned.model.partition("+")[2])
    # A server rounds an answer by what else is in its batch.
    noise, change = float((again - before).abs().max()), float((after - before).abs().max())
    return tuned, change if change > 2 * noise else 0.0


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' own tables and warnings off stdout and stderr while they train."""
    from datasets.utils.logging import disable_progress_bar

    disable_progress_bar()
    loggers = [logging.getLogger(n) for n in ("transformers", "trl", "peft", "accelerate", "datasets")]
    levels = [x.level for x in loggers]
    for x in loggers:
        x.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for x, level in zip(loggers, levels, strict=True):
            x.setLevel(level)
