"""Summarize the requests at one level of load: throughput, latency and time to the first token."""

from typing import NamedTuple

from crossover.eval.analysis.latency import quantile_interval
from crossover.eval.analysis.stats import Estimate
from crossover.eval.store.loads import LoadLevel


class LoadSummary(NamedTuple):
    """What one level of load came to; latencies in milliseconds with their 95 % intervals."""

    answered: int
    failed: int
    per_second: float
    """Requests answered a second."""
    tokens_per_second: float
    """Tokens of answers a second."""
    p50: Estimate
    p95: Estimate
    p99: Estimate
    first_p50: Estimate | None
    """Time to the first token; None for a model that does not stream."""
    first_p95: Estimate | None


def summarize_load(level: LoadLevel) -> LoadSummary:
    """Return the summary of a level; requests that failed count in `failed` alone."""
    answered = [r for r in level.requests if not r.failure]
    seconds = max(level.seconds, 1e-9)
    whole = [1000 * r.seconds for r in answered]
    first = [1000 * r.first_token for r in answered if r.first_token is not None]
    return LoadSummary(
        len(answered),
        len(level.requests) - len(answered),
        len(answered) / seconds,
        sum(r.tokens for r in answered) / seconds,
        *(quantile_interval(whole, q) for q in (0.5, 0.95, 0.99)),
        *(quantile_interval(first, q) if first else None for q in (0.5, 0.95)),
    )
