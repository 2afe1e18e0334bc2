"""Price fitting and serving in dollars, and find the traffic at which a higher fitting cost pays for itself.

A local model costs machine time: the measured throughput of this machine on the accuracy pass, as if nothing were
cached. An API model costs what the API charged. An unknown price is None, never 0.
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from crossover.eval.analysis.ledger import ledger_of, machine_usd, mean_usd
from crossover.eval.analysis.stats import mean_interval
from crossover.eval.experiment.spec import Needs, Prices
from crossover.eval.store.result import Result
from crossover.eval.store.rows import Rows


@dataclass(frozen=True)
class Cost:
    """Dollars of one arm; None is an unknown price."""

    fit: float | None
    """Paid once to adapt the program: the sum of the ledger."""
    per_1k_requests: float | None
    """To serve 1,000 requests like those of the test split."""
    paid: float | None
    """Paid for this measurement: fitting, without labels, and the accuracy pass."""
    hosting_per_month: float = 0.0
    """Paid whatever the traffic."""
    judge: float | None = 0.0
    """Paid to a judge model for grading the test, part of `paid`; its charges during fitting are part of `fit`."""
    seed_error: float = 0.0
    """Standard error of `per_1k_requests` over seeds; 0 for one seed, which shows no spread."""

    def per_1k_correct(self, score: float) -> float | None:
        """Return dollars for 1,000 right answers at a mean score; None without a price, infinite at score 0."""
        if self.per_1k_requests is None:
            return None
        return self.per_1k_requests / score if score > 0 else math.inf


@dataclass(frozen=True)
class BreakEven:
    """Requests after which the arm that costs more to start has paid for itself; None is never."""

    value: float | None
    low: float | None
    """Lower end of the 95 % interval over requests of other lengths; None is never."""
    high: float | None
    """Upper end; None is never."""
    start: str
    """The arm that costs less to start."""
    run: str
    """The arm that costs more to start, and less to run unless `value` is None."""


def cost_of(result: Result, prices: Prices) -> Cost:
    """Return the cost of fitting and serving one cell."""
    ledger = ledger_of(result, prices)
    fit, hosting = ledger.fit, ledger.hosting_per_month
    rows, judge = Rows.of(result.rows), judge_usd(result)
    if rows.unpriced:
        return Cost(fit, None, None, hosting, judge)
    machine = machine_usd(result.serve_seconds, prices.machine_hour_usd) if result.local else 0.0
    served = sum(rows.usd) + machine
    # A call that failed is no request that was cheap to serve.
    per_1k = 1000 * (sum(rows.usd) / rows.charged + machine / len(rows)) if rows.charged else None
    paid = None if fit is None or judge is None else fit - ledger.labels + served + judge
    return Cost(fit, per_1k, paid, hosting, judge)


def judge_usd(result: Result) -> float | None:
    """Return the dollars that a judge charged for grading the test: 0 without a judge, None for an unknown price."""
    usd = result.notes.get("judge", {}).get("usd", 0.0)
    return None if usd is None else float(usd)


def request_costs(result: Result, prices: Prices) -> dict[str, float] | None:
    """Return the dollars of each request by example id, or None when a price is unknown.

    A local model is batched, so no request has seconds of its own: the wall time of the accuracy pass is divided in
    proportion to the prompt and answer tokens of each request.
    """
    rows = Rows.of(result.rows)
    if rows.unpriced:
        return None
    machine = machine_usd(result.serve_seconds, prices.machine_hour_usd) if result.local else 0.0
    tokens = [p + c for p, c in zip(rows.counts["prompt_tokens"], rows.counts["completion_tokens"], strict=True)]
    total = sum(tokens)
    shares = (count / total for count in tokens) if total else (1 / len(tokens) for _ in tokens)
    return {i: usd + machine * share for i, usd, share in zip(rows.ids, rows.usd, shares, strict=True)}


class RequestCosts(Mapping[str, float]):
    """Dollars of one arm by example id, the mean over its seeds.

    Computed when first read, because of a dozen arms of a large test set only two are read.
    """

    def __init__(self, results: Sequence[Result], prices: Prices) -> None:
        """Take the results of an arm, none of which may be unpriced."""
        self._results, self._prices = results, prices

    @cached_property
    def _usd(self) -> dict[str, float]:
        known = [costs for r in self._results if (costs := request_costs(r, self._prices)) is not None]
        # An arm that left a race may have scored fewer examples with one seed than with another.
        shared = (i for i in known[0] if all(i in costs for costs in known[1:]))
        return {i: sum(costs[i] for costs in known) / len(known) for i in shared}

    def __getitem__(self, key: str) -> float:
        """Return the dollars of one example."""
        return self._usd[key]

    def __iter__(self) -> Iterator[str]:
        """Return the example ids."""
        return iter(self._usd)

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self._usd)


def mean_cost(costs: Sequence[Cost]) -> Cost:
    """Return the mean over seeds; one unknown price makes the mean unknown."""
    served = [c.per_1k_requests for c in costs if c.per_1k_requests is not None]
    return Cost(
        mean_usd([c.fit for c in costs]),
        mean_usd([c.per_1k_requests for c in costs]),
        mean_usd([c.paid for c in costs]),
        max(c.hosting_per_month for c in costs),
        mean_usd([c.judge for c in costs]),
        statistics.stdev(served) / math.sqrt(len(served)) if len(served) > 1 else 0.0,
    )


def monthly_usd(cost: Cost, volume: float, *, months: float) -> float | None:
    """Return dollars a month at `volume` requests a month, with fitting spread over `months`, hosting included."""
    if cost.fit is None or cost.per_1k_requests is None:
        return None
    return cost.fit / months + cost.hosting_per_month + volume * cost.per_1k_requests / 1000


def start_usd(cost: Cost, *, months: float) -> float:
    """Return the cost of an arm without any request: fitting, and hosting over `months`."""
    return _known(cost.fit) + cost.hosting_per_month * months


def break_even_requests(
    cheap_to_start: Cost, cheap_to_run: Cost, *, months: float = Needs.refresh_months
) -> float | None:
    """Return the number of requests after which the second arm costs no more in all than the first; None is never.

    (start of second - start of first) / (price of a request to the first - to the second), where start is fitting and
    hosting over `months`. 0 when the second costs no more to start. Both arms must be priced.
    """
    saving = (_known(cheap_to_start.per_1k_requests) - _known(cheap_to_run.per_1k_requests)) / 1000
    extra = max(0.0, start_usd(cheap_to_run, months=months) - start_usd(cheap_to_start, months=months))
    return extra / saving if saving > 0 else None


def break_even_interval(
    costs: Mapping[str, Cost],
    requests: Mapping[str, Mapping[str, float]],
    *,
    months: float = Needs.refresh_months,
    seed: int = 0,
) -> BreakEven:
    """Return the break-even of two arms with a 95 % interval by bootstrap over requests, paired by example.

    Both mappings hold the same two names; `requests` has the dollars of each arm by example id. The interval covers the
    lengths of the requests, and the price as it differs between seeds. Fitting costs are taken as measured, and so is
    the speed of the machine with one seed.
    """
    starts = {name: start_usd(cost, months=months) for name, cost in costs.items()}
    start, run = sorted(costs, key=lambda name: (starts[name], -_known(costs[name].per_1k_requests)))
    extra = starts[run] - starts[start]
    saved = [usd - requests[run][i] for i, usd in requests[start].items() if i in requests[run]]
    saving = mean_interval(saved, seed=seed)
    error = 2 * math.hypot(*(c.seed_error / 1000 for c in costs.values()))
    low = saving.mean - math.hypot(saving.mean - saving.low, error)
    high = saving.mean + math.hypot(saving.high - saving.mean, error)

    def count(each: float) -> float | None:
        return extra / each if each > 0 else None

    value = break_even_requests(costs[start], costs[run], months=months)
    return BreakEven(value, count(high), count(low), start, run)


def pareto_front(points: Mapping[str, tuple[float, float | None, float | None]]) -> tuple[str, ...]:
    """Return the names of the points that no other beats: score (more is better), dollars and p95 (less is better).

    A point with an unknown value can neither beat another nor be beaten.
    """

    def beats(x: tuple[float, float | None, float | None], y: tuple[float, float | None, float | None]) -> bool:
        if None in (*x, *y) or x == y:
            return False
        return x[0] >= y[0] and _known(x[1]) <= _known(y[1]) and _known(x[2]) <= _known(y[2])

    return tuple(name for name, y in points.items() if not any(beats(x, y) for x in points.values()))


def usd(dollars: float) -> str:
    """Return dollars with two significant digits, from one dollar on with cents."""
    return f"${dollars:,.2f}" if dollars >= 1 else f"${dollars:.2g}"


def rounded(count: float) -> str:
    """Return a count to two significant digits."""
    return f"{float(f'{count:.2g}'):,.0f}"


def _known(value: float | None) -> float:
    """Return a price that the caller has checked to be known."""
    if value is None:
        raise ValueError("an unpriced arm has no break-even")
    return value
