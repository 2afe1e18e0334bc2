"""Fit learning curves: where more examples stop paying, and the crossover at which fine-tuning passes prompting.

Intervals come from resampling test examples (clusters, where there are any), the same ones for every arm, and the
seeds of each arm; the curves are fitted again to every resample.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from crossover.eval.analysis.arm import Arm
from crossover.eval.analysis.contrast import difference_of
from crossover.eval.analysis.saturation import (
    NEVER,
    Array,
    Curves,
    crossover_size,
    fit_curves,
    flat,
    saturation_size,
)
from crossover.eval.experiment.spec import Kind

SAMPLES = 1000
"""Resamples that the intervals are taken from."""
GAIN = 0.01
"""Least score that another doubling of the examples must buy: one point."""
POINTS = 25
"""Points at which a fitted curve is drawn."""


@dataclass(frozen=True)
class SizeEstimate:
    """A number of training examples with its 95 % interval; None is never, up to `REACH` times the sizes measured."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Point:
    """One point of a fitted curve, with the 95 % interval of its score."""

    size: float
    score: float
    low: float
    high: float


@dataclass(frozen=True)
class LearningCurve:
    """The fitted curve of one method."""

    name: str
    kind: Kind
    sizes: tuple[int, ...]
    scores: tuple[float, ...]
    limit: tuple[float, float, float] | None
    """Asymptote, the score of endless examples: value, low, high; None where the law does not fit."""
    drop: float
    power: float
    offset: float
    enough: SizeEstimate | None
    """Size from which another doubling buys less than `GAIN`; None where the law does not fit."""
    line: tuple[Point, ...]
    """Points of the curve from the smallest size measured to the largest; empty where the law does not fit."""
    seeds: int
    """Fewest seeds of any size; with one the intervals leave out what another seed would change."""


@dataclass(frozen=True)
class Crossover:
    """The train size from which a method in weights stays ahead of a method in context.

    Within the sizes measured it is the first of them at which the measured scores say so; beyond, the fitted laws are
    continued from the last measured difference.
    """

    weights: str
    context: str
    size: SizeEstimate
    after: int | None
    """Largest size measured at which the method in weights was not ahead; None when it was ahead throughout."""
    score: float | None
    """Score of the method in weights at that size; None when the curves do not cross."""
    smallest: int
    """Smallest size at which either was measured: the crossover of a method that is ahead throughout."""
    measured: int
    """Largest size at which both were measured; beyond it the curve is an extrapolation."""
    foretold: bool
    """Whether both laws fit, so that sizes beyond the measured ones were searched."""

    @property
    def throughout(self) -> bool:
        """Return whether the method in weights is ahead at every size."""
        return self.size.value == self.smallest

    @property
    def beyond(self) -> bool:
        """Return whether the crossover is an extrapolation beyond the sizes measured."""
        return self.size.value is not None and self.size.value > self.measured


@dataclass(frozen=True)
class Learning:
    """The learning curves of one task, and where they cross."""

    curves: tuple[LearningCurve, ...]
    crossovers: tuple[Crossover, ...]
    warnings: tuple[str, ...]
    """One sentence for each train size that made a model worse."""


class _Family(NamedTuple):
    """The scores of one method over train sizes, and the law fitted to them; row 0 is the original data."""

    sizes: tuple[int, ...]
    """Empty for a method that learns nothing from train."""
    means: Array
    """Mean scores, shape (samples, sizes), or (samples, 1) without sizes."""
    law: Curves
    fits: bool
    """Whether the residuals of the law are within their standard errors, in the mean over the sizes."""


