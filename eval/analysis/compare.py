"""Compare the results of an experiment: arms, contrasts between them and a verdict for each task."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import NamedTuple

from crossover.eval.analysis.arm import Arm, arms_of, best_first
from crossover.eval.analysis.cautions import cautions
from crossover.eval.analysis.contrast import Contrast, adjust_pairs, classify_difference, difference_of
from crossover.eval.analysis.cost import pareto_front
from crossover.eval.analysis.exclusion import eligible, reason_out
from crossover.eval.analysis.families import representatives
from crossover.eval.analysis.learning import Learning, learning_of
from crossover.eval.analysis.rules import MARGIN
from crossover.eval.analysis.seeds import mean_score, mean_scores
from crossover.eval.analysis.stats import ALPHA
from crossover.eval.analysis.verdict import Verdict, decide
from crossover.eval.experiment.spec import Compare, Needs, Prices
from crossover.eval.store.result import Result

MOST_PAIRS = 30
"""In a task with more pairs only those with the best arm are resampled; the others get the t test and interval."""


@dataclass(frozen=True)
class Partial:
    """How much of an experiment a comparison covers."""

    stopped: str
    """What ended the run; empty for one that is reported on later."""
    cells: int
    """Scored cells."""
    planned: int
    """Cells of the experiment."""

    def __str__(self) -> str:
        """Return the line above the table."""
        why = f"stopped by {self.stopped}; " if self.stopped else ""
        return f"PARTIAL: {why}{self.cells} of {self.planned} cells are scored"


@dataclass(frozen=True)
class Comparison:
    """The arms, contrasts and verdicts of an experiment: everything that its table and its JSON show."""

    experiment: str
    split_sha256: Mapping[str, str]
    """Task to the hash of its splits."""
    arms: tuple[Arm, ...]
    """By task, in the order of the results."""
    compared: Mapping[str, tuple[str, ...]]
    """Task to the names of the arms that the verdict compares: of each method the variant that val chose."""
    contrasts: tuple[Contrast, ...]
    """Of all pairs of compared arms."""
    verdicts: tuple[Verdict, ...]
    """One for each task."""
    fronts: Mapping[str, tuple[str, ...]]
    """Task to its Pareto front: the arms that no other beats in score, price and p95 at once."""
    cautions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Task to the doubts that a reader must see, such as too few examples, clusters or seeds."""
    partial: Partial | None = None
    """How far a run came that was stopped; None for a whole one."""
    learning: Mapping[str, Learning] = field(default_factory=dict)
    """Task to its learning curves, for tasks whose train sizes vary."""
    unit: Compare = "methods"
    """Whether each method has one arm in the verdict, or each of its variants."""
    failures: tuple[str, ...] = ()
    """One sentence for each cell that could not be fitted and each arm with failed rows, with the reason."""

    def chosen(self, verdict: Verdict) -> Arm | None:
        """Return the arm that one of the verdicts chose, or None."""
        return next((a for a in self.arms if (a.task, a.name) == (verdict.task, verdict.choose)), None)


def compare(
    results: Sequence[Result], *, needs: Needs, prices: Prices, experiment: str, unit: Compare = "methods"
) -> Comparison:
    """Compare the methods of every task, each by the variant that val chose, or under `unit` "all" every variant.

    Raises:
        UserError: the arms of a task were scored on different examples.
    """
    tasks: dict[str, list[Result]] = {}
    for result in results:
        tasks.setdefault(result.cell.task, []).append(result)
    arms = {task: arms_of(group, prices, unit) for task, group in tasks.items()}
    compared = {task: representatives(group, needs) for task, group in arms.items()}
    contrasts = {task: contrasts_of(group, needs) for task, group in compared.items()}
    return Comparison(
        experiment,
        split_sha256={task: group[0].split_sha256 for task, group in tasks.items()},
        arms=tuple(arm for group in arms.values() for arm in group),
        compared={task: tuple(a.name for a in group) for task, group in compared.items()},
        contrasts=tuple(c for group in contrasts.values() for c in group),
        verdicts=tuple(decide_both(g, contrasts[task], needs, harsh_reading(g, needs)) for task, g in compared.items()),
        fronts={task: _front(group) for task, group in arms.items()},
        cautions={task: cautions(group, contrasts[task]) for task, group in arms.items()},
        learning={task: found for task, group in arms.items() if (found := learning_of(group)) is not None},
        unit=unit,
    )


