"""What the cells of one run share: models loaded once, passages found once, limits, budgets."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import dspy

from eval.experiment import Cell, Experiment
from eval.keys import Keys
from eval.passages import Passages
from eval.progress import Progress
from eval.retention import Retention
from eval.splits import sample
from models.allowance import Allowance
from models.load import LoadedModel, load_model
from models.price import api_price
from models.spec import ModelSpec
from programs.task import Budget, Task, UserError

READINGS_OF_VAL = 20
"""How often a search may read val, where the file names no number of metric calls."""
PROBE = {"prompt_tokens": 1, "completion_tokens": 1}


def check_folder(spec: ModelSpec) -> None:
    """Refuse a folder that names its model instead of being one.

    Raises:
        UserError: transformers would follow the name to wherever it leads.
    """
    folder = Path(spec.name.removeprefix("local:"))
    if spec.name.startswith("local:") and (folder / "adapter_config.json").exists():
        raise UserError(f"{folder} is an adapter, which names a base model elsewhere; merge it and give that folder")


@dataclass
class Work:
    """What one run of an experiment carries along."""

    experiment: Experiment
    store: Path
    threads: int
    progress: Progress
    keys: Keys
    allowance: Allowance
    """What may still be asked, by every model together."""
    failures: list[str] = field(default_factory=list)
    """What could not be fitted, and why."""
    _passages: dict[tuple[str, str], Passages] = field(default_factory=dict)
    _models: dict[ModelSpec, LoadedModel] = field(default_factory=dict)

    @property
    def tasks(self) -> Mapping[str, Task]:
        """Return the experiment's tasks by name."""
        return self.keys.tasks

    @cached_property
    def retention(self) -> Retention:
        """Return the other tasks that a training may make the model forget."""
        return Retention(self.keys.others, self.experiment.retention, self.keys.indexes, self.threads)

    def model(self, spec: ModelSpec) -> LoadedModel:
        """Return the model, loaded when it is first needed: a finished run only prints."""
        if spec not in self._models:
            check_folder(spec)
            model = load_model(spec)
            if not model.local and self.experiment.limits.usd is not None and api_price({spec.name: PROBE}) is None:
                self.progress.note(f"warning: {spec.name} has no known price: the limit in dollars cannot hold it")
            self._models[spec] = replace(model, lm=self.allowance.limited(model.lm))
        return self._models[spec]

    def passages(self, cell: Cell) -> Passages:
        """Return the passages that the cell's arm may read, the same for every arm of its task and retrieval."""
        key = (cell.task, cell.retrieval.label if cell.retrieval else "")
        if key not in self._passages:
            self._passages[key] = Passages(self.tasks[cell.task], cell.retrieval, self.keys.indexes)
        return self._passages[key]

    def test(self, cell: Cell) -> list[dspy.Example]:
        """Return the test examples with the passages that the cell may read."""
        test = sample(self.tasks[cell.task].test, self.experiment.limit)
        return self.passages(cell).attach(test, cell.knowledge.test)

    def val(self, cell: Cell) -> list[dspy.Example]:
        """Return the val examples, fewer when the test is limited."""
        limit = None if self.experiment.limit is None else max(20, self.experiment.limit // 2)
        return self.passages(cell).attach(sample(self.tasks[cell.task].val, limit), cell.knowledge.test)

    def budget(self, cell: Cell, folder: Path, val: int) -> Budget:
        """Return what the cell may spend on fitting: the experiment's budget, or the method's own."""
        own, shared = cell.method.options, self.experiment.budget
        calls = own.get("metric_calls") or shared.metric_calls or READINGS_OF_VAL * val
        spec = self.experiment.teacher
        teacher = None if spec is None else self.model(spec)
        return Budget(
            metric_calls=calls,
            usd=own.get("usd") or shared.usd,
            workdir=folder / "fit",
            answers=folder / "answers.jsonl",
            checkpoints=folder / "checkpoints",
            shared=self.store / "targets" / self.keys.split_sha256[cell.task][:16],
            teacher=None if teacher is None else teacher.lm,
            teacher_adapter=None if teacher is None else teacher.adapter,
            threads=self.threads,
            progress=self.progress.note,
        )
