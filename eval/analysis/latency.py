"""Summarize the latency of one arm in milliseconds: uncached requests, warm-up dropped, pooled over its seeds."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from crossover.eval.analysis import quantiles
from crossover.eval.analysis.stats import ALPHA, Estimate
from crossover.eval.store.result import Result


@dataclass(frozen=True)
class LatencySummary:
    """Quantiles of latency in milliseconds, each with its 95 % interval."""

    p50: Estimate
    p95: Estimate
    p99: Estimate
    n: int
    concurrency: int
    first_token: Estimate | None = None
    """Median time to the first token; None for a model that does not stream."""
    cold: Estimate | None = None
    """Median with an empty prefix cache; None for a remote model, whose cache is not ours to empty."""
    cold_first_token: Estimate | None = None


def summarize_latency(results: Sequence[Result]) -> LatencySummary:
    """Return the latency of the seeds of one arm."""
    pooled = [1000 * s for r in results for s in r.latency.seconds]
    questions = len({i for r in results for i in r.latency.ids or range(len(r.latency.seconds))})
    p50, p95, p99 = (quantile_interval(pooled, q, questions=questions) for q in (0.50, 0.95, 0.99))
    return LatencySummary(
        p50,
        p95,
        p99,
        len(pooled),
        results[0].latency.concurrency,
        first_token=_median(s for r in results for s in r.latency.first_token),
        cold=_median(s for r in results for s in r.latency.cold),
        cold_first_token=_median(s for r in results for s in r.latency.cold_first_token),
    )


def quantile_interval(values: Sequence[float], q: float, *, questions: int | None = None) -> Estimate:
    """Return the quantile `q` of latencies with its 95 % interval from order statistics, which assume no shape.

    Where several seeds asked one question, `questions` counts distinct ones, and the ranks are those of so many values:
    exact if a question takes as long with every seed, wide otherwise. An end that they are too few for is 0 below and
    infinite above: that of a p95 has an upper end from 72 questions on.
    """
    if not values:
        return Estimate(math.nan, math.nan, math.nan, 0)
    ordered, n = sorted(values), questions or len(values)
    low, high = quantiles.binomial(ALPHA / 2, n, q), quantiles.binomial(1 - ALPHA / 2, n, q) + 1
    seeds = len(ordered) / n
    return Estimate(
        float(np.quantile(ordered, q)),
        ordered[math.floor((low - 1) * seeds)] if low > 0 else 0.0,
        ordered[math.ceil(high * seeds) - 1] if high <= n else math.inf,
        len(ordered),
    )


def _median(seconds: Iterable[float]) -> Estimate | None:
    """Return the median in milliseconds, or None without any timings."""
    ms = [1000 * s for s in seconds]
    return quantile_interval(ms, 0.5) if ms else None
