"""Learning curves of both sides, and where they cross."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from crossover.eval.analysis.compare import Arm
from crossover.eval.analysis.learning import Point, curve_names
from crossover.eval.experiment.spec import Kind
from crossover.eval.report.evidence import Evidence


@dataclass(frozen=True)
class Curve:
    """Scores of one method over the size of its train pool."""

    name: str
    kind: Kind
    sizes: tuple[int, ...]
    """Ascending; of a method that learns nothing from train, the ends of the axis."""
    arms: tuple[Arm, ...]
    constant: bool
    """The method learns nothing from train: one score for every size."""
    line: tuple[Point, ...] = ()
    """The fitted curve; empty where too few sizes were measured for one."""


@dataclass(frozen=True)
class Crossing:
    """Where fine-tuning and the best in-context arm change places."""

    size: float
    """Interpolated on a straight line over the logarithm of the size."""
    below: int
    above: int
    """The measured sizes between which it lies."""
    ahead_after: Kind


def learning_curves(evidence: Evidence, task: str) -> list[Curve]:
    """Return a curve for each method of a task; empty unless train sizes vary."""
    pool = len(evidence.finished.tasks[task].train)
    arms = [a for a in evidence.comparison.arms if a.task == task and a.score.n]
    learning = [a for a in arms if a.learns]
    sizes = sorted({_size(a, pool) for a in learning})
    if len(sizes) < 2:
        return []
    families: dict[tuple[str, ...], list[Arm]] = {}
    for arm in sorted(learning, key=lambda a: _size(a, pool)):
        families.setdefault(arm.family, []).append(arm)
    names, found = curve_names(arms), evidence.comparison.learning.get(task)
    lines = {c.name: c.line for c in found.curves} if found else {}
    curves = [
        Curve(name, family[0].kind, tuple(_size(a, pool) for a in family), tuple(family), False, lines.get(name, ()))
        for name, family in ((names[f], families[f]) for f in names if f in families)
    ]
    flat = [a for a in arms if not a.learns]
    return curves + [Curve(names[a.family], a.kind, (sizes[0], sizes[-1]), (a, a), True) for a in flat]


def _size(arm: Arm, pool: int) -> int:
    return pool if arm.train_size is None else min(arm.train_size, pool)


def best_by_size(curves: Sequence[Curve], kind: Kind) -> dict[int, float]:
    """Return the best score of a side at each size that it was measured at, for the sizes of the other side as well."""
    moving = [c for c in curves if c.kind == kind and not c.constant]
    flat = [c.arms[0].score.mean for c in curves if c.kind == kind and c.constant]
    every = {n for c in curves if not c.constant for n in c.sizes}
    sizes = {n for c in moving for n in c.sizes} if moving else every
    best = {}
    for n in sorted(sizes):
        here = [a.score.mean for c in moving for s, a in zip(c.sizes, c.arms, strict=True) if s == n]
        if here or flat:
            best[n] = max(here + flat)
    return best


def crossing(curves: Sequence[Curve]) -> Crossing | None:
    """Return the largest size at which the sides change places; None when they never do within what was measured."""
    found = None
    for (a, gap_a), (b, gap_b) in pairwise((n, gap) for n, gap in _gaps(curves) if gap):
        if gap_a * gap_b < 0:
            share = gap_a / (gap_a - gap_b)
            size = math.exp(math.log(a) + share * (math.log(b) - math.log(a)))
            found = Crossing(size, a, b, "weights" if gap_b > 0 else "context")
    return found


def crossing_words(curves: Sequence[Curve]) -> str:
    """Return in one sentence which side is ahead at which size; empty when one side is missing."""
    gaps = _gaps(curves)
    if len(gaps) < 2 or not any(gap for _, gap in gaps):
        return ""
    if (cross := crossing(curves)) is None:
        ahead = "fine-tuning" if max(gap for _, gap in gaps) > 0 else "prompting"
        level = "ahead" if all(gap for _, gap in gaps) else "ahead or level"
        return (
            f"No crossing: {ahead} is {level} at every size measured, from {gaps[0][0]:,} to {gaps[-1][0]:,} examples."
        )
    names = {"weights": "fine-tuning passes prompting", "context": "prompting passes fine-tuning"}
    return (
        f"At about {cross.size:,.0f} training examples {names[cross.ahead_after]}: between the measured "
        f"{cross.below:,} and {cross.above:,}, on a straight line over the logarithm of the size."
    )


def _gaps(curves: Sequence[Curve]) -> list[tuple[int, float]]:
    """Return fine-tuning minus prompting at each size at which both were measured."""
    context, weights = best_by_size(curves, "context"), best_by_size(curves, "weights")
    return [(n, weights[n] - context[n]) for n in sorted(context.keys() & weights.keys())]
