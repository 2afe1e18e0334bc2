"""How much data: a curve for each method over the train sizes, where more stops paying, where fine-tuning overtakes.

Intervals come from resampling test examples (clusters, where there are any), the same ones for every arm, and each
arm's seeds; every sample is fitted anew.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eval.comparison.arm import Arm, Kind
from eval.comparison.power_law import NEVER, REACH, PowerLaw, enough, fit_power_laws, flat, overtakes
from eval.comparison.seeds import difference_error, widen_difference
from eval.stats import paired_difference

SAMPLES = 1000
"""Resamples."""
GAIN = 0.01
"""What the next doubling must buy to be worth it."""


@dataclass(frozen=True)
class Size:
    """A number of training examples with its 95 % interval; None stands for never, within what was looked at."""

    value: float | None
    low: float | None
    high: float | None


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
    enough: Size
    """From here on the next doubling buys less than `GAIN`."""


@dataclass(frozen=True)
class Overtaking:
    """Where a method in weights passes a method in context for good."""

    weights: str
    context: str
    size: Size
    measured: int
    """The largest size that both were measured at; beyond it the curves are an extrapolation."""


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
    for arm in (a for a in arms if a.score.n and not _constant(a) and a.train_examples):
        key = (arm.method, arm.model, arm.knowledge, arm.retrieval)
        groups.setdefault(key, {})[arm.train_examples or 0] = arm
    groups = {k: dict(sorted(g.items())) for k, g in groups.items() if len(g) >= 3}
    if not groups:
        return None
    rng = np.random.default_rng(0)
    weights = _resamples(arms, samples, rng)
    fits = {k: _fit(g, weights, rng) for k, g in groups.items()}
    constants = [a for a in arms if _constant(a) and a.score.n]
    vary = [len({k[n] for k in groups}) > 1 for n in range(1, 4)]
    names = {k: ", ".join([k[0], *(k[n + 1] for n in range(3) if vary[n] and k[n + 1])]) for k in groups}
    kinds = {k: next(iter(g.values())).kind for k, g in groups.items()}
    rivals = {names[k]: (fits[k], list(groups[k])) for k in groups if kinds[k] == "context"}
    rivals |= {a.name: (flat(_means([a], weights, rng)[:, 0]), []) for a in constants if a.kind == "context"}
    overtakings = []
    for k in (k for k in groups if kinds[k] == "weights"):
        for name, (rival, sizes) in rivals.items():
            found = overtakes(fits[k], rival, [*groups[k], *sizes])
            overtakings.append(Overtaking(names[k], name, _size(found), max(groups[k])))
    curves = tuple(_curve(names[k], kinds[k], groups[k], fits[k]) for k in groups)
    hurt = tuple(w for k in groups if kinds[k] == "weights" for w in _hurt(names[k], groups[k], constants))
    return Learning(curves, tuple(overtakings), hurt)


def _constant(arm: Arm) -> bool:
    return arm.method.split()[0] == "zero_shot"


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


def _fit(group: Mapping[int, Arm], weights: Mapping[str, NDArray[np.float64]], rng: np.random.Generator) -> PowerLaw:
    return fit_power_laws(list(group), _means(list(group.values()), weights, rng))


def _curve(name: str, kind: Kind, group: Mapping[int, Arm], fit: PowerLaw) -> LearningCurve:
    low, high = np.quantile(fit.limit[1:], (0.025, 0.975))
    return LearningCurve(
        name, kind, tuple(group), tuple(a.score.mean for a in group.values()),
        (float(fit.limit[0]), float(low), float(high)), float(fit.drop[0]), float(fit.power[0]),
        _size(enough(fit, GAIN, min(group))),
    )  # fmt: skip


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
        said.append(
            f"{c.name}: tends to {value:.3f} [{low:.3f}, {high:.3f}]; doubling buys less than {100 * GAIN:g} "
            f"{'point' if GAIN == 0.01 else 'points'} from {_words(c.enough)} examples on"
        )
    for o in learning.overtakings:
        if o.size.value is None:
            said.append(
                f"{o.weights} does not overtake {o.context} up to {REACH:g} times the sizes measured "
                f"[{_number(o.size.low)}, {_number(o.size.high)}]"
            )
            continue
        beyond = ", beyond what was measured" if o.size.value > o.measured else ""
        said.append(f"{o.weights} overtakes {o.context} at {_words(o.size)} examples{beyond}")
    return said


def _words(size: Size) -> str:
    return f"{_number(size.value)} [{_number(size.low)}, {_number(size.high)}]"


def _number(value: float | None) -> str:
    return "never" if value is None else f"{value:,.0f}"
