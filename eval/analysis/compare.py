"""Group results into arms, contrast them pairwise and reach a verdict per task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from crossover.eval.analysis.arm import Arm, Contrast, arms_of
from crossover.eval.analysis.cautions import cautions
from crossover.eval.analysis.cost import pareto_front
from crossover.eval.analysis.findings import classify_difference, holm
from crossover.eval.analysis.learning import Learning, learning_of
from crossover.eval.analysis.rules import MARGIN, eligible
from crossover.eval.analysis.seeds import difference_error, widen_difference
from crossover.eval.analysis.stats import Difference, paired_difference
from crossover.eval.analysis.verdict import Verdict, decide
from crossover.eval.experiment.spec import Needs, Prices
from crossover.eval.store.result import Result

__all__ = ["Arm", "Comparison", "Contrast", "Verdict", "compare"]

MOST_PAIRS = 30
"""With more pairs in a task, each arm is contrasted with the best alone."""


@dataclass(frozen=True)
class Partial:
    """How much of an experiment a comparison covers."""

    stopped: str
    """What ended the run."""
    cells: int
    """Cells that the comparison covers."""
    planned: int
    """Cells of the experiment."""

    def __str__(self) -> str:
        """Return the line that stands above the table."""
        return f"PARTIAL: stopped by {self.stopped}; {self.cells} of {self.planned} cells are scored"


@dataclass(frozen=True)
class Comparison:
    """Everything that the table, the JSON and the report show."""

    experiment: str
    split_sha256: Mapping[str, str]
    """Task to the hash of its splits."""
    arms: tuple[Arm, ...]
    """By task, in the order of the results."""
    contrasts: tuple[Contrast, ...]
    verdicts: tuple[Verdict, ...]
    """One a task."""
    fronts: Mapping[str, tuple[str, ...]]
    """Task to the arms that no other beats in score, price and p95 at once."""
    cautions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Task to the doubts that a reader must see: too few examples, clusters or seeds."""
    partial: Partial | None = None
    """None when the run was not stopped."""
    learning: Mapping[str, Learning] = field(default_factory=dict)
    """Task to its learning curves, where train sizes vary."""
    failures: tuple[str, ...] = ()
    """Cells that could not be fitted, and why."""


def compare(results: Sequence[Result], *, needs: Needs, prices: Prices, experiment: str) -> Comparison:
    """Compare every arm of every task; raise when the arms of a task were scored on different examples."""
    tasks: dict[str, list[Result]] = {}
    for result in results:
        tasks.setdefault(result.cell.task, []).append(result)
    arms = {task: arms_of(group, prices) for task, group in tasks.items()}
    contrasts = {task: contrasts_of(group, needs) for task, group in arms.items()}
    return Comparison(
        experiment,
        split_sha256={task: group[0].split_sha256 for task, group in tasks.items()},
        arms=tuple(arm for group in arms.values() for arm in group),
        contrasts=tuple(c for group in contrasts.values() for c in group),
        verdicts=tuple(decide(arms[task], contrasts[task], needs) for task in tasks),
        fronts={task: _front(group) for task, group in arms.items()},
        cautions={task: cautions(group, contrasts[task]) for task, group in arms.items()},
        learning={task: found for task, group in arms.items() if (found := learning_of(group)) is not None},
    )


def contrasts_of(arms: Sequence[Arm], needs: Needs) -> list[Contrast]:
    """Return the planned contrasts of one task, the later arm minus the earlier, with Holm's adjustment over them.

    Each is made on the examples that both arms scored.
    """
    scored = [a for a in arms if a.score.n]
    pairs = list(combinations(scored, 2))
    if len(pairs) > MOST_PAIRS:
        best = (eligible(scored, needs) or sorted(scored, key=lambda a: -a.score.mean))[0]
        pairs = [pair for pair in pairs if best in pair]
    pairs = [(a, b) for a, b in pairs if a.scores.keys() & b.scores.keys()]
    differences = [difference_of(later, earlier) for earlier, later in pairs]
    adjusted = holm([d.p for d in differences])
    return [
        Contrast(a.task, a.name, b.name, d, p, classify_difference(d, p, margin=MARGIN))
        for (b, a), d, p in zip(pairs, differences, adjusted, strict=True)
    ]


def difference_of(a: Arm, b: Arm) -> Difference:
    """Return a minus b on the examples that both scored; seeds are a second level, where there are several."""
    difference = paired_difference(*_shared(a, b), clusters=a.clusters)
    seeds = [dict(zip(arm.seeds, arm.by_seed, strict=True)) for arm in (a, b)]
    return widen_difference(difference, *difference_error(*seeds))


def _shared(a: Arm, b: Arm) -> tuple[Mapping[str, float], Mapping[str, float]]:
    """Return both arms' scores on the examples that both scored, in one order."""
    if a.scores.keys() == b.scores.keys():
        return a.scores, b.scores
    ids = [i for i in a.scores if i in b.scores]
    return {i: a.scores[i] for i in ids}, {i: b.scores[i] for i in ids}


def _front(arms: Sequence[Arm]) -> tuple[str, ...]:
    """Return the names of the Pareto front over score, price of serving and p95."""
    points = {a.name: (a.score.mean, a.cost.per_1k_requests, a.latency.p95.mean if a.latency.n else None) for a in arms}
    return pareto_front({name: point for name, point in points.items() if point[0] == point[0]})
