"""What a report is made of, and the tables that are drawn from it."""

import importlib.metadata
import platform
from dataclasses import dataclass

from crossover.eval.analysis.arm import MOST_FAILED
from crossover.eval.analysis.compare import Arm, Comparison, Verdict
from crossover.eval.analysis.cost import Cost
from crossover.eval.analysis.gates import Outcome
from crossover.eval.analysis.ledger import Ledger, ledger_of, mean_ledger
from crossover.eval.experiment.spec import METHODOLOGY_VERSION, Experiment, plan
from crossover.eval.store.result import Finished, Result
from crossover.models.usage import Usage

PACKAGES = ("torch", "dspy", "transformers", "peft", "trl", "mlflow", "weaviate-client", "bm25s", "click")
"""Packages whose versions a report names."""


@dataclass(frozen=True)
class Evidence:
    """Everything that a report shows, of every task."""

    experiment: Experiment
    comparison: Comparison
    finished: Finished
    command: str
    """The command line that measures the same."""
    outcomes: tuple[Outcome, ...] = ()
    """Of the gates that were asked for."""

    def arms(self, task: str) -> list[Arm]:
        """Return the arms of a task, best score first, unscored ones last."""
        arms = [a for a in self.comparison.arms if a.task == task]
        return sorted(arms, key=lambda a: (not a.score.n, -a.score.mean if a.score.n else 0.0, a.name))

    def results(self, arm: Arm) -> list[Result]:
        """Return the results of an arm, one a seed."""
        return [r for r in self.finished.results if r.key in arm.cells]

    def shown(self, verdict: Verdict) -> Arm:
        """Return the arm that others are set against: the chosen one, else the one of the best score."""
        arms = self.arms(verdict.task)
        return next((a for a in arms if a.name == verdict.choose), arms[0])


@dataclass(frozen=True)
class LedgerLine:
    """What one arm costs, by the one ledger: means over its seeds, but for the work and what was paid in all."""

    arm: str
    work: Usage
    """Calls, tokens and seconds of fitting, all seeds together."""
    kinds: Ledger
    cost: Cost
    test_usd: float | None
    """The accuracy pass, its judge included."""
    per_1k_correct: float | None
    paid_usd: float | None
    """What all seeds together took, labels apart."""


def ledger(evidence: Evidence, task: str) -> list[LedgerLine]:
    """Return a line for each arm of a task."""
    prices, lines = evidence.experiment.prices, []
    for arm in evidence.arms(task):
        results = evidence.results(arm)
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


@dataclass(frozen=True)
class Check:
    """One check of a fair comparison."""

    name: str
    subject: str
    """The arm, or the task."""
    failure: str
    """Empty when it holds."""


def checks(evidence: Evidence, task: str) -> list[Check]:
    """Return the integrity checks of a task: of its splits, and of each arm.

    The comparison is refused before a report when arms were scored on different examples, or when the splits share
    questions or gold answers do not score 1.0: here those checks hold.
    """
    found = [
        Check("gold answers score 1.0; train, val and test share no question", task, ""),
        Check(f"every arm was scored on the same examples of the same split{_raced(evidence, task)}", task, ""),
    ]
    planned = sum(c.task == task for c in plan(evidence.experiment))
    missing = planned - sum(r.cell.task == task for r in evidence.finished.results)
    partial = f"{missing} of {planned} cells are not finished" if missing else ""
    found.append(Check("every planned cell is finished", task, partial))
    rules = {
        "context": "no demonstration is a test question; zero-shot shows none",
        "weights": "no demonstration is a test question; training changed the model's logits",
    }
    rest = f"at most {MOST_FAILED:.0%} of rows failed"
    return found + [Check(f"{rules[a.kind]}; {rest}", a.name, "; ".join(a.integrity)) for a in evidence.arms(task)]


def _raced(evidence: Evidence, task: str) -> str:
    """Return what is to be said of arms that left a race."""
    return ", dropped ones on the first of them" if any(a.dropped for a in evidence.arms(task)) else ""


def together(found: list[Check]) -> list[tuple[str, Check]]:
    """Return the checks with those of one rule and one outcome as one, failures first, each with whom it is about."""
    groups: dict[tuple[str, str], list[str]] = {}
    for c in found:
        groups.setdefault((c.name, c.failure), []).append(c.subject)
    lines = [
        (", ".join(subjects) if len(subjects) < 4 else f"{len(subjects)} arms", Check(name, subjects[0], failure))
        for (name, failure), subjects in groups.items()
    ]
    return sorted(lines, key=lambda line: not line[1].failure)


def versions() -> list[tuple[str, str]]:
    """Return the versions of what the report was made with."""
    found = [("python", platform.python_version()), ("methodology", str(METHODOLOGY_VERSION))]
    for name in ("crossover", *PACKAGES, "numpy", "scipy", "statsmodels"):
        try:
            found.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            found.append((name, "not installed"))
    return found
