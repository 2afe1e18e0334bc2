"""Price fitting and serving in dollars.

A local model costs machine time: that of batches of requests, served in several blocks with the arm's own prefix kept.
An API model costs what its tokens do, with nothing read from the provider's cache. An unknown price is None, never 0.
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from crossover.eval.analysis import quantiles
from crossover.eval.analysis.ledger import ledger_of, machine_usd, mean_usd
from crossover.eval.analysis.stats import ALPHA, Floats
from crossover.eval.experiment.spec import Prices
from crossover.eval.store.result import Result
from crossover.eval.store.rows import Rows
from crossover.models.price import STATED, tokens_usd

TOKENS = ("prompt_tokens", "cached_tokens", "completion_tokens")


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
    blocks: tuple[float, ...] | None = None
    """Dollars of 1,000 requests in each block of a local model, the mean over seeds; None for an API."""
    batch: int = 0
    """Requests that a local model was asked at once in a block; 0 where the price is that of the accuracy pass."""
    per_1k_alone: float | None = None
    """As `per_1k_requests`, of a local model that is asked one request at a time, retrieval included."""

    @property
    def spread(self) -> float:
        """Return the half-width of the 95 % interval of `per_1k_requests` over blocks and seeds; 0 where unknown."""
        return math.hypot(2 * self.seed_error, half_width(self.blocks or ()))

    @property
    def measured_once(self) -> bool:
        """Return whether the price holds a speed of which no spread is known, over blocks or seeds."""
        return self.blocks is not None and len(self.blocks) < 2 and not self.seed_error

    @property
    def basis(self) -> str:
        """Return in words for which use of machine or API `per_1k_requests` holds."""
        if self.blocks is None:
            return "tokens at list prices, none read from a cache"
        if self.batch:
            return f"{self.batch} at once, the common prefix kept"
        return "the pace of the accuracy pass"

    def per_1k_correct(self, score: float) -> float | None:
        """Return dollars for 1,000 right answers at a mean score; None without a price, infinite at score 0."""
        if self.per_1k_requests is None:
            return None
        return self.per_1k_requests / score if score > 0 else math.inf


def cost_of(result: Result, prices: Prices) -> Cost:
    """Return the cost of fitting and serving one cell."""
    ledger, timed = ledger_of(result, prices), result.latency
    fit, hosting = ledger.fit, ledger.hosting_per_month
    rows, judge, charged = Rows.of(result.rows), judge_usd(result, prices), charged_dollars(result, prices)
    if np.isnan(charged).any():
        return Cost(fit, None, None, hosting, judge)
    each = request_dollars(result, prices)
    # A call that failed is no request that was cheap to serve.
    per_1k = 1000 * float(each.sum()) / (len(rows) if result.local else rows.charged) if rows.charged else None
    paid = None
    if fit is not None and judge is not None:
        measuring = machine_usd(result.serve_seconds, prices.machine_hour_usd) if result.local else 0.0
        paid = fit - ledger.labels + float(charged.sum()) + measuring + judge
    if not result.local:
        return Cost(fit, per_1k, paid, hosting, judge)
    rate = 1000 * machine_usd(1.0, prices.machine_hour_usd)
    return Cost(
        fit,
        per_1k,
        paid,
        hosting,
        judge,
        blocks=tuple(rate * s for s in timed.batched),
        batch=timed.batch if timed.batched else 0,
        per_1k_alone=rate * statistics.fmean(timed.seconds) if timed.seconds else None,
    )


def judge_usd(result: Result, prices: Prices) -> float | None:
    """Return the dollars that a judge charged for grading the test: 0 without a judge, None for an unknown price."""
    judge = result.notes.get("judge", {})
    if (price := prices.models.get(judge.get("model", ""))) is not None:
        return tokens_usd(price, float(judge["prompt_tokens"]), 0.0, float(judge["completion_tokens"]))
    usd = judge.get("usd", 0.0)
    return None if usd is None else float(usd)


def charged_dollars(result: Result, prices: Prices) -> Floats:
    """Return what the calls of each row cost when it was measured, NaN where unknown; shape (rows,).

    By the price that the experiment states of the model now, where it states one.
    """
    rows = Rows.of(result.rows)
    if (price := prices.models.get(result.cell.model.name)) is None:
        return np.asarray(rows.usd)
    read, cached, written = (np.asarray(rows.counts[k], float) for k in TOKENS)
    return tokens_usd(price, read, cached, written)


def price_source_of(result: Result, prices: Prices) -> str:
    """Return where the prices of an API come from, with the date of a table; empty for a local model."""
    stated = result.cell.model.name in prices.models
    return STATED if stated else str(result.notes.get("prices", ""))


def request_dollars(result: Result, prices: Prices) -> Floats:
    """Return the dollars of serving each row, NaN where unknown; shape (rows,).

    A request to a local model has no seconds of its own: those of all rows at the pace of the batches, or without them
    of the accuracy pass, are divided in proportion to the tokens of each. The tokens of an API are priced as read anew,
    whatever the provider's cache held while they were measured.
    """
    rows = Rows.of(result.rows)
    read, written = (np.asarray(rows.counts[kind], float) for kind in ("prompt_tokens", "completion_tokens"))
    if result.local:
        batched = result.latency.batched
        seconds = statistics.fmean(batched) * len(rows) if batched else result.serve_seconds
        tokens = read + written
        shares = tokens / tokens.sum() if tokens.sum() else np.full(len(rows), 1 / max(1, len(rows)))
        return np.asarray(rows.usd) + machine_usd(seconds, prices.machine_hour_usd) * shares
    if (price := prices.models.get(result.cell.model.name)) is not None:
        return tokens_usd(price, read, np.zeros(len(rows)), written)
    usd: Floats = np.asarray(rows.usd)
    a_call = read / np.maximum(1, np.asarray(rows.counts["calls"]))
    for tokens, price_in, price_out in result.notes.get("token_rates", ()):
        usd = np.where(a_call > tokens, read * price_in + written * price_out, usd)
    return usd


def request_costs(result: Result, prices: Prices) -> dict[str, float] | None:
    """Return the dollars of each request by example id, or None when a price is unknown."""
    if is_unpriced(result, prices):
        return None
    return dict(zip(Rows.of(result.rows).ids, request_dollars(result, prices).tolist(), strict=True))


def is_unpriced(result: Result, prices: Prices) -> bool:
    """Return whether the price of a row is unknown."""
    return bool(np.isnan(charged_dollars(result, prices)).any())


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
    blocks = [c.blocks for c in costs if c.blocks is not None]
    return Cost(
        mean_usd([c.fit for c in costs]),
        mean_usd([c.per_1k_requests for c in costs]),
        mean_usd([c.paid for c in costs]),
        max(c.hosting_per_month for c in costs),
        mean_usd([c.judge for c in costs]),
        statistics.stdev(served) / math.sqrt(len(served)) if len(served) > 1 else 0.0,
        # Seeds may have been timed in runs of their own, one of which may have broken off.
        tuple(statistics.fmean(block) for block in zip(*blocks, strict=False)) if blocks else None,
        min(c.batch for c in costs),
        mean_usd([c.per_1k_alone for c in costs]),
    )


def half_width(values: Sequence[float]) -> float:
    """Return the half-width of the 95 % t interval of the mean; 0 for fewer than two values, which show no spread."""
    if len(values) < 2:
        return 0.0
    error = statistics.stdev(values) / math.sqrt(len(values))
    return quantiles.student(ALPHA / 2, len(values) - 1) * error


def monthly_usd(cost: Cost, volume: float, *, months: float) -> float | None:
    """Return dollars a month at `volume` requests a month, with fitting spread over `months`, hosting included."""
    if cost.fit is None or cost.per_1k_requests is None:
        return None
    return cost.fit / months + cost.hosting_per_month + volume * cost.per_1k_requests / 1000


def start_usd(cost: Cost, *, months: float) -> float:
    """Return the cost of an arm without any request: fitting, and hosting over `months`."""
    return known_usd(cost.fit) + cost.hosting_per_month * months


def pareto_front(points: Mapping[str, tuple[float, float | None, float | None]]) -> tuple[str, ...]:
    """Return the names of the points that no other beats: score (more is better), dollars and p95 (less is better).

    A point with an unknown value can neither beat another nor be beaten.
    """

    def beats(x: tuple[float, float | None, float | None], y: tuple[float, float | None, float | None]) -> bool:
        if None in (*x, *y) or x == y:
            return False
        return x[0] >= y[0] and known_usd(x[1]) <= known_usd(y[1]) and known_usd(x[2]) <= known_usd(y[2])

    return tuple(name for name, y in points.items() if not any(beats(x, y) for x in points.values()))


def usd(dollars: float) -> str:
    """Return dollars with two significant digits, from one dollar on with cents."""
    return f"${dollars:,.2f}" if dollars >= 1 else f"${dollars:.2g}"


def rounded(count: float) -> str:
    """Return a count to two significant digits."""
    return f"{float(f'{count:.2g}'):,.0f}"


def known_usd(value: float | None) -> float:
    """Return a price that must be known.

    Raises:
        ValueError: it is unknown.
    """
    if value is None:
        raise ValueError("an unpriced arm has no break-even")
    return value
