"""The ledger of an arm: every dollar by what it was spent on."""

from collections.abc import Sequence
from dataclasses import dataclass

from crossover.eval.experiment.spec import Prices
from crossover.eval.store.result import Result
from crossover.models.price import tokens_usd
from crossover.models.usage import add_usd


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
    """Trials that were trained and thrown away."""
    hosting_per_month: float
    """Due each month, at any traffic: for tuned weights, and for any model that runs here."""

    @property
    def fit(self) -> float | None:
        """Return the dollars that are paid once, before any request is served."""
        return add_usd(self.labels, self.optimizer, self.teacher, self.training, self.discarded)


def mean_usd(amounts: Sequence[float | None]) -> float | None:
    """Return the mean in dollars; None where one amount is unknown, or there is none."""
    total = add_usd(*amounts)
    return None if total is None or not amounts else total / len(amounts)


def mean_ledger(ledgers: Sequence[Ledger]) -> Ledger:
    """Return the mean over seeds; one unknown price makes the mean unknown."""
    return Ledger(
        labels=sum(x.labels for x in ledgers) / len(ledgers),
        optimizer=mean_usd([x.optimizer for x in ledgers]),
        teacher=mean_usd([x.teacher for x in ledgers]),
        training=mean_usd([x.training for x in ledgers]),
        discarded=sum(x.discarded for x in ledgers) / len(ledgers),
        hosting_per_month=max(x.hosting_per_month for x in ledgers),
    )


def machine_usd(seconds: float, machine_hour_usd: float) -> float:
    """Return the dollars of so many seconds on this machine."""
    return seconds / 3600 * machine_hour_usd


def ledger_of(result: Result, prices: Prices) -> Ledger:
    """Return the ledger of one cell, in which every second and every dollar of its fit is booked once.

    Of a chain of both kinds the trainings are booked on training, all the rest on the optimizer.
    """
    facts, fit, method = result.facts, result.fit, result.cell.method
    rate = prices.machine_hour_usd if result.local else 0.0
    discarded = min(facts.discarded_seconds, fit.seconds)
    whole: float | None = None
    trained: float | None = None
    paid = _fit_usd(result, prices)
    if paid is not None and facts.teacher_usd is not None and facts.training_usd is not None:
        seconds, usd = fit.seconds - discarded, max(0.0, paid - facts.teacher_usd)
        whole = machine_usd(seconds, rate) + usd
        trained = machine_usd(min(facts.training_seconds, seconds), rate) + min(facts.training_usd, usd)
    if method.kind == "in_weights":
        trained = whole
    elif method.kind == "in_context":
        trained = 0.0
    return Ledger(
        labels=prices.label_usd * labels_of(result),
        optimizer=0.0 if method.kind == "in_weights" else add_usd(whole, None if trained is None else -trained),
        teacher=facts.teacher_usd,
        training=trained,
        discarded=machine_usd(discarded, rate),
        hosting_per_month=prices.tuned_hosting_usd_per_month if method.trains or result.local else 0.0,
    )


def _fit_usd(result: Result, prices: Prices) -> float | None:
    """Return what the calls of the fit cost: by the price that the experiment states now, where it made no others."""
    price, fit = prices.models.get(result.cell.model.name), result.fit
    if price is None or result.facts.teacher or "judge" in result.notes:
        return fit.usd
    return tokens_usd(price, float(fit.prompt_tokens), float(fit.cached_tokens), float(fit.completion_tokens))


def labels_of(result: Result) -> int:
    """Return how many labelled examples the arm needs: those that its fit used, or all of train and val.

    The test labels are the same for every arm, and are left out.
    """
    facts = result.facts
    if facts.labels_used is not None:
        return facts.labels_used
    return (facts.train_examples or result.cell.train_size or 0) + facts.val_examples
