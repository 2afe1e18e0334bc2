"""Names, tags, metrics and rows of cells and arms as MLflow shows them."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import dspy

from crossover.eval.analysis.arm import Arm
from crossover.eval.analysis.cost import Cost
from crossover.eval.analysis.labels import gold_of
from crossover.eval.analysis.latency import quantile_interval
from crossover.eval.analysis.stats import Estimate, score_interval
from crossover.eval.experiment.splits import question_text
from crossover.eval.report.text import field_text
from crossover.eval.store.result import Result
from crossover.eval.store.rows import Rows
from crossover.programs.score import Row
from crossover.programs.task import Task


def train_examples(result: Result) -> int:
    """Return how many train examples the cell's method may learn from, 0 for one that does not learn."""
    learns = result.cell.method.learns
    return int(result.cell.train_size or result.facts.train_examples or 0) if learns else 0


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


def params_of_cell(result: Result) -> dict[str, Any]:
    """Return the settings of a cell, under names that MLflow's compare view sets side by side."""
    cell = result.cell
    return {
        "task": cell.task,
        "model": cell.model.name,
        "method": cell.method.name,
        "train_size": train_examples(result),
        "knowledge": cell.knowledge.label,
        "seed": cell.seed,
        "retrieval": cell.retrieval.label if cell.retrieval else "none",
        "split_sha256": result.split_sha256,
        **({"served_by": result.notes["served_by"]} if "served_by" in result.notes else {}),
        **{f"option.{k}": v for k, v in cell.method.options.items()},
    }


def curves(arms: Sequence[Arm]) -> list[list[Arm]]:
    """Return the arms of each method that was fitted on several train sizes, the smallest size first."""
    families: dict[tuple[str, ...], list[Arm]] = {}
    for arm in arms:
        if arm.train_size is not None and arm.score.n:
            families.setdefault((arm.task, *arm.curve), []).append(arm)
    return [sorted(family, key=lambda a: a.train_size or 0) for family in families.values() if len(family) > 1]


def metric_name(name: str, otherwise: str) -> str:
    """Return a name as a part of the name of a metric or tag; `otherwise` where MLflow allows none of its characters.

    MLflow reads slashes as folders, and refuses names that are no plain path.
    """
    plain = re.sub(r"[^\w .:-]", "", name.replace("=", " ").replace("/", "-"), flags=re.ASCII)
    return plain.strip(". ")[:200] or otherwise


def arm_metrics(arm: Arm) -> dict[str, float]:
    """Return the finite metrics of an arm that decide, means over seeds, under the keys that cells use."""
    return _deciding(arm.score, arm.cost, arm.latency.p95.mean)


def _deciding(score: Estimate, cost: Cost, p95_ms: float) -> dict[str, float]:
    metrics = {
        "accuracy": score.mean,
        "accuracy_low": score.low,
        "accuracy_high": score.high,
        "latency_p95_ms": p95_ms,
    }
    return _shown(metrics) | cost_metrics(cost)


def cost_metrics(cost: Cost) -> dict[str, float]:
    """Return the finite metrics of a cell or an arm that depend on prices."""
    return _shown({"cost_usd_per_1k": cost.per_1k_requests, "fit_usd": cost.fit})


def _shown(metrics: Mapping[str, float | None]) -> dict[str, float]:
    # Four digits: MLflow's tables cut longer numbers in their middle.
    return {k: float(f"{v:.4g}") for k, v in _finite(metrics).items()}


def _finite(metrics: Mapping[str, float | None]) -> dict[str, float]:
    return {k: float(v) for k, v in metrics.items() if v is not None and math.isfinite(v)}


def metrics_of(result: Result, cost: Cost) -> dict[str, float]:
    """Return the finite metrics of a cell: those that decide, and the others under `detail/`."""
    scores = {r.id: r.score for r in result.rows if r.score is not None}
    clusters = [result.clusters[i] for i in scores] if result.clusters else None
    score = score_interval(list(scores.values()), clusters=clusters)
    p50, p95, p99 = (1000 * quantile_interval(result.latency.seconds, q).mean for q in (0.5, 0.95, 0.99))
    table = Rows.of(result.rows)
    details: dict[str, float | None] = {
        "n": len(scores),
        "failed": len(result.rows) - len(scores),
        "unparsed": table.unparsed,
        "fit_seconds": result.fit.seconds,
        "fit_calls": result.fit.calls,
        "fit_metric_calls": result.fit.metric_calls,
        "fit_tokens": result.fit.prompt_tokens + result.fit.completion_tokens,
        "prompt_tokens": sum(table.counts["prompt_tokens"]),
        "completion_tokens": sum(table.counts["completion_tokens"]),
        "serve_seconds": result.serve_seconds,
        "latency_p50_ms": p50,
        "latency_p99_ms": p99,
        "retrieval_ms": result.notes.get("retrieval_ms"),
        **{f"retrieval_{n}": result.notes.get(n) for n in ("recall", "mrr", "ndcg")},
        **result.notes.get("secondary", {}),
    }
    for number, name in enumerate(table.fields, 1):
        details[f"field_{metric_name(name, str(number))}"] = score_interval(
            list(table.scored_field(name).values())
        ).mean
    return _deciding(score, cost, p95) | {f"detail/{k}": v for k, v in _finite(details).items()}


def training_metrics(result: Result) -> list[tuple[str, float, int]]:
    """Return what a training logged as name, value and step; empty where nothing was trained.

    Losses stand at the logging steps, scores on val at the epochs; epoch 0 is the untrained model.
    """
    notes = result.notes
    found = [("training/loss", v, step) for step, v in enumerate(notes.get("loss") or (), 1)]
    found += [("training/margin", v, step) for step, v in enumerate(notes.get("margins") or (), 1)]
    return found + [("training/val_score", v, epoch) for epoch, v in enumerate(notes.get("val_scores") or ())]


def examples_by_id(task: Task | None, result: Result) -> dict[str, dspy.Example]:
    """Return the test examples that a result was measured on by id; empty where the data is gone or has changed."""
    # The hash of a judged task's splits names the judge, which may not be loaded.
    if task is None or ("judge" not in result.notes and task.split_sha256() != result.split_sha256):
        return {}
    return {str(e["id"]): e for e in task.test}


def answer_text(row: Row, outputs: Sequence[str]) -> str:
    """Return the named fields of an answer as text, the raw text of an unparsed one, or the reason of a failure."""
    if row.failure or row.unparsed:
        return row.failure or row.raw
    names = [name for name in outputs if name in row.output] or list(row.output)
    return " / ".join(field_text(row.output[name]) for name in names)


def rows_table(result: Result, task: Task | None) -> dict[str, list[Any]]:
    """Return the rows as columns: question, gold answer, answer and score first; the first two where data allows."""
    examples = examples_by_id(task, result)
    rows = []
    for r in result.rows:
        shown: dict[str, Any] = {}
        if task is not None and examples:
            e = examples.get(r.id)
            shown |= {"question": question_text(e) if e else "", "gold": gold_of(task, e) if e else ""}
        shown |= {"answer": answer_text(r, task.outputs if task else ()), "score": r.score}
        texts = {
            k: json.dumps(v, ensure_ascii=False, default=str) for k, v in (("output", r.output), ("fields", r.fields))
        }
        rows.append(shown | {k: v for k, v in (asdict(r) | texts).items() if k != "score"})
    return {k: [r[k] for r in rows] for k in rows[0]} if rows else {}
