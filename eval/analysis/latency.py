"""Summarize the latency of one arm in milliseconds: uncached requests, warm-up dropped, pooled over its seeds."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from crossover.eval.analysis.stats import Estimate, quantile_interval
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
    p50, p95, p99 = (quantile_interval(pooled, q) for q in (0.50, 0.95, 0.99))
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


def _median(seconds: Iterable[float]) -> Estimate | None:
    """Return the median in milliseconds, or None without any timings."""
    ms = [1000 * s for s in seconds]
    return quantile_interval(ms, 0.5) if ms else None