def learning_of(arms: Sequence[Arm], *, samples: int = SAMPLES) -> Learning | None:
    """Return the curves and crossovers of one task, or None unless a method was measured at three sizes or more."""
    groups: dict[tuple[str, str, str, str], dict[int, Arm]] = {}
    for arm in (a for a in arms if a.score.n and not a.dropped and a.learns and a.train_examples):
        groups.setdefault(arm.curve, {})[arm.train_examples or 0] = arm
    groups = {k: dict(sorted(g.items())) for k, g in groups.items() if len(g) >= 3}
    if not groups:
        return None
    # A fixed seed: the same results give the same bytes.
    rng = np.random.default_rng(0)
    resamples = _resamples(arms, samples, rng)
    families = {k: _family(g, resamples, rng) for k, g in groups.items()}
    constants = [a for a in arms if not a.learns and a.score.n and not a.dropped]
    names = curve_names(arms)
    kinds = {k: next(iter(g.values())).kind for k, g in groups.items()}
    rivals = {names[k]: families[k] for k in groups if kinds[k] == "context"}
    for a in constants:
        means = _means([a], resamples, rng)
        rivals[names[a.curve]] = _Family((), means, flat(means[:, 0]), fits=True)
    crossovers = [
        found
        for k in groups
        if kinds[k] == "weights"
        for name, rival in rivals.items()
        if (found := _crossover(names[k], name, families[k], rival)) is not None
    ]
    curves = tuple(_curve(names[k], kinds[k], groups[k], families[k]) for k in groups)
    warnings = tuple(w for k in groups if kinds[k] == "weights" for w in _harm_warnings(names[k], groups[k], constants))
    return Learning(curves, tuple(crossovers), warnings)


def curve_names(arms: Sequence[Arm]) -> dict[tuple[str, str, str, str], str]:
    """Return a name for each family of arms of one task: the method, and every other setting that varies."""
    families = list(dict.fromkeys(a.curve for a in arms))
    vary = [len({f[n] for f in families} - {""}) > 1 for n in (1, 2, 3)]
    return {f: ", ".join([f[0], *(x for x, varies in zip(f[1:], vary, strict=True) if varies and x)]) for f in families}


class _Resamples(NamedTuple):
    """How often each resample draws each unit: a cluster, or an example outside of clusters."""

    drawn: Array
    """Shape (1 + samples, units); the first row is the original data."""
    place: Mapping[str, int]
    """Example id to the column of its unit."""


def _resamples(arms: Sequence[Arm], samples: int, rng: np.random.Generator) -> _Resamples:
    """Draw the resamples that all arms of a task share."""
    ids = sorted(set().union(*(a.scores for a in arms)))
    clusters = arms[0].clusters
    units = {u: n for n, u in enumerate(sorted({clusters.get(i, i) for i in ids}))}
    drawn = np.ones((1 + samples, len(units)))
    drawn[1:] = rng.multinomial(len(units), np.full(len(units), 1 / len(units)), size=samples)
    return _Resamples(drawn, {i: units[clusters.get(i, i)] for i in ids})


def _means(group: Sequence[Arm], resamples: _Resamples, rng: np.random.Generator) -> Array:
    """Return the mean score of each resample at each size, shape (resamples, sizes), with seeds resampled as well."""
    drawn, place = resamples
    sums = list[Array]()
    for scores in (scores for arm in group for scores in arm.by_seed):
        at = np.array([place[i] for i in scores], dtype=int)
        # A resample draws whole units: all it needs of one is the sum of its scores and their number.
        for weights in (list(scores.values()), np.ones(len(at))):
            sums.append(np.bincount(at, weights, drawn.shape[1]).astype(np.float64))
    totals = drawn @ np.stack(sums, axis=1)
    # A resample may draw none of the examples that a seed scored.
    by_seed = totals[:, ::2] / np.maximum(totals[:, 1::2], 1e-9)
    columns, start = [], 0
    for arm in group:
        table = by_seed[:, start : start + len(arm.by_seed)]
        start += len(arm.by_seed)
        chosen = rng.integers(0, table.shape[1], table.shape)
        chosen[0] = np.arange(table.shape[1])
        columns.append(np.take_along_axis(table, chosen, 1).mean(1))
    return np.stack(columns, axis=1)


def _family(group: Mapping[int, Arm], resamples: _Resamples, rng: np.random.Generator) -> _Family:
    means = _means(list(group.values()), resamples, rng)
    law = fit_curves(list(group), means)
    residuals = (law.at(list(group))[0] - means[0]) / np.maximum(means[1:].std(0), 1e-9)
    return _Family(tuple(group), means, law, fits=bool(np.mean(residuals**2) <= 1))


