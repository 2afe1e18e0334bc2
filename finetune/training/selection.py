"""Selection on val while a training runs, and its checkpoints: a training that was killed goes on where it was.

Whatever is kept is written so that doing it twice changes nothing: scores by epoch, the best weights by the scores
before. A checkpoint counts once its hash stands beside it: one that a kill left half written, or that was damaged
since, is not gone on from.
"""

import json
import shutil
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from crossover.models.errors import UserError
from crossover.models.limits import Stopped, UsageLimits
from crossover.models.usage import Usage
from crossover.models.weights import checkpoint_sha256
from crossover.programs.task import Budget

STATE, BEST = "selection.json", "best"
EPOCH_RNG = "epoch_rng.safetensors"


@dataclass
class TrainingRun:
    """What came of a training."""

    folder: Path
    """The best weights: a PEFT adapter, or a whole model."""
    lr: float = 0.0
    trainable: int = 0
    tokens: int = 0
    best_epoch: int = 0
    """1-based; 0 when nothing beat the untrained model (the first epoch is kept all the same)."""
    val_scores: list[float] = field(default_factory=list)
    """Mean on val before training and after each epoch."""
    losses: list[float] = field(default_factory=list)
    selection: Usage = field(default_factory=Usage)
    """What reading val cost in tokens; its time is inside the training's."""
    seconds: float = 0.0
    """Wall time of the training, that of processes which were killed included."""
    early_score: float | None = None
    """Mean on val where the training was told to pause."""
    resumed_from: int = 0
    """Step of the checkpoint that the training went on from; 0 for none."""
    done: bool = False
    """The training is over: a later process only reads what came of it."""

    @property
    def spent(self) -> Usage:
        """Return what the training cost, its selection included."""
        return Usage(train_tokens=self.tokens, seconds=self.seconds) + self.selection

    @property
    def notes(self) -> dict[str, Any]:
        """Return the facts worth keeping of a fit."""
        return {
            "best_epoch": self.best_epoch,
            "val_scores": self.val_scores,
            "loss": self.losses,
            "lr": self.lr,
            "trainable_parameters": self.trainable,
            "resumed_from_step": self.resumed_from,
        }


Score = Callable[[Any], tuple[float, Usage]]


@dataclass(frozen=True)
class Pace:
    """When a training stops and when it saves."""

    epochs: int
    patience: int = 0
    """Epochs without a better val score that end the training; 0 for never."""
    minutes: float = 1.0
    """Between checkpoints."""
    start: bool = False
    """What the training starts from is an answer too, and is kept where no epoch is better."""
    last: bool = False
    """There is nothing to select by: the last epoch is kept."""
    pause: float = 0.0
    """Share of the steps after which val is read and the training pauses; 0 for never."""


