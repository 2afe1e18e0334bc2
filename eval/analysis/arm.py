"""Group results into arms: everything measured of one method on one task, over its seeds."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache, cached_property, partial

from crossover.eval.analysis.arm_names import arm_names, family_names, retrieval_label
from crossover.eval.analysis.cost import Cost, RequestCosts, cost_of, is_unpriced, mean_cost, price_source_of
from crossover.eval.analysis.human import HumanCheck, human_check
from crossover.eval.analysis.labels import LabelScore, mean_labels
from crossover.eval.analysis.latency import LatencySummary, summarize_latency
from crossover.eval.analysis.secondary_metrics import mean_secondary_metrics
from crossover.eval.analysis.seeds import mean_score, mean_scores
from crossover.eval.analysis.stats import ALPHA, Estimate
from crossover.eval.experiment.method import MethodSpec
from crossover.eval.experiment.spec import Compare, Kind, Prices
from crossover.eval.store.result import Result
from crossover.eval.store.rows import Rows
from crossover.models.errors import UserError
from crossover.models.usage import Usage
from crossover.programs.retrieval.ranking import Ranking

MOST_FAILED = 0.05
"""Share of rows that failed for reasons outside the model above which an arm cannot be chosen."""


@dataclass(frozen=True)
class Arm:
    """One combination of task, model, method, train size, knowledge and retrieval, over its seeds."""

    name: str
    """Short label, unique within the task: the method, and what else varies."""
    task: str
    model: str
    method: str
    """The method with its options."""
    spec: MethodSpec
    """The method as the experiment file gives it."""
    kind: Kind
    """Whether the method adapts in context or in weights."""
    family: str
    """Name of what all variants of the method share; the arm's own name where every variant is compared."""
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
    """Rows over all seeds that have no score, for reasons outside the model."""
    cost: Cost
    """Means over seeds."""
    request_usd: Mapping[str, float] | None
    """Example id to the dollars of serving it; None when a price is unknown."""
    latency: LatencySummary
    tokens: Usage
    """Tokens of the accuracy pass, the mean over seeds; no other field of the record is filled."""
    variants: int = 1
    """Arms of the family."""
    val: float | None = None
    """Mean score on val over the seeds, by which one variant of a method is chosen; None where val was not read."""
    failed_ids: tuple[tuple[str, ...], ...] = ()
    """Ids of the failed rows of each seed, in the order of `seeds`."""
    unparsed: int = 0
    """Rows over all seeds whose answer could not be parsed, was empty, or was none of the labels; they score 0."""
    charged: int = 0
    """Rows over all seeds that have a score, or made a call that counts."""
    endings: Mapping[str, int] = field(default_factory=dict)
    """Rows over all seeds whose answer is not whole, by the reason, as in `Row.ending`."""
    tokens_estimated: bool = False
    """A provider did not say how many tokens it charges, so that they were counted here, and priced."""
    warnings: tuple[str, ...] = ()
    single_answer: bool = False
    """No seed is shown to be better than giving one answer to every question."""
    integrity: tuple[str, ...] = ()
    """Checks of a fair comparison that failed."""
    prompt_format: str = ""
    """Empty for results of versions that did not keep it."""
    format_choice: str = ""
    """How the formats compared on val; empty where there was nothing to choose."""
    learns: bool = True
    """Whether the method takes anything from train."""
    sampled: bool = False
    """Whether answers are drawn at a temperature above 0."""
    train_examples: int | None = None
    """Examples in the train pool; None when no fit reported it."""
    secondary: Mapping[str, float] = field(default_factory=dict)
    """Means over seeds of the metrics that the task is not scored by, such as macro-F1."""
    fields: Mapping[str, Estimate] = field(default_factory=dict)
    """Score of each output field under a metric of several, or of each key of a metric that returns a dict."""
    labels: Mapping[str, LabelScore] = field(default_factory=dict)
    """Gold label to its frequencies and score; empty unless gold answers are labels."""
    by_seed: tuple[Mapping[str, float], ...] = ()
    """Example id to score, one mapping a seed, in the order of `seeds`; failed examples are absent."""
    retrieval: str = ""
    """Backend, k and options of retrieval; empty without it."""
    ranking: Ranking | None = None
    """Quality of the passages shown at test; None when the task names no gold passages."""
    hit: Estimate | None = None
    """Score over the examples whose gold passages were all retrieved; None without retrieval."""
    miss: Estimate | None = None
    """Score over the other examples."""
    human: HumanCheck | None = None
    """How people graded a sample of the answers that a judge scored; None without human ratings."""
    dropped: tuple[int, int] | None = None
    """After how many examples the arm left the race, and of how many; None when it was scored on all."""
    retrieval_ms: float | None = None
    """Median milliseconds that retrieval adds to the latency of one request; None without retrieval."""
    price_source: str = ""
    """Table and date of the API prices; empty for a local model."""

    @property
    def id(self) -> str:
        """Return the key of the first seed's cell, which names the arm in JSON and on the command line."""
        return self.cells[0]

    @cached_property
    def score_among(self) -> Callable[[int], Estimate]:
        """The score by the number of arms it was chosen among: `score_after_choice`, computed once for each."""
        return cache(partial(score_after_choice, self))

    @property
    def curve(self) -> tuple[str, str, str, str]:
        """Return the fields that all arms of one learning curve share: all but the train size."""
        return self.method, self.model, self.knowledge, self.retrieval


