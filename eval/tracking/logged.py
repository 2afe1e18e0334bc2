"""Name, tags, metrics and rows of a cell as MLflow shows them."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from crossover.eval.analysis.arm import Arm
from crossover.eval.analysis.cost import Cost
from crossover.eval.analysis.latency import quantile_interval
from crossover.eval.analysis.stats import score_interval
from crossover.eval.store.result import Result
from crossover.eval.store.rows import Rows
from crossover.programs.score import Row


def train_examples(result: Result) -> int:
    """Return the train size as MLflow's step, so that one metric over several sizes draws a learning curve."""
    learns = result.cell.method.learns
    return int(result.cell.train_size or result.facts.train_examples or 0) if learns else 0


def run_name(result: Result) -> str:
    """Return a run name whose first twenty letters, which MLflow's tables show, tell the cell from its siblings."""
    cell = result.cell
    size = f" n={cell.train_size or 'all'}" if cell.method.learns else ""
    options = cell.method.label.removeprefix(cell.method.name)
    return f"{cell.method.name}{size} seed={cell.seed}{options} {cell.task}"


def tags_of(result: Result) -> dict[str, str]:
    """Return the tags by which the runs table is filtered and grouped."""
    cell, left = result.cell, result.dropped
    dropped = {"dropped": f"after {left['after']} of {left['of']}"} if left else {}
    return {
        "crossover.kind": "cell",
        "crossover.cell": result.key,
        "crossover.rows": result.rows_sha256,
        "task": cell.task,
        "method": cell.method.label,
        "model": cell.model.name,
        "size": str(cell.train_size or "all"),
        "seed": str(cell.seed),
        "knowledge": cell.knowledge.label,
        **dropped,
    }


def curves(arms: Sequence[Arm]) -> list[list[Arm]]:
    """Return the arms of each method that was fitted on several train sizes, the smallest size first."""
    families: dict[tuple[str, ...], list[Arm]] = {}
    for arm in arms:
        if arm.train_size is not None and arm.score.n:
            families.setdefault((arm.task, *arm.curve), []).append(arm)
    return [sorted(family, key=lambda a: a.train_size or 0) for family in families.values() if len(family) > 1]


def curve_metrics(arm: Arm) -> dict[str, float]:
    """Return the metrics that change with the train size, under the keys that cells use; means over seeds."""
    metrics = {
        "score": arm.score.mean,
        "score_low": arm.score.low,
        "score_high": arm.score.high,
        "fit_usd": arm.cost.fit,
        "usd_per_1k": arm.cost.per_1k_requests,
        "p95_ms": arm.latency.p95.mean,
    }
    return {k: float(v) for k, v in metrics.items() if v is not None and math.isfinite(v)}


def metrics_of(result: Result, cost: Cost) -> dict[str, float]:
    """Return the finite metrics of a cell, times in milliseconds, money in dollars."""
    scores = {r.id: r.score for r in result.rows if r.score is not None}
    clusters = [result.clusters[i] for i in scores] if result.clusters else None
    score = score_interval(list(scores.values()), clusters=clusters)
    metrics: dict[str, float | None] = {
        "score": score.mean,
        "score_low": score.low,
        "score_high": score.high,
        "n": len(scores),
        "failed": len(result.rows) - len(scores),
        "unparsed": Rows.of(result.rows).unparsed,
        "fit_seconds": result.fit.seconds,
        "fit_usd": cost.fit,
        "fit_calls": result.fit.calls,
        "fit_metric_calls": result.fit.metric_calls,
        "fit_tokens": result.fit.prompt_tokens + result.fit.completion_tokens,
        "usd_per_1k": cost.per_1k_requests,
        "prompt_tokens": sum(r.prompt_tokens for r in result.rows),
        "completion_tokens": sum(r.completion_tokens for r in result.rows),
        "serve_seconds": result.serve_seconds,
    }
    metrics |= {f"retrieval_{n}": result.notes.get(n) for n in ("recall", "mrr", "ndcg")}
    metrics |= result.notes.get("secondary", {})
    table = Rows.of(result.rows)
    for number, name in enumerate(table.fields, 1):
        # MLflow allows no other characters in the name of a metric.
        plain = re.sub(r"[^\w .:/-]", "", name, flags=re.ASCII) or str(number)
        metrics[f"field_{plain}"] = score_interval(list(table.scored_field(name).values())).mean
    metrics["retrieval_ms"] = result.notes.get("retrieval_ms")
    for q in (0.5, 0.95, 0.99):
        metrics[f"p{round(100 * q)}_ms"] = 1000 * quantile_interval(result.latency.seconds, q).mean
    return {k: float(v) for k, v in metrics.items() if v is not None and math.isfinite(v)}


def rows_table(result: Result) -> dict[str, list[Any]]:
    """Return the per-example rows as columns."""

    def texts(row: Row) -> dict[str, str]:
        parts = {"output": row.output, "fields": row.fields}
        return {k: json.dumps(v, ensure_ascii=False, default=str) for k, v in parts.items()}

    rows = [asdict(r) | texts(r) for r in result.rows]
    return {k: [r[k] for r in rows] for k in rows[0]} if rows else {}
