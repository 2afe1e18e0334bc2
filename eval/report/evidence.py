"""What a report is made of, and the tables that are drawn from it."""

import importlib.metadata
import platform
from dataclasses import dataclass

from eval.arm import MOST_FAILED
from eval.compare import Arm, Comparison, Verdict
from eval.doctor import PACKAGES
from eval.experiment import METHODOLOGY_VERSION, Experiment, plan
from eval.finished import Finished
from eval.gates import Outcome
from eval.ledger import machine_usd
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

    @property
    def fit_usd(self) -> float | None:
        """Return what fitting took, API and machine, or None when a price is unknown."""
        return None if self.fit.usd is None else self.fit.usd + self.fit_machine_usd

    @property
    def serve_usd(self) -> float | None:
        """Return what the accuracy pass took, API and machine, or None when a price is unknown."""
        return None if self.serve.usd is None else self.serve.usd + self.serve_machine_usd

    @property
    def api_usd(self) -> float | None:
        """Return what APIs charged, or None when a price is unknown."""
        return None if self.fit.usd is None or self.serve.usd is None else self.fit.usd + self.serve.usd

    @property
    def total_usd(self) -> float | None:
        """Return all dollars of the arm, or None when a price is unknown."""
        return None if self.fit_usd is None or self.serve_usd is None else self.fit_usd + self.serve_usd


def ledger(evidence: Evidence, task: str) -> list[LedgerLine]:
    """Return a line for each arm of a task."""
    lines = []
    for arm in evidence.arms(task):
        results = evidence.results(arm)
        fit = sum((r.fit for r in results), Spent())
        serve = sum((_served(r) for r in results), Spent())
        hour = evidence.experiment.prices.machine_hour_usd if any(r.local for r in results) else 0.0
        lines.append(LedgerLine(arm.name, fit, machine_usd(fit.seconds, hour), serve, machine_usd(serve.seconds, hour)))
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