class Verdicts:
    """Reach the verdict over the arms of one task again under other needs and prices.

    Where the same variants are compared as before, so are their differences: scores do not change.
    """

    def __init__(self, comparison: Comparison, task: str) -> None:
        """Take the contrasts that the comparison has made."""
        contrasts = [c for c in comparison.contrasts if c.task == task]
        self._contrasts = {comparison.compared[task]: contrasts}
        self._harsh: dict[tuple[str, ...], HarshReading | None] = {}

    def under(self, arms: Sequence[Arm], needs: Needs) -> Verdict:
        """Return the verdict over all arms of the task."""
        compared = representatives(arms, needs)
        names = tuple(a.name for a in compared)
        if names not in self._contrasts:
            self._contrasts[names] = contrasts_of(compared, needs)
        if names not in self._harsh:
            self._harsh[names] = harsh_reading(compared, needs)
        harsh = self._harsh[names]
        if harsh is not None:
            harsh = HarshReading(harsh.arms, adjusted(harsh.contrasts, harsh.arms, needs))
        return decide_both(compared, adjusted(self._contrasts[names], compared, needs), needs, harsh)


def with_failures_as_0(arm: Arm) -> Arm:
    """Return the arm with a score of 0 for every failed row, the harshest reading of what was not measured."""
    if not any(arm.failed_ids):
        return arm
    by_seed = tuple(
        dict(sorted({**scores, **dict.fromkeys(failed, 0.0)}.items()))
        for scores, failed in zip(arm.by_seed, arm.failed_ids, strict=True)
    )
    scores = mean_scores(by_seed)
    return replace(arm, scores=scores, by_seed=by_seed, score=mean_score(scores, arm.clusters, by_seed))


class HarshReading(NamedTuple):
    """The arms of one task with failed rows counted as 0, and their contrasts."""

    arms: Sequence[Arm]
    contrasts: Sequence[Contrast]


def harsh_reading(arms: Sequence[Arm], needs: Needs) -> HarshReading | None:
    """Return the arms with failed rows counted as 0, or None where no row failed."""
    if not any(a.failed for a in arms):
        return None
    zeroed = [with_failures_as_0(a) for a in arms]
    return HarshReading(zeroed, contrasts_of(zeroed, needs))


def decide_both(
    arms: Sequence[Arm], contrasts: Sequence[Contrast], needs: Needs, harsh: HarshReading | None
) -> Verdict:
    """Return the verdict with failed rows left out, of low confidence where counting them as 0 gives another choice."""
    verdict = decide(arms, contrasts, needs)
    other = decide(*harsh, needs).choose if harsh else verdict.choose
    if verdict.choose in (None, other):
        return verdict
    choice = f"{other} would be chosen" if other else "there would be no verdict"
    failed = sum(a.failed for a in arms)
    because = f"{verdict.because} But if the {failed} failed rows counted as 0, {choice}: run again to fill them in."
    return replace(verdict, confidence="low", because=because)


def contrasts_of(arms: Sequence[Arm], needs: Needs) -> list[Contrast]:
    """Return the contrasts of all pairs of arms of one task, the later arm minus the earlier, with Holm's p.

    All pairs are one family: the best arm was found on these examples, so that contrasts with it alone were chosen by
    the data and adjusted for too few.
    """
    scored = [a for a in arms if a.score.n]
    # Failed rows may leave two arms without a common example.
    pairs = [(a, b) for a, b in combinations(scored, 2) if a.scores.keys() & b.scores.keys()]
    best = next(iter(eligible(scored, needs) or best_first(scored)), None)
    few = len(pairs) <= MOST_PAIRS
    differences = [difference_of(later, earlier, resampled=few or best in (earlier, later)) for earlier, later in pairs]
    found = [
        Contrast(later.task, later.name, earlier.name, d, d.p, ALPHA, "inconclusive")
        for (earlier, later), d in zip(pairs, differences, strict=True)
    ]
    return adjusted(found, scored, needs)


def adjusted(contrasts: Sequence[Contrast], arms: Sequence[Arm], needs: Needs) -> list[Contrast]:
    """Return the contrasts of one task with p, level and finding adjusted for the choice that the needs leave."""
    dropped = [a.name for a in arms if a.dropped]
    out = [a.name for a in arms if not a.dropped and reason_out(a, needs)]
    names = [(c.a, c.b) for c in contrasts]
    levels = adjust_pairs(names, [c.difference for c in contrasts], dropped=dropped, out=out)
    return [
        replace(c, p_holm=p, level=level, finding=classify_difference(c.difference, p, margin=MARGIN))
        for c, (p, level) in zip(contrasts, levels, strict=True)
    ]


def _front(arms: Sequence[Arm]) -> tuple[str, ...]:
    """Return the names of the arms on the Pareto front over score, price of serving and p95."""
    points = {a.name: (a.score.mean, a.cost.per_1k_requests, a.latency.p95.mean if a.latency.n else None) for a in arms}
    return pareto_front({name: point for name, point in points.items() if not math.isnan(point[0])})
