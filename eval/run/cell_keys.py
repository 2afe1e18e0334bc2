"""Compute the keys of cells: the hash of everything that can change a cell's numbers."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from crossover.eval.experiment.spec import METHODOLOGY_VERSION, Cell, Experiment
from crossover.eval.run.passages import Indexes, identity_of
from crossover.eval.store.cells import program_sha256
from crossover.models.load import model_sha256
from crossover.models.spec import ModelSpec
from crossover.optimizers.common.nearest import BM25, demo_index
from crossover.programs.task import Task


class CellKeys:
    """The keys of an experiment's cells."""

    def __init__(
        self, experiment: Experiment, tasks: Mapping[str, Task], indexes: Indexes, others: Mapping[str, Task]
    ) -> None:
        """Hash nothing yet; `others` are the tasks of `retention`."""
        self.experiment, self.tasks, self.indexes, self.others = experiment, tasks, indexes, others

    @cached_property
    def model_sha256(self) -> dict[ModelSpec, str]:
        """Hash of each model's weights, the teacher's included; no model is loaded."""
        teacher = self.experiment.teacher
        return {m: model_sha256(m) for m in {*self.experiment.models, *([teacher] if teacher else [])}}

    @cached_property
    def identities(self) -> dict[str, dict[str, str]]:
        """Hashes of each task's split and program, computed once because they read all of the data."""
        return {name: _identity(task) for name, task in self.tasks.items()}

    @cached_property
    def retained(self) -> dict[str, dict[str, str]]:
        """The same of the tasks of `retention`."""
        return {name: _identity(task) for name, task in self.others.items()}

    @property
    def split_sha256(self) -> dict[str, str]:
        """Return the hash of each task's splits."""
        return {name: found["split_sha256"] for name, found in self.identities.items()}

    def of(self, cell: Cell) -> str:
        """Return the cell's key."""
        task = self.tasks[cell.task]
        return cell.key(
            split_sha256=self.identities[cell.task]["split_sha256"],
            program_sha256=self.identities[cell.task]["program_sha256"],
            model_sha256=self.model_sha256[cell.model],
            retriever=identity_of(self.indexes.of(task, cell.retrieval)),
            limit=self.experiment.limit,
            search=(self._search(cell) or {}) | (self._retained(cell) or {}) | _files(cell) | indexes_of(cell) or None,
        )

    def of_format(self, cell: Cell) -> str:
        """Return the key of the prompt format that is chosen for the cell's task and model, whatever the method."""
        found = [METHODOLOGY_VERSION, cell.model.identity, self.model_sha256[cell.model], self.identities[cell.task]]
        return hashlib.sha256(json.dumps([*found, self.experiment.limit]).encode()).hexdigest()[:16]

    def _search(self, cell: Cell) -> dict[str, Any] | None:
        """Return the budget and the teacher of a cell that searches prompts or learns from a teacher, else None."""
        taught = any(step.options.get("targets") == "teacher" for step in cell.method.steps)
        if not taught and not cell.method.searches:
            return None
        spec = self.experiment.teacher
        teacher = None if spec is None else [spec.identity, self.model_sha256[spec]]
        return {"budget": asdict(self.experiment.budget), "teacher": teacher}

    def _retained(self, cell: Cell) -> dict[str, Any] | None:
        """Return the retention tasks of a cell that trains weights: its warnings depend on them."""
        return {"retention": self.retained} if self.retained and cell.method.trains else None


def _identity(task: Task) -> dict[str, str]:
    return {"split_sha256": task.split_sha256(), "program_sha256": program_sha256(task.program())}


def _files(cell: Cell) -> dict[str, str]:
    """Return the hash of every file that an option of the cell's method names."""
    named = {Path(str(v)) for s in cell.method.steps for k, v in s.options.items() if k.endswith("_file") and v}
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(named) if f.is_file()}


def indexes_of(cell: Cell) -> dict[str, str]:
    """Return the hash of the model behind every index of demonstrations; BM25 has none."""
    named = [s.options for s in cell.method.steps if s.options.get("index", BM25) != BM25]
    found = {str(o["index"]): demo_index(o["index"], o.get("index_options")).identity() for o in named}
    return {f"{name} demonstrations": identity for name, identity in found.items() if identity}
