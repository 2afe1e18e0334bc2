"""One arm of a comparison: what was measured of a method on a task, over its seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

from crossover.eval.analysis.cost import Cost, RequestCosts, cost_of, mean_cost
from crossover.eval.analysis.findings import Finding
from crossover.eval.analysis.human import HumanCheck, human_check
from crossover.eval.analysis.labels import LabelScore, mean_labels
from crossover.eval.analysis.secondary import mean_secondary
from crossover.eval.analysis.seeds import widen_estimate
from crossover.eval.analysis.stats import Difference, Estimate, quantile_interval, score_interval
from crossover.eval.experiment.spec import Cell, Kind, Prices
from crossover.eval.store.result import Result
from crossover.eval.store.rows import Rows
from crossover.models.errors import UserError
from crossover.programs.retrieval.ranking import Ranking

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
    first_token: Estimate | None = None
    """Median until the answer began; None where no model streamed."""
    cold: Estimate | None = None
    """Median with nothing kept of earlier prompts; None for a model that runs elsewhere."""
    cold_first_token: Estimate | None = None


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
    constant: bool = False
    """In every seed it is not shown to be better than one answer to everything."""
    integrity: tuple[str, ...] = ()
    """Checks of a fair comparison that failed."""
    learns: bool = True
    train_examples: int | None = None
    """Examples that the pool held; None where no fit told."""
    secondary: Mapping[str, float] = field(default_factory=dict)
    """Measures that the task is not scored by: macro-F1, knowledge-F1; the mean over seeds."""
    labels: Mapping[str, LabelScore] = field(default_factory=dict)
    """Gold label to its frequencies and score; empty where answers are no labels."""
    by_seed: tuple[Mapping[str, float], ...] = ()
    """Example id to score, one mapping a seed, in the order of `seeds`; failed examples are absent."""
    retrieval: str = ""
    """Backend, k and options; empty where nothing is retrieved."""
    ranking: Ranking | None = None
    """How good the passages shown at test are; None where the task names no gold passages."""
    hit: Estimate | None = None
    """Score over the examples whose gold passages were all retrieved; None where nothing is retrieved."""
    miss: Estimate | None = None
    """Score over the others."""
    human: HumanCheck | None = None
    """What people say of the judge's scores; None where they were not asked."""
    dropped: tuple[int, int] | None = None
    """Examples after which the arm left the race, and of how many; None where it was scored on all."""
    retrieval_ms: float | None = None
    """Median milliseconds of retrieval in the latency of one request; None where nothing is retrieved."""
    price_source: str = ""
    """Table and date of the API prices; empty for a model that runs here."""

    @property
    def family(self) -> tuple[str, str, str, str]:
        """Return what the arms of one learning curve share: all but the train size."""
        return self.method, self.model, self.knowledge, self.retrieval


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
        groups.setdefault((cell.model, cell.method.label, cell.train_size, cell.knowledge, _found(cell)), []).append(
            result
        )
    cells = [group[0].cell for group in groups.values()]
    return [_arm(group, name, prices) for group, name in zip(groups.values(), _names(cells), strict=True)]


def _found(cell: Cell) -> str:
    """Return how the cell's passages were found, empty where none were."""
    return cell.retrieval.label if cell.retrieval else ""


def _same_examples(results: Sequence[Result]) -> None:
    """Refuse results of one task that were not measured on the same split and the same test examples.

    An arm that left a race has some of them.
    """
    first = next((r for r in results if r.dropped is None), results[0])
    ids = set(Rows.of(first.rows).ids)
    for other in results:
        own = set(Rows.of(other.rows).ids)
        same = own == ids if other.dropped is None else own <= ids
        if other.split_sha256 != first.split_sha256 or not same:
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
    several_sizes = len({c.train_size for c in cells if c.method.learns}) > 1
    several_knowledge = len({c.knowledge for c in cells}) > 1
    several_retrievals = len({_found(c) for c in cells} - {""}) > 1
    names: list[str] = []
    for c in cells:
        parts = [c.method.label]
        if several_sizes and c.method.learns:
            parts.append("all" if c.train_size is None else f"n={c.train_size}")
        parts += [c.model.name] * several_models + [c.model.adapter or "default frame"] * several_adapters
        parts += [c.knowledge.label] * several_knowledge
        parts += [_found(c)] * (several_retrievals and c.retrieval is not None)
        name = ", ".join(parts)
        names.append(name if name not in names else f"{name} #{names.count(name) + 1}")
    return names