def score_after_choice(arm: Arm, count: int) -> Estimate:
    """Return the score of an arm that was chosen among `count` arms of one test set, with a 95 % interval.

    Whatever is chosen for its score was lucky, so the lower end may be missed with a chance of 5 % over `count`. The
    upper end stays: it is missed by those that had no luck, and they are not chosen. For the better of two this is the
    plain interval, which is right for it (Benjamini, Hechtlinger and Stark 2019, arXiv 1906.00505).
    """
    if count <= 2:
        return arm.score
    return replace(arm.score, low=mean_score(arm.scores, arm.clusters, arm.by_seed, tail=ALPHA / count).low)


def best_first(arms: Sequence[Arm]) -> list[Arm]:
    """Return the arms sorted by score, the best first, unscored ones last."""
    return sorted(arms, key=lambda a: (not a.score.n, -a.score.mean if a.score.n else 0.0, a.name))


def arms_of(results: Sequence[Result], prices: Prices, compare: Compare = "methods") -> list[Arm]:
    """Return the arms of one task, in the order of their first results."""
    _same_examples(results)
    groups: dict[tuple[object, ...], list[Result]] = {}
    for result in results:
        cell = result.cell
        facts = (cell.model, cell.method.label, cell.train_size, cell.knowledge, retrieval_label(cell))
        groups.setdefault(facts, []).append(result)
    cells = [group[0].cell for group in groups.values()]
    names = arm_names(cells)
    families = names if compare == "all" else family_names(cells)
    arms = [_arm(g, n, f, prices) for g, n, f in zip(groups.values(), names, families, strict=True)]
    return [replace(a, variants=families.count(a.family)) for a in arms]


