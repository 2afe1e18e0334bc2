"""How much data: a curve for each method over the train sizes, where more stops paying, where fine-tuning overtakes.

Intervals come from resampling test examples (clusters, where there are any), the same ones for every arm, and each
arm's seeds; every sample is fitted anew.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crossover.eval.analysis.arm import Arm
from crossover.eval.analysis.saturation import NEVER, REACH, Curves, enough, fit_curves, flat, overtakes
from crossover.eval.analysis.seeds import difference_error, widen_difference
from crossover.eval.analysis.stats import paired_difference
from crossover.eval.experiment.spec import Kind

SAMPLES = 1000
"""Resamples."""
GAIN = 0.01
"""What the next doubling must buy to be worth it: one point."""
POINTS = 25
"""Points of a fitted curve."""


@dataclass(frozen=True)
class Size:
    """A number of training examples with its 95 % interval; None stands for never, within what was looked at."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Point:
    """A point of a fitted curve, with the 95 % interval of its score."""

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
    limit: tuple[float, float, float]
    """Score that no number of examples passes: value, low, high."""
    drop: float
    power: float
    offset: float
    enough: Size
    """From here on the next doubling buys less than `GAIN`."""
    line: tuple[Point, ...]
    """The fitted curve with its interval, from the smallest size measured to the largest."""


@dataclass(frozen=True)
class Overtaking:
    """Where a method in weights passes a method in context for good."""

    weights: str
    context: str
    size: Size
    score: float | None
    """Where the curves meet; None where they do not."""
    smallest: int
    """The smallest size that either was measured at: a method that is ahead throughout overtakes there."""
    measured: int
    """The largest size that the one in weights was measured at; beyond it its curve is an extrapolation."""

    @property
    def throughout(self) -> bool:
        """Return whether fine-tuning is ahead at every size."""
        return self.size.value == self.smallest

    @property
    def beyond(self) -> bool:
        """Return whether the size is larger than what was measured."""
        return self.size.value is not None and self.size.value > self.measured


@dataclass(frozen=True)
class Learning:
    """What one task's curves say."""

    curves: tuple[LearningCurve, ...]
    overtakings: tuple[Overtaking, ...]
    warnings: tuple[str, ...]
    """Small sets that made a model worse."""


def learning_of(arms: Sequence[Arm], *, samples: int = SAMPLES) -> Learning | None:
    """Return the curves of one task; None unless a method was measured at three sizes or more."""
    groups: dict[tuple[str, str, str, str], dict[int, Arm]] = {}
    for arm in (a for a in arms if a.score.n and a.learns and a.train_examples):
        groups.setdefault(arm.family, {})[arm.train_examples or 0] = arm
    groups = {k: dict(sorted(g.items())) for k, g in groups.items() if len(g) >= 3}
    if not groups:
        return None
    rng = np.random.default_rng(0)
    weights = _resamples(arms, samples, rng)
    fits = {k: _fit(g, weights, rng) for k, g in groups.items()}
    constants = [a for a in arms if not a.learns and a.score.n]
    names = curve_names(arms)
    kinds = {k: next(iter(g.values())).kind for k, g in groups.items()}
    rivals = {names[k]: (fits[k], list(groups[k])) for k in groups if kinds[k] == "context"}
    rivals |= {names[a.family]: (flat(_means([a], weights, rng)[:, 0]), []) for a in constants}
    overtakings = []
    for k in (k for k in groups if kinds[k] == "weights"):
        for name, (rival, sizes) in rivals.items():
            overtakings.append(_overtaking(names[k], name, fits[k], rival, list(groups[k]), sizes))
    curves = tuple(_curve(names[k], kinds[k], groups[k], fits[k]) for k in groups)
    hurt = tuple(w for k in groups if kinds[k] == "weights" for w in _hurt(names[k], groups[k], constants))
    return Learning(curves, tuple(overtakings), hurt)


def curve_names(arms: Sequence[Arm]) -> dict[tuple[str, str, str, str], str]:
    """Return a name for each family of one task's arms: the method, and what else varies among them."""
    families = list(dict.fromkeys(a.family for a in arms))
    vary = [len({f[n] for f in families} - {""}) > 1 for n in (1, 2, 3)]
    return {f: ", ".join([f[0], *(x for x, varies in zip(f[1:], vary, strict=True) if varies and x)]) for f in families}


def _resamples(arms: Sequence[Arm], samples: int, rng: np.random.Generator) -> dict[str, NDArray[np.float64]]:
    """Return how often each example is drawn in each resample, the first of which is the data as it is."""
    ids = sorted(set().union(*(a.scores for a in arms)))
    clusters = arms[0].clusters
    units = sorted({clusters.get(i, i) for i in ids})
    drawn = rng.multinomial(len(units), np.full(len(units), 1 / len(units)), size=samples).astype(float)
    drawn = np.vstack([np.ones(len(units)), drawn])
    place = {u: n for n, u in enumerate(units)}
    return {i: drawn[:, place[clusters.get(i, i)]] for i in ids}