class Selector(TrainerCallback):  # type: ignore[misc]  # transformers' callback is untyped
    """Score val after every epoch, keep the best weights, save checkpoints and stop when told to."""

    def __init__(
        self,
        run: TrainingRun,
        *,
        pace: Pace,
        score: Score,
        save: Callable[[Any, Path], None],
        folder: Path,
        budget: Budget,
        allowance: UsageLimits | None,
        identity: str,
    ) -> None:
        """Keep everything in `folder`; what was kept there under another `identity` is thrown away.

        The training ends with the step in which the allowance does.
        """
        self.run, self.pace, self.score, self.save, self.folder, self.budget = run, pace, score, save, folder, budget
        self.allowance, self.stopped = allowance, False
        self.identity = identity
        self.begun = self.saved = time.perf_counter()
        self.before = 0.0
        self.epoch_rng: torch.Tensor | None = None
        self.paused = False
        self.hashes: dict[str, str] = {}
        """Of the best weights and of the checkpoints, by the name of their folder."""
        self.checkpoint: Path | None = None
        """The newest whole one that an earlier process left."""
        self._recall()

    def _newest(self) -> Path | None:
        """Return the newest whole checkpoint; later ones are removed."""
        for folder in sorted(self.folder.glob("checkpoint-*"), key=lambda f: -int(f.name.partition("-")[2])):
            if self.hashes.get(folder.name) == checkpoint_sha256(folder):
                return folder
            if folder.name in self.hashes:
                self.budget.progress(f"warning: {folder}: damaged; the training goes on from what was kept before")
            shutil.rmtree(folder)
        return None

    def _check_best(self) -> None:
        """Hold the best weights against their hash.

        Raises:
            UserError: they are not what was trained.
        """
        if self.hashes.get(BEST) != checkpoint_sha256(self.folder / BEST):
            what = f"{self.folder / BEST}: not the weights that were trained"
            raise UserError(f"{what}; move {self.folder} away and run again, which trains anew")

    def _recall(self) -> None:
        """Read what an earlier process kept."""
        try:
            kept = json.loads((self.folder / STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            kept = {}
        same = kept.pop("identity", None) == self.identity and "hashes" in kept
        self.before = kept.pop("seconds") if same else 0.0
        if same:
            self.hashes = kept.pop("hashes")
            self.checkpoint = self._newest()
        if not same or (self.checkpoint is None and not kept["done"]):
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            self.hashes = {}
            return
        if kept["done"]:
            self._check_best()
        self.run.selection = Usage(**kept.pop("selection"))
        self.run.seconds = self.before
        for name, value in kept.items():
            setattr(self.run, name, value)

    def _keep(self) -> None:
        """Write what a later process needs, so that it reads the old state or the new one."""
        self.run.seconds = self.before + time.perf_counter() - self.begun
        kept = asdict(self.run) | {"identity": self.identity, "hashes": self.hashes}
        del kept["folder"]
        draft = self.folder / f"{STATE}.part"
        draft.write_text(json.dumps(kept), encoding="utf-8")
        draft.replace(self.folder / STATE)

    def finish(self) -> None:
        """Keep what came of the training, and remove the checkpoints; a paused one goes on from its own."""
        self.run.done = not self.paused
        if self.run.done:
            self._check_best()
        self._keep()
        for folder in self.folder.glob("checkpoint-*") if self.run.done else ():
            shutil.rmtree(folder)

    def _save_best(self, model: Any) -> None:
        self.save(model, self.folder / BEST)
        self.hashes[BEST] = checkpoint_sha256(self.folder / BEST)

    def _read_val(self, model: Any) -> float:
        score, spent = self.score(model)
        self.run.selection += spent
        return score

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Score the untrained model."""
        self.run.resumed_from = state.global_step
        if not self.run.val_scores:
            self.run.val_scores.append(self._read_val(model))
            if self.pace.start:
                self._save_best(model)
            self._keep()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Draw the order of a resumed epoch as it was drawn the first time."""
        kept = self.folder / f"checkpoint-{state.global_step}" / EPOCH_RNG
        if kept.exists() and state.global_step == self.run.resumed_from:
            torch.random.set_rng_state(load_file(kept)["state"])
        self.epoch_rng = torch.random.get_rng_state()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Tell how far the training is."""
        if logs and "loss" in logs:
            self.budget.progress(f"training step {state.global_step}/{state.max_steps}, loss {float(logs['loss']):.3f}")

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End a training that the step before has saved.

        Raises:
            Stopped: a limit of the run, or the person at the keyboard.
        """
        if self.stopped and self.allowance is not None:
            self.allowance.check()

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Save now and then, and pause where told; the end of an epoch saves for itself."""
        if self.pace.pause and self.run.early_score is None and state.global_step >= self.pace.pause * state.max_steps:
            self.run.early_score = self._read_val(model)
            self.paused = control.should_training_stop = True
            control.should_log = control.should_save = not _ends_epoch(state)
        elif _ends_epoch(state):
            return
        elif self._is_over():
            self.stopped = control.should_log = control.should_save = True
        elif state.global_step % args.logging_steps == 0:
            # Where a loss is told, so that a later process knows all of what the next one is a mean of.
            control.should_save = time.perf_counter() - self.saved >= 60 * self.pace.minutes

    def _is_over(self) -> bool:
        try:
            if self.allowance is not None:
                self.allowance.check()
        except Stopped:
            return True
        return False

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Score val and keep the weights if no epoch before was as good."""
        if not _ends_epoch(state):
            return
        epoch, scores = round(state.epoch), self.run.val_scores
        if len(scores) > epoch:
            return
        scores.append(self._read_val(model))
        self.budget.progress(f"epoch {epoch}/{self.pace.epochs}, val {scores[epoch]:.3f}")
        best = scores[epoch] > max(scores[:epoch])
        if best or self.pace.last or (epoch == 1 and not self.pace.start):
            self.run.best_epoch = epoch if best else 0
            self._save_best(model)
        late = epoch - self.run.best_epoch >= self.pace.patience > 0
        control.should_training_stop = control.should_training_stop or late
        due = epoch < self.pace.epochs and time.perf_counter() - self.saved >= 60 * self.pace.minutes
        control.should_save = due or self.paused

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the scores, and the state from which the epoch's order was drawn, beside the library's checkpoint."""
        folder = self.folder / f"checkpoint-{state.global_step}"
        if not _ends_epoch(state) and self.epoch_rng is not None:
            save_file({"state": self.epoch_rng}, folder / EPOCH_RNG)
        self.hashes = {name: known for name, known in self.hashes.items() if (self.folder / name).exists()}
        self.hashes[folder.name] = checkpoint_sha256(folder)
        self._keep()
        self.saved = time.perf_counter()


def _ends_epoch(state: Any) -> bool:
    return bool(abs(state.epoch - round(state.epoch)) < 1e-6)


def told(state: Any, every: int, name: str = "loss") -> list[float]:
    """Return a training's mean loss, or another figure, over every so many steps.

    A training that was ended in the middle told its part, and the one that went on the rest.
    """
    totals, before = defaultdict[int, float](float), 0
    for entry in state.log_history:
        if name in entry:
            totals[(entry["step"] - 1) // every] += float(entry[name]) * (entry["step"] - before)
            before = entry["step"]
    return [round(total / every, 4) for total in totals.values()]
