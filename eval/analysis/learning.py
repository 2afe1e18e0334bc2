"""Fit learning curves: where more examples stop paying, and the crossover at which fine-tuning passes prompting.

Intervals come from resampling test examples (clusters, where there are any), the same ones for every arm, and the
seeds of each arm; the curves are fitted again to every resample.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crossover.eval.analysis.arm import Arm
from crossover.eval.analysis.contrast import difference_of
from crossover.eval.analysis.saturation import NEVER, REACH, Curves, crossover_size, fit_curves, flat, saturation_size
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
    limit: tuple[float, float, float]
    """Asymptote, the score of endless examples: value, low, high."""
    drop: float
    power: float
    offset: float
    enough: SizeEstimate
    """Size from which another doubling buys less than `GAIN`."""
    line: tuple[Point, ...]
    """Points of the curve from the smallest size measured to the largest."""


@dataclass(frozen=True)
class Crossover:
    """The train size from which a method in weights stays ahead of a method in context."""

    weights: str
    context: str
    size: SizeEstimate
    score: float | None
    """Score at which the curves cross; None when they do not."""
    smallest: int
    """Smallest size at which either was measured: the crossover of a method that is ahead throughout."""
    measured: int
    """Largest size at which the method in weights was measured; beyond it the curve is an extrapolation."""

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


def learning_of(arms: Sequence[Arm], *, samples: int = SAMPLES) -> Learning | None:
    """Return the curves and crossovers of one task, or None unless a method was measured at three sizes or more."""
    groups: dict[tuple[str, str, str, str], dict[int, Arm]] = {}
    for arm in (a for a in arms if a.score.n and not a.dropped and a.learns and a.train_examples):
        groups.setdefault(arm.family, {})[arm.train_examples or 0] = arm
    groups = {k: dict(sorted(g.items())) for k, g in groups.items() if len(g) >= 3}
    if not groups:
        return None
    # A fixed seed: the same results give the same bytes.
    rng = np.random.default_rng(0)
    weights = _resamples(arms, samples, rng)
    fits = {k: _fit(g, weights, rng) for k, g in groups.items()}
    constants = [a for a in arms if not a.learns and a.score.n and not a.dropped]
    names = curve_names(arms)
    kinds = {k: next(iter(g.values())).kind for k, g in groups.items()}
    rivals = {names[k]: (fits[k], list(groups[k])) for k in groups if kinds[k] == "context"}
    rivals |= {names[a.family]: (flat(_means([a], weights, rng)[:, 0]), []) for a in constants}
    crossovers = []
    for k in (k for k in groups if kinds[k] == "weights"):
        for name, (rival, sizes) in rivals.items():
            crossovers.append(_crossover(names[k], name, fits[k], rival, list(groups[k]), sizes))
    curves = tuple(_curve(names[k], kinds[k], groups[k], fits[k]) for k in groups)
    warnings = tuple(w for k in groups if kinds[k] == "weights" for w in _harm_warnings(names[k], groups[k], constants))
    return Learning(curves, tuple(crossovers), warnings)


def curve_names(arms: Sequence[Arm]) -> dict[tuple[str, str, str, str], str]:
    """Return a name for each family of arms of one task: the method, and every other setting that varies."""
    families = list(dict.fromkeys(a.family for a in arms))
    vary = [len({f[n] for f in families} - {""}) > 1 for n in (1, 2, 3)]
    return {f: ", ".join([f[0], *(x for x, varies in zip(f[1:], vary, strict=True) if varies and x)]) for f in families}


def _resamples(arms: Sequence[Arm], samples: int, rng: np.random.Generator) -> dict[str, NDArray[np.float64]]:
    """Return how often each resample draws each example; the first resample is the original data."""
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
    """Return the mean score of each resample at each size, shape (resamples, sizes), with seeds resampled as well."""
    columns = []
    for arm in group:
        by_seed = []
        for scores in arm.by_seed:
            drawn = np.stack([weights[i] for i in scores], axis=1)
            # A resample may draw none of the examples that this seed scored.
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
        _size(saturation_size(fit, GAIN, list(group))),
        _line(fit, min(group), max(group)),
    )


def _line(fit: Curves, smallest: int, largest: int) -> tuple[Point, ...]:
    """Return points of the fitted curve, evenly over the logarithm of the size."""
    sizes = np.geomspace(smallest, largest, POINTS)
    scores = fit.at(sizes)
    low, high = np.quantile(scores[1:], (0.025, 0.975), axis=0)
    table = np.stack([sizes, scores[0], low, high], axis=1).round(6)
    return tuple(Point(*map(float, row)) for row in table)


def _crossover(
    weights: str, context: str, fit: Curves, rival: Curves, sizes: Sequence[int], others: Sequence[int]
) -> Crossover:
    """Return where the curve of a method in weights, measured at `sizes`, passes the curve of a rival for good."""
    size = _size(crossover_size(fit, rival, [*sizes, *others]))
    score = None if size.value is None else float(fit.at([size.value])[0, 0])
    return Crossover(weights, context, size, score, min(*sizes, *others), max(sizes))


def _size(found: NDArray[np.float64]) -> SizeEstimate:
    """Return the size found in the original data, with its interval over the resamples."""
    low, high = np.quantile(found[1:], (0.025, 0.975), method="closest_observation")
    return SizeEstimate(*(None if v == NEVER else float(v) for v in (found[0], low, high)))


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


def learning_sentences(learning: Learning) -> list[str]:
    """Return one sentence for each fitted curve and each crossover."""
    sentences = []
    for c in learning.curves:
        value, low, high = c.limit
        pays = f"doubling buys less than a point from {size_words(c.enough)} examples on"
        if c.enough.value is None:
            pays = f"doubling buys a point up to {REACH:g} times the sizes measured {_interval(c.enough)}"
        sentences.append(f"{c.name}: tends to {value:.3f} [{low:.3f}, {high:.3f}]; {pays}")
    for x in learning.crossovers:
        if x.size.value is None:
            words = f"does not overtake {x.context} up to {REACH:g} times the sizes measured {_interval(x.size)}"
        elif x.throughout:
            words = f"is ahead of {x.context} from the smallest size on, {size_words(x.size)} examples"
        else:
            beyond = ", beyond what was measured" if x.beyond else ""
            words = f"overtakes {x.context} at {size_words(x.size)} examples{beyond}"
        sentences.append(f"{x.weights} {words}")
    return sentences


def size_words(size: SizeEstimate) -> str:
    """Return a size with its interval as text."""
    return f"{number_words(size.value)} {_interval(size)}"


def _interval(size: SizeEstimate) -> str:
    return f"[{number_words(size.low)}, {number_words(size.high)}]"


def number_words(value: float | None) -> str:
    """Return a number of examples as text, `never` for None."""
    return "never" if value is None else f"{value:,.0f}"