def _means(
    group: Sequence[Arm], weights: Mapping[str, NDArray[np.float64]], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return the mean score of each resample at each size, shape (resamples, sizes); seeds are drawn anew too."""
    columns = []
    for arm in group:
        by_seed = []
        for scores in arm.by_seed:
            drawn = np.stack([weights[i] for i in scores], axis=1)
            counted = np.maximum(drawn.sum(1), 1e-9)
            by_seed.append(drawn @ np.array(list(scores.values())) / counted)
        table = np.stack(by_seed, axis=1)
        chosen = rng.integers(0, table.shape[1], table.shape)
        chosen[0] = np.arange(table.shape[1])
        columns.append(np.take_along_axis(table, chosen, 1).mean(1))
    return np.stack(columns, axis=1)


def _fit(group: Mapping[int, Arm], weights: Mapping[str, NDArray[np.float64]], rng: np.random.Generator) -> Curves:
    return fit_curves(list(group), _means(list(group.values()), weights, rng))


def _curve(name: str, kind: Kind, group: Mapping[int, Arm], fit: Curves) -> LearningCurve:
    low, high = np.quantile(fit.limit[1:], (0.025, 0.975))
    return LearningCurve(
        name,
        kind,
        tuple(group),
        tuple(a.score.mean for a in group.values()),
        (float(fit.limit[0]), float(low), float(high)),
        float(fit.drop[0]),
        float(fit.power[0]),
        float(fit.offset[0]),
        _enough(fit, group),
        _line(fit, min(group), max(group)),
    )


def _enough(fit: Curves, group: Mapping[int, Arm]) -> Size:
    """Return where more examples stop paying; what lies too far beyond the sizes measured is never."""
    return _size(enough(fit, GAIN, list(group)))


def _line(fit: Curves, smallest: int, largest: int) -> tuple[Point, ...]:
    """Return points of the fitted curve, evenly over the logarithm of the size."""
    sizes = np.geomspace(smallest, largest, POINTS)
    scores = fit.at(sizes)
    low, high = np.quantile(scores[1:], (0.025, 0.975), axis=0)
    table = np.stack([sizes, scores[0], low, high], axis=1).round(6)
    return tuple(Point(*map(float, row)) for row in table)


def _overtaking(
    weights: str, context: str, fit: Curves, rival: Curves, sizes: Sequence[int], others: Sequence[int]
) -> Overtaking:
    """Return where the curve of a method in weights, measured at `sizes`, passes another's for good."""
    size = _size(overtakes(fit, rival, [*sizes, *others]))
    score = None if size.value is None else float(fit.at([size.value])[0, 0])
    return Overtaking(weights, context, size, score, min(*sizes, *others), max(sizes))


def _size(found: NDArray[np.float64]) -> Size:
    """Return the size of the data as it is, with the interval over the resamples; some of them may say never."""
    low, high = np.quantile(found[1:], (0.025, 0.975), method="closest_observation")
    return Size(*(None if v == NEVER else float(v) for v in (found[0], low, high)))


def _hurt(name: str, group: Mapping[int, Arm], constants: Sequence[Arm]) -> list[str]:
    """Return a warning for each size whose training made the model significantly worse (arXiv 2409.03454 saw that)."""
    first = next(iter(group.values()))
    before = [a for a in constants if (a.model, a.knowledge) == (first.model, first.knowledge)]
    told = []
    for size, arm in group.items():
        for untrained in before[:1]:
            ids = [i for i in arm.scores if i in untrained.scores]
            d = paired_difference(
                {i: arm.scores[i] for i in ids}, {i: untrained.scores[i] for i in ids}, clusters=arm.clusters
            )
            seeds = [dict(zip(x.seeds, x.by_seed, strict=True)) for x in (arm, untrained)]
            d = widen_difference(d, *difference_error(*seeds))
            if d.high < 0:
                told.append(
                    f"{size:,} training examples make {name} worse than {untrained.name}: {d.delta:+.3f} "
                    f"[{d.low:+.3f}, {d.high:+.3f}]; train on more or not at all"
                )
    return told


def learning_sentences(learning: Learning) -> list[str]:
    """Return what the curves say, one sentence each."""
    said = []
    for c in learning.curves:
        value, low, high = c.limit
        pays = f"doubling buys less than a point from {size_words(c.enough)} examples on"
        if c.enough.value is None:
            pays = f"doubling buys a point up to {REACH:g} times the sizes measured {_interval(c.enough)}"
        said.append(f"{c.name}: tends to {value:.3f} [{low:.3f}, {high:.3f}]; {pays}")
    for o in learning.overtakings:
        if o.size.value is None:
            said.append(
                f"{o.weights} does not overtake {o.context} up to {REACH:g} times the sizes measured "
                f"{_interval(o.size)}"
            )
        elif o.throughout:
            said.append(f"{o.weights} is ahead of {o.context} from the smallest size on, {size_words(o.size)} examples")
        else:
            beyond = ", beyond what was measured" if o.beyond else ""
            said.append(f"{o.weights} overtakes {o.context} at {size_words(o.size)} examples{beyond}")
    return said


def size_words(size: Size) -> str:
    """Return a size with its interval."""
    return f"{number_words(size.value)} {_interval(size)}"


def _interval(size: Size) -> str:
    return f"[{number_words(size.low)}, {number_words(size.high)}]"


def number_words(value: float | None) -> str:
    """Return a number of examples."""
    return "never" if value is None else f"{value:,.0f}"