def _curve(name: str, kind: Kind, group: Mapping[int, Arm], family: _Family) -> LearningCurve:
    law = family.law
    low, high = np.quantile(law.limit[1:], (0.025, 0.975))
    return LearningCurve(
        name,
        kind,
        tuple(group),
        tuple(a.score.mean for a in group.values()),
        (float(law.limit[0]), float(low), float(high)) if family.fits else None,
        float(law.drop[0]),
        float(law.power[0]),
        float(law.offset[0]),
        _size(*[saturation_size(law, GAIN, list(group))] * 2) if family.fits else None,
        _line(law, min(group), max(group)) if family.fits else (),
        min(len(a.seeds) for a in group.values()),
    )


def _line(fit: Curves, smallest: int, largest: int) -> tuple[Point, ...]:
    """Return points of the fitted curve, evenly over the logarithm of the size."""
    sizes = np.geomspace(smallest, largest, POINTS)
    scores = fit.at(sizes)
    low, high = np.quantile(scores[1:], (0.025, 0.975), axis=0)
    table = np.stack([sizes, scores[0], low, high], axis=1).round(6)
    return tuple(Point(*map(float, row)) for row in table)


def _crossover(weights: str, context: str, family: _Family, rival: _Family) -> Crossover | None:
    """Return where a method in weights passes a rival for good, or None where no size was measured of both."""
    shared = [n for n in family.sizes if not rival.sizes or n in rival.sizes]
    if not shared:
        return None
    own = family.means[:, [family.sizes.index(n) for n in shared]]
    gaps = own - (rival.means[:, [rival.sizes.index(n) for n in shared]] if rival.sizes else rival.means)
    behind = gaps <= 1e-9
    # The last place at which it is not ahead, -1 where it is ahead throughout.
    last = np.where(behind.any(1), len(shared) - 1 - behind[:, ::-1].argmax(1), -1)
    low = np.array([shared[0], *shared], dtype=float)[last + 1]
    high = np.array([*shared, NEVER], dtype=float)[last + 1]
    beyond, foretold = last == len(shared) - 1, family.fits and rival.fits
    if foretold:
        reach = [shared[-1], max(*family.sizes, *rival.sizes, shared[-1])]
        high[beyond] = crossover_size(family.law, rival.law, reach, gap=gaps[:, -1])[beyond]
        low[beyond] = high[beyond]
    size, after = _size(low, high), None if last[0] < 0 else shared[last[0]]
    score = None if size.value is None else float(family.law.at([size.value])[0, 0])
    if not beyond[0]:
        score = float(own[0, last[0] + 1])
    return Crossover(weights, context, size, after, score, shared[0], shared[-1], foretold)


def _size(lower: Array, upper: Array) -> SizeEstimate:
    """Return the upper size of the original data, with the interval from the lower to the upper over the resamples.

    The interval holds both sizes of the original data.
    """
    low = min(lower[0], np.quantile(lower[1:], 0.025, method="closest_observation"))
    high = max(upper[0], np.quantile(upper[1:], 0.975, method="closest_observation"))
    return SizeEstimate(*(None if v == NEVER else float(v) for v in (upper[0], low, high)))


def _harm_warnings(name: str, group: Mapping[int, Arm], constants: Sequence[Arm]) -> list[str]:
    """Return a warning for each train size that made the model significantly worse (seen in arXiv 2409.03454)."""
    first = next(iter(group.values()))
    before = [a for a in constants if (a.model, a.knowledge) == (first.model, first.knowledge)]
    warnings = []
    for untrained in before[:1]:
        for size, arm in group.items():
            if (d := difference_of(arm, untrained)).high < 0:
                warnings.append(
                    f"{size:,} training examples make {name} worse than {untrained.name}: {d.delta:+.3f} "
                    f"[{d.low:+.3f}, {d.high:+.3f}]; train on more or not at all"
                )
    return warnings
