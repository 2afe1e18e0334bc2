"""Lay out the figures of the page; each arm has the colour of its method."""

import math
from collections.abc import Mapping, Sequence

from crossover.eval.analysis.arm import Arm
from crossover.eval.analysis.cost import monthly_usd, rounded
from crossover.eval.analysis.learning import Crossover
from crossover.eval.analysis.learning_words import size_words
from crossover.eval.analysis.saturation import REACH
from crossover.eval.analysis.stats import Estimate
from crossover.eval.analysis.sweep import VolumeVerdict
from crossover.eval.report.curves import Curve
from crossover.eval.report.plot import Axis, Dot, Figure, Line, even_ticks, interval, log_ticks, path
from crossover.eval.report.text import dollars

HUES = {"context": 5, "weights": 3}
"""Colours of each kind in page.css: cool ones in context, warm ones in weights."""

DASH = {"context": "solid", "weights": "dash"}

MOST_LINES = 4
"""Arms in the figure of costs, unless more are on the Pareto front or chosen at some volume."""


def hue_names(arms: Sequence[Arm]) -> dict[str, str]:
    """Return the class of each arm's colour by arm name, one for each method: `context-1`."""
    methods: dict[str, list[str]] = {"context": [], "weights": []}
    for arm in arms:
        if arm.method not in methods[arm.kind]:
            methods[arm.kind].append(arm.method)
    return {a.name: f"{a.kind}-{methods[a.kind].index(a.method) % HUES[a.kind] + 1}" for a in arms}


def pareto_figure(arms: Sequence[Arm], front: Sequence[str]) -> Figure | None:
    """Return score over dollars, or over p95 latency when no arm has a price; None when no arm has either.

    Numbers are ranks, filled dots are on the Pareto front.
    """
    priced = any(a.score.n and a.cost.per_1k_requests is not None for a in arms)
    points = [(n, a, v) for n, a in enumerate(arms, 1) if a.score.n and (v := _position(a, priced)) is not None]
    if not points:
        return None
    x, y = _value_axis([value for _, _, value in points], priced), _score_axis([a for _, a, _ in points])
    hues = hue_names(arms)
    dots = [
        Dot(
            x.at(value),
            y.at(a.score.mean),
            hues[a.name],
            "front" if a.name in front else "behind",
            (a.name, f"score {_range(a.score)}", f"{dollars(value)} per 1,000" if priced else f"p95 {value:,.0f} ms"),
            str(rank),
            height=interval(y, a.score.low, a.score.high),
        )
        for rank, a, value in points
    ]
    # The best lies on top.
    return Figure(x, y, tuple(reversed(dots)))


def _position(arm: Arm, priced: bool) -> float | None:
    if priced:
        return arm.cost.per_1k_requests
    return arm.latency.p95.mean if arm.latency.n else None


def _value_axis(values: Sequence[float], priced: bool) -> Axis:
    """Return an axis with room for the dots at both ends, logarithmic where the values differ by more than 8 times."""
    title = "dollars per 1,000 requests" if priced else "p95 latency, milliseconds"
    low, high = min(values), max(values)
    if low > 0 and high / low > 8:
        return Axis(title, low / 1.8, high * 1.8, _labelled(log_ticks(low / 1.8, high * 1.8), priced), log=True)
    room = 0.12 * (high - low) or 0.5 * high or 1.0
    ends = max(0.0, low - room) if low else -room, high + room
    return Axis(title, *ends, _labelled(even_ticks(max(0.0, ends[0]), ends[1], 5), priced))


def _labelled(values: Sequence[float], priced: bool) -> tuple[tuple[float, str], ...]:
    def text(value: float) -> str:
        return f"{value:,.10f}".rstrip("0").rstrip(".")

    return tuple((v, "$" * priced + text(v)) for v in values)


def _score_axis(arms: Sequence[Arm]) -> Axis:
    """Return an axis from 0, with room below for a dot at 0."""
    top = max([0.02, *(a.score.high for a in arms)])
    ticks = even_ticks(0, 1.06 * top, 5)
    return Axis("score", -0.05 * top, 1.06 * top, tuple((t, f"{t:g}") for t in ticks))


def _range(e: Estimate) -> str:
    return f"{e.mean:.3f} ({e.low:.3f} to {e.high:.3f})"


def learning_figure(curves: Sequence[Curve], hues: Mapping[str, str], crossovers: Sequence[Crossover] = ()) -> Figure:
    """Return score over train size: measured scores, fitted curves with their bands, and the crossovers.

    Prompting is solid, fine-tuning dashed. A ring marks a crossover, with the interval of its size.
    """
    sizes = sorted({n for c in curves for n in c.sizes})
    room = (sizes[-1] / sizes[0]) ** 0.06
    ticks = tuple((n, f"{n:,}") for n in sizes)
    x = Axis("training examples", sizes[0] / room, sizes[-1] * room, ticks, log=True)
    y = _score_axis([a for c in curves for a in c.arms])
    hue_of = {c.name: hues[c.arms[0].name] for c in curves}
    marked = [o for o in crossovers if not o.throughout and o.size.value is not None and o.size.value <= sizes[-1]]
    return Figure(
        x,
        y,
        dots=(
            *(dot for c in curves for dot in _measured(c, x, y, hue_of[c.name])),
            *(_ring(o, x, y, hue_of[o.weights]) for o in marked),
        ),
        lines=tuple(_curve(c, x, y, hue_of[c.name]) for c in curves),
        areas=tuple(_band(c, x, y, hue_of[c.name]) for c in curves if c.line or c.constant),
    )


