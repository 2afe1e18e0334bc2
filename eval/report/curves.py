"""Arrange the arms of a task as learning curves: scores over the size of the train pool, with the fitted curves."""

from dataclasses import dataclass

from crossover.eval.analysis.arm import Arm
from crossover.eval.analysis.learning import Point, curve_names
from crossover.eval.experiment.spec import Kind
from crossover.eval.report.data import ReportData


@dataclass(frozen=True)
class Curve:
    """Scores of one method over the size of its train pool."""

    name: str
    kind: Kind
    sizes: tuple[int, ...]
    """Ascending; of a method that learns nothing from train, the two ends of the axis."""
    arms: tuple[Arm, ...]
    """The arm of each size."""
    constant: bool
    """Whether the method learns nothing from train, so that it has one score for every size."""
    line: tuple[Point, ...] = ()
    """Points of the fitted curve; empty with too few sizes for a fit."""


def learning_curves(data: ReportData, task: str) -> list[Curve]:
    """Return a curve for each method of a task; empty unless train sizes vary."""
    pool = len(data.finished.tasks[task].train)
    every = [a for a in data.comparison.arms if a.task == task]
    arms = [a for a in every if a.score.n and not a.dropped]
    learning = [a for a in arms if a.learns]
    sizes = sorted({_size(a, pool) for a in learning})
    if len(sizes) < 2:
        return []
    families: dict[tuple[str, ...], list[Arm]] = {}
    for arm in sorted(learning, key=lambda a: _size(a, pool)):
        families.setdefault(arm.curve, []).append(arm)
    names, fitted = curve_names(every), data.comparison.learning.get(task)
    lines = {c.name: c.line for c in fitted.curves} if fitted else {}
    curves = [
        Curve(name, family[0].kind, tuple(_size(a, pool) for a in family), tuple(family), False, lines.get(name, ()))
        for name, family in ((names[f], families[f]) for f in names if f in families)
    ]
    level = [a for a in arms if not a.learns]
    return curves + [Curve(names[a.curve], a.kind, (sizes[0], sizes[-1]), (a, a), True) for a in level]


def _size(arm: Arm, pool: int) -> int:
    return pool if arm.train_size is None else min(arm.train_size, pool)
