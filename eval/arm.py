"""One arm of a comparison: what was measured of a method on a task, over its seeds."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from eval.cost import Cost, cost_of, mean_cost, request_costs
from eval.experiment import Cell, Prices
from eval.measure import Result
from eval.stats import Difference, Estimate, Finding, quantile_interval, score_interval
from programs.task import UserError

Kind = Literal["context", "weights"]

MOST_FAILED = 0.05
"""Share of failed rows above which an arm's score says nothing."""


@dataclass(frozen=True)
class Quantiles:
    """Latency in milliseconds: uncached requests, warm-up dropped, pooled over seeds."""

    p50: Estimate
    p95: Estimate
    p99: Estimate
    n: int
    concurrency: int


@dataclass(frozen=True)
class Tokens:
    """Tokens of the accuracy pass: the mean over seeds of the sum over examples."""

    prompt: int
    cached: int
    completion: int


@dataclass(frozen=True)
class Arm:
    """One task, model, method, train size and knowledge, over its seeds."""

    name: str
    """Short label, unique within the task: the method, and what else varies."""
    task: str
    model: str
    method: str
    """The method with its options."""
    kind: Kind
    """Whether the method adapts in context or in weights."""
    train_size: int | None
    """None for the whole pool."""
    knowledge: str
    seeds: tuple[int, ...]
    cells: tuple[str, ...]
    """Cell keys, in the order of `seeds`."""
    mlflow_run_ids: tuple[str, ...]
    """Run ids, in the order of `seeds`."""
    scores: Mapping[str, float]
    """Example id to the mean over the seeds that scored it; examples that failed in every seed are absent."""
    clusters: Mapping[str, str]
    """Example id to cluster; empty where examples are independent."""
    score: Estimate
    """Mean of `scores`; its `n` counts examples."""
    rows: int
    """Rows over all seeds, failed ones included."""
    failed: int
    """Failed rows over all seeds."""
    cost: Cost
    """Means over seeds."""
    request_usd: Mapping[str, float] | None
    """Example id to the dollars of serving it; None when a price is unknown."""
    latency: Quantiles
    tokens: Tokens
    warnings: tuple[str, ...] = ()
    integrity: tuple[str, ...] = ()
    """Checks of a fair comparison that failed."""
    recall: float | None = None
    """Share of the gold passages among those shown at test; None where the task names none."""


@dataclass(frozen=True)
class Contrast:
    """One planned comparison of two arms of a task."""

    task: str
    a: str
    """Name of the arm that is judged."""
    b: str
    """Name of the arm it is compared with."""
    difference: Difference
    """a minus b."""
    p_holm: float
    """p adjusted over the planned contrasts of the task."""
    verdict: Finding
    """What a is, compared with b."""


def arms_of(results: Sequence[Result], prices: Prices) -> list[Arm]:
    """Return the arms of one task, in the order in which they first appear among its results."""
    _same_examples(results)
    groups: dict[tuple[object, ...], list[Result]] = {}
    for result in results:
        cell = result.cell
        groups.setdefault((cell.model, cell.method.label, cell.train_size, cell.knowledge), []).append(result)
    cells = [group[0].cell for group in groups.values()]
    return [_arm(group, name, prices) for group, name in zip(groups.values(), _names(cells), strict=True)]


def kind_of(method: str) -> Kind:
    """Return `weights` for a method that has a file in finetune/, `context` for any other."""
    return "weights" if method.isidentifier() and find_spec(f"finetune.{method}") else "context"


def _same_examples(results: Sequence[Result]) -> None:
    """Refuse results of one task that were not measured on the same split and the same test examples."""
    first = results[0]
    for other in results[1:]:
        if other.split_sha256 != first.split_sha256 or {r.id for r in other.rows} != {r.id for r in first.rows}:
            pair = f"{first.cell.method.label!r} and {other.cell.method.label!r}"
            splits = (
                f"{len(first.rows)} of split {first.split_sha256[:8]}, {len(other.rows)} of {other.split_sha256[:8]}"
            )
            what = f"task {first.cell.task!r}: {pair} were scored on different examples ({splits})"
            raise UserError(f"{what}; run both on the same data")