def _curve(curve: Curve, x: Axis, y: Axis, hue: str) -> Line:
    """Return the fitted curve, or the measured scores joined where none is fitted."""
    measured = [(n, a.score.mean) for n, a in zip(curve.sizes, curve.arms, strict=True)]
    points = [(p.size, p.score) for p in curve.line] or measured
    return Line(curve.name, hue, DASH[curve.kind], path(x, y, points))


def _band(curve: Curve, x: Axis, y: Axis, hue: str) -> Line:
    """Return the 95 % interval around a fitted or a level curve as an area."""
    score = curve.arms[0].score
    bounds = [(p.size, p.low, p.high) for p in curve.line] or [(n, score.low, score.high) for n in curve.sizes]
    lower, upper = [(n, low) for n, low, _ in bounds], [(n, high) for n, _, high in bounds]
    return Line(curve.name, hue, "solid", path(x, y, [*lower, *reversed(upper)], closed=True))


def _measured(curve: Curve, x: Axis, y: Axis, hue: str) -> list[Dot]:
    """Return the measured scores with their intervals; a level line has none."""
    shape = "square" if curve.kind == "weights" else "round"
    return [
        Dot(
            x.at(n),
            y.at(a.score.mean),
            hue,
            shape,
            (curve.name, f"{n:,} examples", f"score {_range(a.score)}"),
            height=interval(y, a.score.low, a.score.high),
        )
        for n, a in zip(curve.sizes, curve.arms, strict=True)
        if not curve.constant
    ]


def _ring(o: Crossover, x: Axis, y: Axis, hue: str) -> Dot:
    """Return the ring of a crossover with the interval of its size; an end at `never` runs out of the figure."""
    low, high = (REACH * o.measured if end is None else end for end in (o.size.low, o.size.high))
    tip = (o.weights, f"overtakes {o.context}", f"at {size_words(o.size)} examples")
    return Dot(x.at(o.size.value or 0.0), y.at(o.score or 0.0), hue, "ring", tip, width=interval(x, low, high))


def cost_figure(
    arms: Sequence[Arm], front: Sequence[str], verdicts: Sequence[VolumeVerdict], *, spread: float
) -> Figure | None:
    """Return dollars per 1,000 requests over requests a month, fitting spread over `spread` months.

    None with fewer than two priced arms. Spots show the price at the volumes of the slider.
    """
    shown = _arms_to_draw(arms, front, verdicts)
    if len(shown) < 2:
        return None
    volumes = [v.volume for v in verdicts if v.volume is not None]
    decades = range(round(math.log10(volumes[0])), round(math.log10(volumes[-1])) + 1)
    ticks = tuple((10.0**d, _short(10**d)) for d in decades)
    x = Axis("requests a month", volumes[0], volumes[-1], ticks, log=True)
    steps = [volumes[0] * (volumes[-1] / volumes[0]) ** (n / 60) for n in range(61)]
    prices = {a.name: [_price(a, v, spread) for v in steps] for a in shown}
    positive = [p for line in prices.values() for p in line if p > 0] or [1.0]
    room = (max(positive) / min(positive)) ** 0.06 * 1.05
    low, high = min(positive) / room, max(positive) * room
    y = Axis("dollars per 1,000 requests", low, high, _labelled(log_ticks(low, high), priced=True), log=True)
    hues, lines, drawn = hue_names(arms), list[Line](), set[str]()
    for a in shown:
        # Arms of one method share a colour: the second and later ones are dotted.
        dash = "dot" if hues[a.name] in drawn else DASH[a.kind]
        drawn.add(hues[a.name])
        lines.append(Line(a.name, hues[a.name], dash, path(x, y, list(zip(steps, prices[a.name], strict=True)))))
    spots = [_spot(a, v, _price(a, v, spread), x, y, hues[a.name]) for a in shown for v in volumes]
    return Figure(x, y, tuple(spots), tuple(lines))


def _price(arm: Arm, volume: float, spread: float) -> float:
    """Return dollars per 1,000 requests at a volume of requests a month."""
    return 1000 * (monthly_usd(arm.cost, volume, months=spread) or 0.0) / volume


def _spot(arm: Arm, volume: float, usd: float, x: Axis, y: Axis, hue: str) -> Dot:
    month = f"{dollars(usd)} per 1,000, {dollars(usd * volume / 1000)} a month"
    return Dot(x.at(volume), y.at(usd), hue, "spot", (arm.name, f"{rounded(volume)} requests a month", month))


def _short(power: int) -> str:
    """Return a power of ten as 100, 1k, 10M or 1B."""
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if power >= size:
            return f"{power // size}{unit}"
    return str(power)


def _arms_to_draw(arms: Sequence[Arm], front: Sequence[str], verdicts: Sequence[VolumeVerdict]) -> list[Arm]:
    """Return the priced arms on the Pareto front, those chosen at some volume or of the break-even, and the best rest.

    Of the rest, the best of each method, until there are `MOST_LINES`.
    """
    priced = [a for a in arms if a.score.n and monthly_usd(a.cost, 1, months=1) is not None]
    names = {v.verdict.choose for v in verdicts} | set(front)
    names |= {name for v in verdicts if (b := v.verdict.break_even) for name in (b.start, b.run)}
    named = [a for a in priced if a.name in names]
    others = {a.method: a for a in reversed(priced) if a.method not in {b.method for b in named}}
    best = sorted(others.values(), key=priced.index)
    return (named + best)[: max(len(named), MOST_LINES)]
