"""Tell one cell's measurement from another's: the one place where a cell's key comes from."""

from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from typing import Any

from eval.catalog import searches
from eval.experiment import Cell, Experiment
from eval.passages import Indexes, identity_of
from eval.store import program_sha256
from models.load import model_sha256
from models.spec import ModelSpec
from programs.task import Task


class Keys:
    """The keys of an experiment's cells."""

    def __init__(self, experiment: Experiment, tasks: Mapping[str, Task], indexes: Indexes) -> None:
        """Hash nothing yet."""
        self.experiment, self.tasks, self.indexes = experiment, tasks, indexes

    @cached_property
    def model_sha256(self) -> dict[ModelSpec, str]:
        """Models, the teacher among them, to the hash of their weights; none of them is loaded."""
        teacher = self.experiment.teacher
        return {m: model_sha256(m) for m in {*self.experiment.models, *([teacher] if teacher else [])}}

    @cached_property
    def identities(self) -> dict[str, dict[str, str]]:
        """Task to the hashes of its split and its program: a hash of the whole data, computed once."""
        return {
            n: {"split_sha256": t.split_sha256(), "program_sha256": program_sha256(t.program())}
            for n, t in self.tasks.items()
        }

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
            search=self._search(cell),
        )

    def _search(self, cell: Cell) -> dict[str, Any] | None:
        """Return the budget and the teacher of a cell that searches prompts, None for any other."""
        if not any(searches(step.name) for step in cell.method.steps):
            return None
        spec = self.experiment.teacher
        teacher = None if spec is None else [asdict(spec), self.model_sha256[spec]]
        return {"budget": asdict(self.experiment.budget), "teacher": teacher}