def _same_examples(results: Sequence[Result]) -> None:
    """Refuse results of one task unless all come from one split and the same test examples.

    An arm that left a race needs to have scored only some of the examples.
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


def _arm(results: Sequence[Result], name: str, family: str, prices: Prices) -> Arm:
    """Return the arm of these results, one for each seed."""
    cell, tables = results[0].cell, [Rows.of(r.rows) for r in results]
    # Rows stand in the order in which they were answered, and that must not decide what a bootstrap draws.
    by_seed = tuple(dict(sorted(t.scored())) for t in tables)
    scores, columns = mean_scores(by_seed), results[0].notes.get("columns", {})
    clusters = results[0].clusters
    failed, rows = sum(t.failed for t in tables), sum(map(len, tables))
    integrity, warnings = [f for r in results for f in r.integrity], [w for r in results for w in r.warnings]
    first_failure = next((t.first_failure for t in tables if t.first_failure), "")
    if failed > MOST_FAILED * rows:
        integrity.append(f"{failed} of {rows} rows failed, more than {MOST_FAILED:.0%}, the first by {first_failure}")
    elif failed:
        warnings.append(f"{failed} of {rows} rows failed, the first by {first_failure}")
    return Arm(
        name=name,
        task=cell.task,
        model=cell.model.name,
        method=cell.method.label,
        spec=cell.method,
        family=family,
        kind="weights" if cell.method.trains else "context",
        prompt_format=results[0].notes.get("prompt_format", ""),
        format_choice=results[0].notes.get("prompt_format_choice", ""),
        learns=cell.method.learns,
        sampled=cell.model.temperature > 0,
        train_size=cell.train_size,
        knowledge=cell.knowledge.label,
        seeds=tuple(r.cell.seed for r in results),
        cells=tuple(r.key for r in results),
        mlflow_run_ids=tuple(r.mlflow_run_id for r in results),
        scores=scores,
        clusters=clusters,
        score=mean_score(scores, clusters, by_seed),
        rows=rows,
        failed=failed,
        val=_mean_val(results),
        failed_ids=tuple(tuple(i for i in t.ids if i not in s) for t, s in zip(tables, by_seed, strict=True)),
        unparsed=sum(t.unparsed for t in tables),
        charged=sum(t.charged for t in tables),
        endings=sum((t.endings for t in tables), Counter()),
        tokens_estimated=any(t.tokens_estimated for t in tables),
        cost=mean_cost([cost_of(r, prices) for r in results]),
        request_usd=None if any(is_unpriced(r, prices) for r in results) else RequestCosts(results, prices),
        latency=summarize_latency(results),
        tokens=_mean_usage(results),
        warnings=tuple(dict.fromkeys(warnings)),
        single_answer=all(r.notes.get("constant") for r in results),
        integrity=tuple(dict.fromkeys(integrity)),
        train_examples=results[0].facts.train_examples or cell.train_size,
        secondary=mean_secondary_metrics([r.notes for r in results]),
        fields={columns.get(n, n): score for n, score in _field_scores(tables, clusters).items()},
        labels=mean_labels([r.notes for r in results]),
        by_seed=by_seed,
        retrieval=retrieval_label(cell),
        ranking=_ranking(results[0]),
        hit=_score_by_hit(scores, results[0], hit=True),
        miss=_score_by_hit(scores, results[0], hit=False),
        human=human_check(results, scores),
        dropped=next(((r.dropped["after"], r.dropped["of"]) for r in results if r.dropped), None),
        retrieval_ms=results[0].notes.get("retrieval_ms"),
        price_source=price_source_of(results[0], prices),
    )


def _mean_val(results: Sequence[Result]) -> float | None:
    """Return the mean score on val over the seeds; None where one of them has none."""
    scores = [r.facts.val_score for r in results]
    known = [s for s in scores if s is not None]
    return sum(known) / len(known) if len(known) == len(scores) else None


def _ranking(result: Result) -> Ranking | None:
    """Return the quality of the passages shown from the notes of a result, or None without gold passages."""
    names = [f.name for f in fields(Ranking)]
    return Ranking(**{n: result.notes[n] for n in names}) if all(n in result.notes for n in names) else None


def _field_scores(tables: Sequence[Rows], clusters: Mapping[str, str]) -> dict[str, Estimate]:
    """Return the score of each part of an answer over the seeds, with its interval."""
    by_field = {}
    for name in dict.fromkeys(n for t in tables for n in t.fields):
        by_seed = tuple(dict(sorted(t.scored_field(name).items())) for t in tables)
        scores = mean_scores(by_seed)
        if all(0 <= s <= 1 for s in scores.values()):
            by_field[name] = mean_score(scores, clusters, by_seed)
        else:
            # A number beside the score, such as a length, of which no interval is known.
            by_field[name] = Estimate(sum(scores.values()) / len(scores), math.nan, math.nan, len(scores))
    return by_field


def _score_by_hit(scores: Mapping[str, float], result: Result, *, hit: bool) -> Estimate | None:
    """Return the score over the examples that retrieval hit, or over those it missed; None without retrieval."""
    chosen = {i: s for i, s in scores.items() if result.hits.get(i) is hit}
    return mean_score(chosen, result.clusters) if result.hits else None


def _mean_usage(results: Sequence[Result]) -> Usage:
    """Return the tokens of the accuracy pass: the mean over seeds of the sum over examples."""
    tables = [Rows.of(r.rows) for r in results]

    def mean(column: str) -> int:
        return round(sum(sum(t.counts[column]) for t in tables) / len(tables))

    return Usage(
        prompt_tokens=mean("prompt_tokens"),
        cached_tokens=mean("cached_tokens"),
        completion_tokens=mean("completion_tokens"),
    )
