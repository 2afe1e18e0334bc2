"""The ledger: every dollar that an arm costs, by what it was spent on."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from crossover.eval.experiment.spec import Prices, adapts_weights
from crossover.eval.store.result import Result


@dataclass(frozen=True)
class Ledger:
    """Dollars of one cell; None is an unknown price, which makes every sum with it unknown."""

    labels: float
    """Labelled examples that fitting needs, at `prices.label_usd`."""
    optimizer: float | None
    """Searching for a prompt: machine time and API calls, without the teacher's."""
    teacher: float | None
    """Calls of a teacher model."""
    training: float | None
    """Training weights: machine time and API calls, without trials that were discarded."""
    discarded: float
    """Trials that were trained and not kept."""
    hosting_per_month: float
    """Paid however little is asked."""

    @property
    def fit(self) -> float | None:
        """Return what is paid once."""
        parts = [self.labels, self.optimizer, self.teacher, self.training, self.discarded]
        known = [p for p in parts if p is not None]
        return sum(known) if len(known) == len(parts) else None


def mean_ledger(ledgers: Sequence[Ledger]) -> Ledger:
    """Return the mean over seeds; one unknown price makes the mean unknown."""

    def mean(values: Iterable[float | None]) -> float | None:
        known = [v for v in values if v is not None]
        return sum(known) / len(known) if len(known) == len(ledgers) else None

    return Ledger(
        labels=sum(x.labels for x in ledgers) / len(ledgers),
        optimizer=mean(x.optimizer for x in ledgers),
        teacher=mean(x.teacher for x in ledgers),
        training=mean(x.training for x in ledgers),
        discarded=sum(x.discarded for x in ledgers) / len(ledgers),
        hosting_per_month=max(x.hosting_per_month for x in ledgers),
    )


def machine_usd(seconds: float, machine_hour_usd: float) -> float:
    """Return the dollars of so many seconds on this machine."""
    return seconds / 3600 * machine_hour_usd


def ledger_of(result: Result, prices: Prices) -> Ledger:
    """Return the ledger of one cell from what fitting noted: `teacher.usd`, `discarded_seconds`, labels used."""
    weights = adapts_weights(result.cell.method.name)
    rate = prices.machine_hour_usd if result.local else 0.0
    thrown = min(float(result.notes.get("discarded_seconds") or 0.0), result.fit.seconds)
    teacher = _teacher_usd(result.notes)
    rest: float | None = None
    if result.fit.usd is not None and teacher is not None:
        rest = machine_usd(result.fit.seconds - thrown, rate) + max(0.0, result.fit.usd - teacher)
    return Ledger(
        labels=prices.label_usd * labels_of(result),
        optimizer=0.0 if weights else rest,
        teacher=teacher,
        training=rest if weights else 0.0,
        discarded=machine_usd(thrown, rate),
        hosting_per_month=prices.tuned_hosting_usd_per_month if weights else 0.0,
    )


def labels_of(result: Result) -> int:
    """Return how many labelled examples the arm needs: those shown, those chosen from, or train and val together.

    The test labels are the same for every arm, and are left out.
    """
    notes = result.notes
    if result.cell.method.name == "zero_shot":
        return 0
    if "pool" in notes:
        return int(notes["pool"])
    searched = adapts_weights(result.cell.method.name) or "candidates" in notes
    if not searched and "demos" in notes:
        return int(notes["demos"])
    train = notes.get("train_examples", notes.get("rows", result.cell.train_size or 0))
    return int(train) + int(notes.get("val_examples", 0))


def _teacher_usd(notes: dict[str, Any]) -> float | None:
    """Return what the teacher charged, 0 without one, None when its price is unknown."""
    teacher = notes.get("teacher")
    if not isinstance(teacher, dict):
        return 0.0
    usd = teacher.get("usd")
    return None if usd is None else float(usd)
