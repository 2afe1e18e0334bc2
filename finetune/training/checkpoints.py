"""Keep the files of one training, its state, best weights and checkpoints, and check them by their hashes.

A training that was killed goes on from its newest checkpoint. A checkpoint counts once its hash stands in the state
file: one that a kill left half written, or that was damaged since, is removed. The state file is replaced by rename,
once before the first step and then with each checkpoint, so that its scores are those of the checkpoint's step; all
later steps are computed again, to the same numbers.
"""

import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from crossover.models.errors import UserError
from crossover.models.jsonl import write_json
from crossover.models.usage import Usage
from crossover.models.weights import checkpoint_sha256

STATE, BEST = "selection.json", "best-"


@dataclass
class TrainingRun:
    """The outcome of a training, or of the part that is done."""

    folder: Path
    """The best weights: a PEFT adapter, or a whole model."""
    lr: float = 0.0
    trainable: int = 0
    micro_batch: int = 0
    """Rows that go through the model at once, where free memory decided that; else 0."""
    tokens: int = 0
    best_epoch: int = 0
    """1-based; 0 when nothing beat the untrained model (the best epoch's weights are kept all the same)."""
    kept_epoch: int = 0
    """The epoch whose weights are kept, 1-based; 0 for the weights before training."""
    val_scores: list[float] = field(default_factory=list)
    """Mean on val before training and after each epoch."""
    losses: list[float] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)
    """For DPO: by how much the right answers are preferred, at the steps of the losses."""
    selection: Usage = field(default_factory=Usage)
    """Calls and tokens of reading val; the time is inside `seconds`."""
    seconds: float = 0.0
    """Wall time of the training, killed processes included."""
    early_score: float | None = None
    """Mean on val at the pause."""
    resumed_from: int = 0
    """Step of the checkpoint that the training went on from; 0 for none."""
    done: bool = False
    """Whether the training is over: a later process only reads its outcome."""

    def judge_newest(self, *, start: bool) -> bool:
        """Hold the newest score against those before; return whether its weights are to be kept.

        Those of the best epoch are, the first of equal ones; with `start` only if it beats the weights before training.
        """
        *before, newest = self.val_scores
        if newest > max(before, default=-math.inf):
            self.best_epoch = len(before)
        if kept := newest > max(before[0 if start else 1 :], default=-math.inf):
            self.kept_epoch = len(before)
        return kept

    @property
    def kept_score(self) -> float | None:
        """Return the mean on val of the weights that are kept; None if val was never read."""
        return self.val_scores[self.kept_epoch] if self.val_scores else None

    @property
    def spent(self) -> Usage:
        """Return the cost of the training, its selection included."""
        return Usage(train_tokens=self.tokens, seconds=self.seconds) + self.selection

    @property
    def notes(self) -> dict[str, Any]:
        """Return the facts of the training for the notes of a fit."""
        return {
            "best_epoch": self.best_epoch,
            "kept_epoch": self.kept_epoch,
            "val_scores": self.val_scores,
            "loss": self.losses,
            "lr": self.lr,
            "trainable_parameters": self.trainable,
            "resumed_from_step": self.resumed_from,
        } | {name: value for name in ("margins", "micro_batch") if (value := vars(self)[name])}


class Checkpoints:
    """The folder of one training."""

    def __init__(self, folder: Path, identity: str, warn: Callable[[str], None]) -> None:
        """Restore the training of the same identity; files of another one are removed.

        Raises:
            UserError: the training is over, and its weights were changed since.
        """
        self.folder, self._identity, self._warn = folder, identity, warn
        self._begun = time.perf_counter()
        self._hashes: dict[str, str] = {}
        """Hashes of the best weights and of the checkpoints, by the name of their folder."""
        self.newest: Path | None = None
        """The checkpoint to go on from."""
        self.run = self._restored()
        self._seconds_before = self.run.seconds

    def _restored(self) -> TrainingRun:
        """Return the state of an earlier process, or the start of a new training in an empty folder."""
        try:
            state = json.loads((self.folder / STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            state = {}
        if state.pop("identity", None) == self._identity and "hashes" in state:
            self._hashes = state.pop("hashes")
            self.newest = self._find_newest()
            run = TrainingRun(**state | {"folder": self.folder, "selection": Usage(**state["selection"])})
            run.folder = self._best_of(run)
            self._remove_others(run)
            if run.done:
                self.check_best(run)
            if run.done or self.newest is not None:
                return run
            # Scores without a checkpoint are of steps that must be taken again, but their time was spent.
            seconds = run.seconds
        else:
            seconds = 0.0
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self._hashes = {}
        run = TrainingRun(folder=self.folder, seconds=seconds)
        run.folder = self._best_of(run)
        return run

    def _best_of(self, run: TrainingRun) -> Path:
        """Return where a run keeps its best weights: each epoch's in a folder of its own, until the state names it.

        Written over those before, they would not be those of the state that a killed training goes on from.
        """
        return self.folder / f"{BEST}{run.kept_epoch}"

    def _remove_others(self, run: TrainingRun) -> None:
        for folder in self.folder.glob(f"{BEST}*"):
            if folder != run.folder:
                shutil.rmtree(folder)

    def _find_newest(self) -> Path | None:
        """Return the newest whole checkpoint, and remove those after it."""
        for folder in sorted(self.folder.glob("checkpoint-*"), key=step_of, reverse=True):
            if self._hashes.get(folder.name) == checkpoint_sha256(folder):
                return folder
            if folder.name in self._hashes:
                self._warn(f"warning: {folder}: damaged; the training goes on from what was kept before")
            shutil.rmtree(folder)
        return None

    def check_best(self, run: TrainingRun) -> None:
        """Hold the best weights against their hash.

        Raises:
            UserError: they are not the weights that were trained.
        """
        if self._hashes.get(run.folder.name) != checkpoint_sha256(run.folder):
            what = f"{run.folder}: not the weights that were trained"
            raise UserError(f"{what}; move {self.folder} away and run again, which trains anew")

    def keep(self, save: Callable[[Path], None]) -> None:
        """Write the weights of the run's `kept_epoch`; those before stay until the state names these."""
        self.run.folder = self._best_of(self.run)
        shutil.rmtree(self.run.folder, ignore_errors=True)
        save(self.run.folder)
        self._hashes[self.run.folder.name] = checkpoint_sha256(self.run.folder)

    def add(self, checkpoint: Path) -> None:
        """Record a checkpoint that was written just now, and forget those that the library has removed."""
        self._hashes = {name: known for name, known in self._hashes.items() if (self.folder / name).exists()}
        self._hashes[checkpoint.name] = checkpoint_sha256(checkpoint)
        self.write_state()

    def write_state(self) -> None:
        """Write the state so that a later process reads the old one or the new one, never half of one."""
        self.run.seconds = self._seconds_before + time.perf_counter() - self._begun
        state = asdict(self.run) | {"identity": self._identity, "hashes": self._hashes}
        del state["folder"]
        write_json(self.folder / STATE, state)
        self._remove_others(self.run)

    def finish(self) -> None:
        """Record that the training is over, and remove the checkpoints that nobody will go on from."""
        self.check_best(self.run)
        self.run.done = True
        self.write_state()
        for folder in self.folder.glob("checkpoint-*"):
            shutil.rmtree(folder)


def step_of(checkpoint: Path) -> int:
    """Return the step after which a checkpoint was written."""
    return int(checkpoint.name.partition("-")[2])