def _names(cells: Sequence[Cell]) -> list[str]:
    """Return a label for each cell: its method, and what else varies among them."""
    models = {(c.model.name, c.model.adapter) for c in cells}
    several_models, several_adapters = len({m for m, _ in models}) > 1, len(models) > len({m for m, _ in models})
    several_sizes = len({c.train_size for c in cells if c.method.name != "zero_shot"}) > 1
    several_knowledge = len({c.knowledge for c in cells}) > 1
    names: list[str] = []
    for c in cells:
        parts = [c.method.label]
        if several_sizes and c.method.name != "zero_shot":
            parts.append("all" if c.train_size is None else f"n={c.train_size}")
        parts += [c.model.name] * several_models + [c.model.adapter or "default frame"] * several_adapters
        parts += [c.knowledge.label] * several_knowledge
        name = ", ".join(parts)
        names.append(name if name not in names else f"{name} #{names.count(name) + 1}")
    return names


def _arm(results: Sequence[Result], name: str, prices: Prices) -> Arm:
    """Return the arm that these results, one a seed, make together."""
    cell, rows = results[0].cell, [row for r in results for row in r.rows]
    by_id: dict[str, list[float]] = {}
    for row in rows:
        if row.score is not None:
            by_id.setdefault(row.id, []).append(row.score)
    scores = {i: sum(s) / len(s) for i, s in by_id.items()}
    clusters = results[0].clusters
    failed = sum(row.score is None for row in rows)
    integrity = [f for r in results for f in r.integrity]
    if failed > MOST_FAILED * len(rows):
        integrity.append(f"{failed} of {len(rows)} rows failed, more than {MOST_FAILED:.0%}; see their failure column")
    return Arm(
        name=name,
        task=cell.task,
        model=cell.model.name,
        method=cell.method.label,
        kind="weights" if any(kind_of(s.name) == "weights" for s in cell.method.steps) else "context",
        train_size=cell.train_size,
        knowledge=cell.knowledge.label,
        seeds=tuple(r.cell.seed for r in results),
        cells=tuple(r.key for r in results),
        mlflow_run_ids=tuple(r.mlflow_run_id for r in results),
        scores=scores,
        clusters=clusters,
        score=score_interval(list(scores.values()), clusters=[clusters[i] for i in scores] if clusters else None),
        rows=len(rows),
        failed=failed,
        cost=mean_cost([cost_of(r, prices) for r in results]),
        request_usd=_request_usd(results, prices),
        latency=_quantiles(results),
        tokens=_tokens(results),
        warnings=tuple(dict.fromkeys(w for r in results for w in r.warnings)),
        integrity=tuple(dict.fromkeys(integrity)),
        recall=results[0].notes.get("recall"),
    )


def _request_usd(results: Sequence[Result], prices: Prices) -> dict[str, float] | None:
    """Return the mean over seeds of each example's price, or None when one is unknown."""
    known = [costs for r in results if (costs := request_costs(r, prices)) is not None]
    if len(known) < len(results):
        return None
    return {i: sum(costs[i] for costs in known) / len(known) for i in known[0]}


def _quantiles(results: Sequence[Result]) -> Quantiles:
    """Return the latency quantiles of all seeds together, in milliseconds."""
    ms = [1000 * s for r in results for s in r.latency.seconds]
    p50, p95, p99 = (quantile_interval(ms, q) for q in (0.50, 0.95, 0.99))
    return Quantiles(p50, p95, p99, len(ms), results[0].latency.concurrency)


def _tokens(results: Sequence[Result]) -> Tokens:
    """Return the mean over seeds of the tokens of the accuracy pass."""
    rows = [row for r in results for row in r.rows]

    def mean(counts: Iterable[int]) -> int:
        return round(sum(counts) / len(results))

    return Tokens(
        prompt=mean(r.prompt_tokens for r in rows),
        cached=mean(r.cached_tokens for r in rows),
        completion=mean(r.completion_tokens for r in rows),
    )