def _arm(results: Sequence[Result], name: str, prices: Prices) -> Arm:
    """Return the arm that these results, one a seed, make together."""
    cell, tables = results[0].cell, [Rows.of(r.rows) for r in results]
    # By id: rows stand in the order in which they were answered, which must not decide what a bootstrap draws.
    by_seed = tuple(dict(sorted(t.scored())) for t in tables)
    scores = _mean_scores(by_seed)
    clusters = results[0].clusters
    among = [clusters[i] for i in scores] if clusters else None
    failed, rows = sum(t.failed for t in tables), sum(map(len, tables))
    integrity = [f for r in results for f in r.integrity]
    if failed > MOST_FAILED * rows:
        integrity.append(f"{failed} of {rows} rows failed, more than {MOST_FAILED:.0%}; see their failure column")
    return Arm(
        name=name,
        task=cell.task,
        model=cell.model.name,
        method=cell.method.label,
        kind="weights" if cell.method.trains else "context",
        learns=cell.method.learns,
        train_size=cell.train_size,
        knowledge=cell.knowledge.label,
        seeds=tuple(r.cell.seed for r in results),
        cells=tuple(r.key for r in results),
        mlflow_run_ids=tuple(r.mlflow_run_id for r in results),
        scores=scores,
        clusters=clusters,
        score=widen_estimate(score_interval(list(scores.values()), clusters=among), by_seed),
        rows=rows,
        failed=failed,
        cost=mean_cost([cost_of(r, prices) for r in results]),
        request_usd=_request_usd(results, prices),
        latency=_quantiles(results),
        tokens=_tokens(results),
        warnings=tuple(dict.fromkeys(w for r in results for w in r.warnings)),
        constant=all(r.notes.get("constant") for r in results),
        integrity=tuple(dict.fromkeys(integrity)),
        train_examples=results[0].facts.train_examples or cell.train_size,
        secondary=mean_secondary([r.notes for r in results]),
        labels=mean_labels([r.notes for r in results]),
        by_seed=by_seed,
        retrieval=_found(cell),
        ranking=_ranking(results[0]),
        hit=_score_where(scores, results[0], found=True),
        miss=_score_where(scores, results[0], found=False),
        human=human_check(results, scores),
        dropped=next(((r.dropped["after"], r.dropped["of"]) for r in results if r.dropped), None),
        retrieval_ms=results[0].notes.get("retrieval_ms"),
        price_source=results[0].notes.get("prices", ""),
    )


def _mean_scores(by_seed: Sequence[Mapping[str, float]]) -> Mapping[str, float]:
    """Return each example's mean over the seeds that scored it."""
    if len(by_seed) == 1:
        return by_seed[0]
    gathered: dict[str, list[float]] = {}
    for scores in by_seed:
        for i, score in scores.items():
            gathered.setdefault(i, []).append(score)
    return {i: sum(s) / len(s) for i, s in gathered.items()}


def _ranking(result: Result) -> Ranking | None:
    """Return the quality of the passages shown, as the notes keep it."""
    names = [f.name for f in fields(Ranking)]
    return Ranking(**{n: result.notes[n] for n in names}) if all(n in result.notes for n in names) else None


def _score_where(scores: Mapping[str, float], result: Result, *, found: bool) -> Estimate | None:
    """Return the score over the examples that retrieval hit, or missed."""
    chosen = [i for i in scores if result.hits.get(i) is found]
    clusters = [result.clusters[i] for i in chosen] if result.clusters else None
    return score_interval([scores[i] for i in chosen], clusters=clusters) if result.hits else None


def _request_usd(results: Sequence[Result], prices: Prices) -> Mapping[str, float] | None:
    """Return the mean over seeds of each example's price, or None when one is unknown."""
    return None if any(Rows.of(r.rows).unpriced for r in results) else RequestCosts(results, prices)


def _quantiles(results: Sequence[Result]) -> Quantiles:
    """Return the latency quantiles of all seeds together, in milliseconds."""
    ms = [1000 * s for r in results for s in r.latency.seconds]
    p50, p95, p99 = (quantile_interval(ms, q) for q in (0.50, 0.95, 0.99))

    def median(name: str) -> Estimate | None:
        timed = [1000 * s for r in results for s in getattr(r.latency, name)]
        return quantile_interval(timed, 0.5) if timed else None

    return Quantiles(
        p50,
        p95,
        p99,
        len(ms),
        results[0].latency.concurrency,
        first_token=median("first_token"),
        cold=median("cold"),
        cold_first_token=median("cold_first_token"),
    )


def _tokens(results: Sequence[Result]) -> Tokens:
    """Return the mean over seeds of the tokens of the accuracy pass."""
    tables = [Rows.of(r.rows) for r in results]
    names = "prompt_tokens", "cached_tokens", "completion_tokens"
    return Tokens(*(round(sum(sum(t.counts[n]) for t in tables) / len(tables)) for n in names))
