"""Measure what a training made the model forget: score other tasks before and after, with and without demonstrations.

The gain from demonstrations says whether the model still learns in context (arXiv 2405.20089, 2402.11192).
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import dspy

from crossover.eval.analysis.rules import FORGETS
from crossover.eval.analysis.stats import paired_difference
from crossover.eval.experiment.spec import METHODOLOGY_VERSION, Retrieval, default_knowledge
from crossover.eval.experiment.splits import sample, train_pool
from crossover.eval.run.passages import Indexes, Passages
from crossover.eval.store.cells import program_sha256
from crossover.models.errors import UserError
from crossover.models.jsonl import write_json
from crossover.models.load import LoadedModel
from crossover.programs.demos import with_demos
from crossover.programs.score import score_examples
from crossover.programs.spec import TaskSpec
from crossover.programs.task import Task

EXAMPLES = 100
"""Test examples of each other task, chosen by the hash of their id."""
DEMOS = 4
MARGIN = 0.05
"""A loss beyond this, and beyond chance, is a warning."""


@dataclass(frozen=True)
class RetentionResult:
    """Scores of one task before and after a training."""

    task: str
    before: float
    after: float
    low: float
    high: float
    """95 % interval of after minus before."""
    gain_before: float
    """Score that demonstrations add before the training."""
    gain_after: float
    n: int


class Retention:
    """The retention tasks of an experiment, with the untrained model's scores on them."""

    def __init__(self, tasks: Mapping[str, Task], specs: Sequence[TaskSpec], indexes: Indexes, threads: int) -> None:
        """Score nothing yet."""
        self.tasks, self.specs, self.indexes, self.threads = tasks, specs, indexes, threads

    def of(self, tuned: dspy.LM, model: LoadedModel, progress: Callable[[str], None]) -> list[RetentionResult]:
        """Return the scores of the trained model on each task, compared with the untrained model's."""
        results = []
        for spec in self.specs:
            progress(f"retention: {spec.name}")
            results.append(self._one(spec, tuned, model))
        return results

    def _one(self, spec: TaskSpec, tuned: dspy.LM, model: LoadedModel) -> RetentionResult:
        """Return the scores on one task."""
        task, knows = self.tasks[spec.name], default_knowledge(spec)
        passages = Passages(task, Retrieval() if knows.searches else None, self.indexes)
        test = passages.attach(sample(task.test, EXAMPLES), knows.test)
        shown = passages.attach(train_pool(task, DEMOS, 0), knows.train)
        programs = {"plain": task.program(), "shown": with_demos(task.program(), shown)}
        with dspy.context(adapter=model.prompt_format, rm=passages.live(knows.test)):
            before = {k: self._before(k, p, test, task, model) for k, p in programs.items()}
            after = {k: self._scores(p, test, task, tuned) for k, p in programs.items()}
        difference = paired_difference(after["plain"], before["plain"])

        def mean(scores: Mapping[str, float]) -> float:
            return sum(scores.values()) / len(scores)

        return RetentionResult(
            spec.name,
            mean(before["plain"]),
            mean(after["plain"]),
            difference.low,
            difference.high,
            mean(before["shown"]) - mean(before["plain"]),
            mean(after["shown"]) - mean(after["plain"]),
            len(test),
        )

    def _before(
        self, kind: str, program: dspy.Module, test: Sequence[dspy.Example], task: Task, model: LoadedModel
    ) -> dict[str, float]:
        """Return the untrained model's scores, kept in the store because all trainings start from that model."""
        # `auto` may choose another format for another of the experiment's tasks.
        asked = [type(model.prompt_format).__name__, model.spec.identity, program_sha256(program), kind]
        facts = [METHODOLOGY_VERSION, model.sha256, *asked, task.split_sha256(), [e.toDict() for e in test]]
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]
        file: Path = self.indexes.store / "retention" / f"{digest}.json"
        if not file.exists():
            write_json(file, self._scores(program, test, task, model.lm))
        found: dict[str, float] = json.loads(file.read_text(encoding="utf-8"))
        return found

    def _scores(self, program: dspy.Module, test: Sequence[dspy.Example], task: Task, lm: dspy.LM) -> dict[str, float]:
        """Return each example's score; an answer that cannot be parsed scores 0, before and after alike.

        Raises:
            UserError: something other than the model failed, so that an answer has no score.
        """
        with dspy.context(lm=lm):
            rows = list(score_examples(program, test, task.metric, threads=self.threads))
        if failures := [r.failure for r in rows if r.failure]:
            what = f"retention: {task.name}: {len(failures)} of {len(rows)} answers failed ({failures[0]})"
            raise UserError(f"{what}; run again, the training is kept")
        return {r.id: r.score or 0.0 for r in sorted(rows, key=lambda r: r.id)}


def retention_report(results: Sequence[RetentionResult]) -> tuple[dict[str, Any], list[str]]:
    """Return the results as notes of the cell, and the warnings that they call for."""
    warnings = []
    for k in results:
        if k.after - k.before < -MARGIN and k.high < 0:
            warnings.append(
                f"{FORGETS}{k.task}: {k.before:.3f} before, {k.after:.3f} after [{k.low:+.3f}, {k.high:+.3f}], n {k.n}"
            )
        if k.gain_after < k.gain_before - MARGIN and k.gain_after <= 0 < k.gain_before:
            warnings.append(
                f"learns no more in context on {k.task}: {DEMOS} examples bought {k.gain_before:+.3f} before, "
                f"{k.gain_after:+.3f} after"
            )
    return {"retention": [asdict(k) for k in results]}, warnings
