"""What a report is made of, and the tables that are drawn from it."""

import importlib.metadata
import platform
from dataclasses import dataclass

from eval.compare import Arm, Comparison, Verdict
from eval.cost import machine_usd
from eval.doctor import PACKAGES
from eval.experiment import METHODOLOGY_VERSION, Experiment, plan
from eval.finished import Finished
from eval.gates import Outcome
from eval.measure import Result
from programs.task import Spent


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
    """What one arm took, over all its seeds."""

    arm: str
    fit: Spent
    fit_machine_usd: float
    serve: Spent
    """The accuracy pass on the test split."""
    serve_machine_usd: float

    def total(self) -> float | None:
        """Return all dollars of the arm, or None when an API price is unknown."""
        if self.fit.usd is None or self.serve.usd is None:
            return None
        return self.fit.usd + self.fit_machine_usd + self.serve.usd + self.serve_machine_usd


def ledger(evidence: Evidence, task: str) -> list[LedgerLine]:
    """Return a line for each arm of a task."""
    lines = []
    for arm in evidence.arms(task):
        results = evidence.results(arm)
        fit = sum((r.fit for r in results), Spent())
        serve = sum((_served(r) for r in results), Spent())
        hour = evidence.experiment.prices.machine_hour_usd if any(r.local for r in results) else 0.0
        lines.append(
            LedgerLine(arm.name, fit, machine_usd(fit.seconds, hour), serve, machine_usd(serve.seconds, hour))
        )
    return lines


def _served(result: Result) -> Spent:
    """Return what the accuracy pass of one cell took."""
    rows = result.rows
    usd = None if any(r.usd is None for r in rows) else sum(r.usd or 0.0 for r in rows)
    return Spent(
        calls=sum(r.calls for r in rows),
        prompt_tokens=sum(r.prompt_tokens for r in rows),
        cached_tokens=sum(r.cached_tokens for r in rows),
        completion_tokens=sum(r.completion_tokens for r in rows),
        seconds=result.serve_seconds,
        usd=usd,
    )


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
        Check("every arm was scored on the same examples of the same split", task, ""),
    ]
    planned = sum(c.task == task for c in plan(evidence.experiment))
    missing = planned - sum(r.cell.task == task for r in evidence.finished.results)
    partial = f"{missing} of {planned} cells are not finished" if missing else ""
    found.append(Check("every planned cell is finished", task, partial))
    rules = {
        "context": "no demonstration is a test question; zero-shot shows none; at most 5 % of rows failed",
        "weights": "training changed the model's logits; no demonstration is a test question; at most 5 % of rows failed",
    }
    return found + [Check(rules[a.kind], a.name, "; ".join(a.integrity)) for a in evidence.arms(task)]


def versions() -> list[tuple[str, str]]:
    """Return the versions of what the report was made with."""
    found = [("python", platform.python_version()), ("methodology", str(METHODOLOGY_VERSION))]
    for name in ("crossover", *PACKAGES, "numpy", "scipy", "statsmodels"):
        try:
            found.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            found.append((name, "not installed"))
    return found
