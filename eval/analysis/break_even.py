"""Find the traffic at which an arm that costs more to start has paid for itself."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from crossover.eval.analysis.cost import Cost, half_width, known_usd, start_usd
from crossover.eval.analysis.stats import mean_interval
from crossover.eval.experiment.spec import Needs


@dataclass(frozen=True)
class BreakEven:
    """Requests after which the arm that costs more to start has paid for itself; None is never."""

    value: float | None
    low: float | None
    """Lower end of the 95 % interval; None is never, or with a `value` that no interval is known."""
    high: float | None
    """Upper end; None is never, or not known."""
    start: str
    """The arm that costs less to start."""
    run: str
    """The arm that costs more to start, and less to run unless `value` is None."""


def break_even_requests(
    cheap_to_start: Cost, cheap_to_run: Cost, *, months: float = Needs.refresh_months
) -> float | None:
    """Return the number of requests after which the second arm costs no more in all than the first; None is never.

    (start of second - start of first) / (price of a request to the first - to the second), where start is fitting and
    hosting over `months`. 0 when the second costs no more to start. Both arms must be priced.
    """
    saving = (known_usd(cheap_to_start.per_1k_requests) - known_usd(cheap_to_run.per_1k_requests)) / 1000
    extra = max(0.0, start_usd(cheap_to_run, months=months) - start_usd(cheap_to_start, months=months))
    return extra / saving if saving > 0 else None


def break_even_interval(
    costs: Mapping[str, Cost],
    requests: Mapping[str, Mapping[str, float]],
    *,
    months: float = Needs.refresh_months,
    seed: int = 0,
) -> BreakEven:
    """Return the break-even of two arms with its 95 % interval, paired by example and by block.

    Both mappings hold the same two names; `requests` has the dollars of each arm by example id. The interval covers the
    lengths of the requests by bootstrap, the speed of the machine as it differs between blocks, and the price as it
    differs between seeds. It is left out where a speed was measured only once. Fitting costs are taken as measured.
    """
    starts = {name: start_usd(cost, months=months) for name, cost in costs.items()}
    start, run = sorted(costs, key=lambda name: (starts[name], -known_usd(costs[name].per_1k_requests)))
    value = break_even_requests(costs[start], costs[run], months=months)
    if any(c.measured_once for c in costs.values()):
        return BreakEven(value, None, None, start, run)
    extra = starts[run] - starts[start]
    saved = [usd - requests[run][i] for i, usd in requests[start].items() if i in requests[run]]
    saving = mean_interval(saved, seed=seed)
    halves = [2 * c.seed_error / 1000 for c in costs.values()]
    halves.append(_block_half_width(costs[start].blocks or (), costs[run].blocks or ()) / 1000)
    low = saving.mean - math.hypot(saving.mean - saving.low, *halves)
    high = saving.mean + math.hypot(saving.high - saving.mean, *halves)

    def count(each: float) -> float | None:
        return extra / each if each > 0 else None

    return BreakEven(value, count(high), count(low), start, run)


def _block_half_width(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the half-width of the interval of `a - b` over blocks, which both arms took turns in."""
    if len(a) == len(b):
        return half_width([x - y for x, y in zip(a, b, strict=True)])
    return math.hypot(half_width(a), half_width(b))
