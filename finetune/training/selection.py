"""Select the best epoch on val while a training runs, save checkpoints, and stop at a pause or a limit."""

import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from crossover.finetune.training.checkpoints import Checkpoints
from crossover.finetune.training.context import FitContext
from crossover.finetune.training.options import TrainingOptions
from crossover.models.limits import Stopped, limits_of
from crossover.models.memory import release_memory, trim_heap
from crossover.models.usage import Usage

EPOCH_RNG = "epoch_rng.safetensors"
TRIM_SECONDS = 20
"""Seconds between returns of freed memory: batches of ever new shapes made a process grow by 50 MB a step."""

Score = Callable[[Any], tuple[float, Usage]]
"""Returns the mean score of a model in training on val, and the usage of the calls."""
Save = Callable[[Any, Path], None]
"""Writes the weights of a model in training to a folder."""


class Selector(TrainerCallback):  # type: ignore[misc]  # transformers' callback is untyped
    """Score val after every epoch, keep the best weights, and decide when to save and when to stop.

    The library's `load_best_model_at_end` and `EarlyStoppingCallback` were tried. They do not compare with the
    untrained model (patience 2 trains three epochs where none is better), cannot keep the weights before training, and
    write the optimizer's state with every epoch (three times the bytes of full weights).
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        context: FitContext,
        options: TrainingOptions,
        *,
        score: Score,
        save: Save,
        keep_start: bool,
        pause: float,
    ) -> None:
        """Select among epochs, and with `keep_start` also the weights before training.

        `pause` is the share of the steps after which val is read and the training stops, to go on later; 0 for never.
        """
        self.checkpoints, self.context, self.options = checkpoints, context, options
        self.run, self.score, self.save, self.keep_start, self.pause = checkpoints.run, score, save, keep_start, pause
        self.allowance = limits_of(context.lm)
        self.limit_reached = self.paused = False
        self.saved_at = self.trimmed_at = time.perf_counter()
        self.epoch_rng: torch.Tensor | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Score the untrained model, once: a resumed training has that score."""
        self.run.resumed_from = state.global_step
        if not self.run.val_scores:
            self.run.val_scores.append(self._read_val(model))
            if self.keep_start:
                self._keep(model)
            self.checkpoints.write_state()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Draw the row order of a resumed epoch from the random state of its first beginning.

        The library restores the random state only after it has drawn the order, which then is another one.
        """
        file = self.checkpoints.folder / f"checkpoint-{state.global_step}" / EPOCH_RNG
        if file.exists() and state.global_step == self.run.resumed_from:
            torch.random.set_rng_state(load_file(file)["state"])
        self.epoch_rng = torch.random.get_rng_state()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End a training at a limit, now that the step before is saved.

        Raises:
            Stopped: a limit of the run is reached, or the person at the keyboard pressed Ctrl-C.
        """
        if self.limit_reached and self.allowance is not None:
            self.allowance.check()

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Save in the middle of an epoch: at the pause, at a limit, or when a checkpoint is due."""
        self.context.budget.trained(state.global_step / state.max_steps)
        if time.perf_counter() - self.trimmed_at >= TRIM_SECONDS:
            trim_heap()
            self.trimmed_at = time.perf_counter()
        in_epoch = not _ends_epoch(state)
        if self.pause and self.run.early_score is None and state.global_step >= self.pause * state.max_steps:
            self.run.early_score = self._read_val(model)
            self.paused = control.should_training_stop = True
            control.should_log, control.should_save = True, in_epoch
        elif in_epoch and self._limit_is_reached():
            # The next step raises: only then is this one in a checkpoint.
            self.limit_reached = control.should_log = control.should_save = True
        elif in_epoch and state.global_step % args.logging_steps == 0:
            # Only where a loss is logged: a checkpoint in between would lose the sum of the losses since the last one.
            control.should_save = self._checkpoint_is_due()

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Score val, and keep the weights if none that can be kept was as good before."""
        epoch, scores = round(state.epoch), self.run.val_scores
        # The library calls this also when a training stops within an epoch, or resumes at the end of a scored one.
        if not _ends_epoch(state) or len(scores) > epoch:
            return
        scores.append(self._read_val(model))
        self.context.budget.progress(f"epoch {epoch}/{self.options.epochs}, val {scores[epoch]:.3f}")
        if self.run.judge_newest(start=self.keep_start) or not self.context.val:
            self.run.kept_epoch = epoch
            self._keep(model)
        if epoch - self.run.best_epoch >= self.options.patience > 0:
            control.should_training_stop = True
        control.should_save = self.paused or (epoch < self.options.epochs and self._checkpoint_is_due())

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add to the library's checkpoint the scores and, within an epoch, the random state of its beginning."""
        folder = self.checkpoints.folder / f"checkpoint-{state.global_step}"
        if not _ends_epoch(state) and self.epoch_rng is not None:
            save_file({"state": self.epoch_rng}, folder / EPOCH_RNG)
        self.checkpoints.add(folder)
        self.saved_at = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Report the step and its loss."""
        if logs and "loss" in logs:
            step = f"training step {state.global_step}/{state.max_steps}"
            self.context.budget.progress(f"{step}, loss {float(logs['loss']):.3f}")

    def _read_val(self, model: Any) -> float:
        self.context.budget.progress(f"reading {len(self.context.val)} val examples")
        score, used = self.score(model)
        self.run.selection += used
        # What the engine's thread took for long prompts and many answers, the training could not use.
        release_memory()
        return score

    def _keep(self, model: Any) -> None:
        self.checkpoints.keep(lambda folder: self.save(model, folder))

    def _checkpoint_is_due(self) -> bool:
        return time.perf_counter() - self.saved_at >= 60 * self.options.checkpoint_minutes

    def _limit_is_reached(self) -> bool:
        try:
            if self.allowance is not None:
                self.allowance.check()
        except Stopped:
            return True
        return False


def _ends_epoch(state: Any) -> bool:
    return bool(abs(state.epoch - round(state.epoch)) < 1e-6)


def loss_history(state: Any, every: int, name: str = "loss") -> list[float]:
    """Return the mean loss, or another logged figure, over every so many steps.

    A resumed training has logged such a stretch in parts, which are weighted by their steps.
    """
    totals, before = defaultdict[int, float](float), 0
    for entry in state.log_history:
        if name in entry:
            totals[(entry["step"] - 1) // every] += float(entry[name]) * (entry["step"] - before)
            before = entry["step"]
    return [round(total / every, 4) for total in totals.values()]
