"""Selection on val while a training runs, and its checkpoints: a training that was killed goes on where it was.

Whatever is kept is written so that doing it twice changes nothing: scores by epoch, the best weights by the scores
before. A checkpoint is whole once the library has written its state, which it does last.
"""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from programs.task import Budget, Spent

STATE = "selection.json"
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
    selection: Spent = field(default_factory=Spent)
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
    def spent(self) -> Spent:
        """Return what the training cost, its selection included."""
        return Spent(train_tokens=self.tokens, seconds=self.seconds) + self.selection

    @property
    def notes(self) -> dict[str, Any]:
        """Return the facts worth keeping of a fit."""
        return {
            "best_epoch": self.best_epoch, "val_scores": self.val_scores, "loss": self.losses, "lr": self.lr,
            "trainable_parameters": self.trainable, "resumed_from_step": self.resumed_from,
        }  # fmt: skip


Score = Callable[[Any], tuple[float, Spent]]


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
        identity: str,
    ) -> None:
        """Keep everything in `folder`; what was kept there under another `identity` is thrown away."""
        self.run, self.pace, self.score, self.save, self.folder, self.budget = run, pace, score, save, folder, budget
        self.identity = identity
        self.begun = self.saved = time.perf_counter()
        self.before = 0.0
        self.epoch_rng: torch.Tensor | None = None
        self.paused = False
        self._recall()

    @property
    def checkpoint(self) -> Path | None:
        """Return the newest whole checkpoint, where there is one."""
        for folder in sorted(self.folder.glob("checkpoint-*"), key=lambda f: -int(f.name.partition("-")[2])):
            try:
                json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
            except (OSError, ValueError):
                shutil.rmtree(folder)
        last = get_last_checkpoint(str(self.folder))
        return None if last is None else Path(last)

    def _recall(self) -> None:
        """Read what an earlier process kept."""
        try:
            kept = json.loads((self.folder / STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            kept = {}
        same = kept.pop("identity", None) == self.identity
        self.before = kept.pop("seconds") if same else 0.0
        if not same or (self.checkpoint is None and not kept["done"]):
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            return
        self.run.selection = Spent(**kept.pop("selection"))
        self.run.seconds = self.before
        for name, value in kept.items():
            setattr(self.run, name, value)

    def _keep(self) -> None:
        """Write what a later process needs, so that it reads the old state or the new one."""
        self.run.seconds = self.before + time.perf_counter() - self.begun
        kept = asdict(self.run) | {"identity": self.identity}
        del kept["folder"]
        draft = self.folder / f"{STATE}.part"
        draft.write_text(json.dumps(kept), encoding="utf-8")
        draft.replace(self.folder / STATE)

    def finish(self) -> None:
        """Keep what came of the training, and remove the checkpoints; a paused one goes on from its own."""
        self.run.done = not self.paused
        self._keep()
        for folder in self.folder.glob("checkpoint-*") if self.run.done else ():
            shutil.rmtree(folder)

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
                self.save(model, self.folder / "best")
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

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Save now and then, and pause where told; the end of an epoch saves for itself."""
        if self.pace.pause and self.run.early_score is None and state.global_step >= self.pace.pause * state.max_steps:
            self.run.early_score = self._read_val(model)
            self.paused = control.should_training_stop = True
            control.should_save = not _ends_epoch(state)
        elif not _ends_epoch(state) and state.global_step % args.logging_steps == 0:
            # Where a loss is told, so that none is a mean over steps of which a later process knows but some.
            control.should_save = time.perf_counter() - self.saved >= 60 * self.pace.minutes

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
            self.save(model, self.folder / "best")
        late = epoch - self.run.best_epoch >= self.pace.patience > 0
        control.should_training_stop = control.should_training_stop or late
        due = epoch < self.pace.epochs and time.perf_counter() - self.saved >= 60 * self.pace.minutes
        control.should_save = due or self.paused

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the scores, and the state from which the epoch's order was drawn, beside the library's checkpoint."""
        folder = self.folder / f"checkpoint-{state.global_step}"
        if not _ends_epoch(state) and self.epoch_rng is not None:
            save_file({"state": self.epoch_rng}, folder / EPOCH_RNG)
        self._keep()
        self.saved = time.perf_counter()


def _ends_epoch(state: Any) -> bool:
    return bool(abs(state.epoch - round(state.epoch)) < 1e-6)
