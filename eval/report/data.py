"""Gather what a report shows: the data of every form, the ledger, the checks of a fair comparison, the versions."""

import importlib.metadata
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from crossover.eval.analysis.arm import MOST_FAILED, Arm, best_first
from crossover.eval.analysis.compare import Comparison
from crossover.eval.analysis.contrast import Contrast
from crossover.eval.analysis.cost import Cost
from crossover.eval.analysis.gates import Outcome
from crossover.eval.analysis.ledger import Ledger, ledger_of, mean_ledger
from crossover.eval.analysis.verdict import Verdict
from crossover.eval.experiment import catalog
from crossover.eval.experiment.method import MethodSpec
from crossover.eval.experiment.spec import METHODOLOGY_VERSION, Experiment, plan
from crossover.eval.store.loads import LoadLevel
from crossover.eval.store.result import Finished, Result
from crossover.models.usage import Usage

PACKAGES = ("torch", "dspy", "transformers", "peft", "trl", "mlflow", "weaviate-client", "bm25s", "click")
"""Packages whose versions a report states."""


@dataclass(frozen=True)
class ReportData:
    """Everything that a report shows."""

    experiment: Experiment
    comparison: Comparison
    finished: Finished
    outcomes: tuple[Outcome, ...] = ()
    """Outcomes of the gates that were asked for."""
    prompts: Mapping[tuple[str, str], Sequence[tuple[str, str]]] = field(default_factory=dict)
    """Cell key and example id to the messages that the model was sent, each with its role."""
    loads: Sequence[LoadLevel] = ()
    """Load tests of the cells."""

    def arms(self, task: str) -> list[Arm]:
        """Return the arms of a task, best score first, unscored ones last."""
        return best_first([a for a in self.comparison.arms if a.task == task])

    def contrasts(self, task: str) -> list[Contrast]:
        """Return the contrasts of a task."""
        return [c for c in self.comparison.contrasts if c.task == task]

    def results(self, arm: Arm) -> list[Result]:
        """Return the results of an arm, one for each seed."""
        return [r for r in self.finished.results if r.key in arm.cells]

    def reference_arm(self, verdict: Verdict) -> Arm:
        """Return the arm that the others are compared with: the chosen one, or else the best of those compared."""
        compared = self.comparison.compared[verdict.task]
        return self.comparison.chosen(verdict) or next(a for a in self.arms(verdict.task) if a.name in compared)


class LedgerLine(NamedTuple):
    """Cost of one arm, the mean over its seeds save for `work` and `paid_usd`."""

    arm: str
    work: Usage
    """Usage of fitting, summed over the seeds."""
    kinds: Ledger
    cost: Cost
    test_usd: float | None
    """Paid for the accuracy pass, its judge included."""
    per_1k_correct: float | None
    paid_usd: float | None
    """Paid for fitting and test, summed over the seeds, labels not included."""


def ledger(data: ReportData, task: str) -> list[LedgerLine]:
    """Return the ledger line of each arm of a task."""
    prices, lines = data.experiment.prices, []
    for arm in data.arms(task):
        results = data.results(arm)
        kinds, paid = mean_ledger([ledger_of(r, prices) for r in results]), arm.cost.paid
        known = None not in (paid, kinds.fit)
        lines.append(
            LedgerLine(
                arm.name,
                sum((r.fit for r in results), Usage()),
                kinds,
                arm.cost,
                test_usd=(paid or 0.0) + kinds.labels - (kinds.fit or 0.0) if known else None,
                per_1k_correct=arm.cost.per_1k_correct(arm.score.mean),
                paid_usd=None if paid is None else paid * len(results),
            )
        )
    return lines


class Check(NamedTuple):
    """One check of a fair comparison."""

    name: str
    subject: str
    """The arm or task that was checked."""
    failure: str
    """How the check failed; empty when it holds."""


def checks(data: ReportData, task: str) -> list[Check]:
    """Return the checks of a task: of its splits, and of each arm.

    The checks of the splits always hold here, because the comparison is refused beforehand when splits share questions,
    gold answers do not score 1.0, or arms were scored on different examples.
    """
    found = [
        Check("gold answers score 1.0; train, val and test share no question", task, ""),
        Check(f"every arm was scored on the same examples of the same split{_raced(data, task)}", task, ""),
    ]
    planned = sum(c.task == task for c in plan(data.experiment))
    missing = planned - sum(r.cell.task == task for r in data.finished.results)
    partial = f"{missing} of {planned} cells are not finished" if missing else ""
    found.append(Check("every planned cell is finished", task, partial))
    rules = {
        "context": "no demonstration is a test question; zero-shot shows none",
        "weights": "no demonstration is a test question; training changed the model's logits",
    }
    rest = f"at most {MOST_FAILED:.0%} of rows failed"
    return found + [Check(f"{rules[a.kind]}; {rest}", a.name, "; ".join(a.integrity)) for a in data.arms(task)]


def _raced(data: ReportData, task: str) -> str:
    """Return the remark on arms that a race dropped, or an empty string."""
    return ", dropped ones on the first of them" if any(a.dropped for a in data.arms(task)) else ""


def merged(found: list[Check]) -> list[tuple[str, Check]]:
    """Return the checks merged by name and outcome, failures first, each after the subjects it is about."""
    groups: dict[tuple[str, str], list[str]] = {}
    for c in found:
        groups.setdefault((c.name, c.failure), []).append(c.subject)
    lines = [
        (", ".join(subjects) if len(subjects) < 4 else f"{len(subjects)} arms", Check(name, subjects[0], failure))
        for (name, failure), subjects in groups.items()
    ]
    return sorted(lines, key=lambda line: not line[1].failure)


def method_words(method: MethodSpec) -> str:
    """Return what a method does, in a plain sentence that says whether anything is trained."""
    summaries = {entry.name: entry.summary for entry in catalog.methods()}
    # Sources and abbreviations in brackets are for those who choose methods.
    plain = [re.sub(r" \([^)]*\)", "", summaries.get(step.name, step.name)).rstrip(".") for step in method.steps]
    return f"{'; then: '.join(plain)}. {'Weights are trained.' if method.trains else 'Nothing is trained.'}"


def machine() -> str:
    """Return system, processor and cores of this machine."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"


def versions() -> list[tuple[str, str]]:
    """Return name and version of Python, of the methodology and of each package that a report states."""
    found = [("python", platform.python_version()), ("methodology", str(METHODOLOGY_VERSION))]
    for name in ("crossover", *PACKAGES, "numpy", "scipy", "statsmodels"):
        try:
            found.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            found.append((name, "not installed"))
    return found
