"""Draw the figures of the page with Plotly; colours are CSS variables (`var(--context-1)`) that follow its theme."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import plotly.graph_objects as go

from crossover.eval.analysis.arm import Arm
from crossover.eval.analysis.cost import monthly_usd, rounded
from crossover.eval.analysis.learning import Crossover, Point
from crossover.eval.analysis.learning_words import size_words
from crossover.eval.analysis.saturation import REACH
from crossover.eval.analysis.stats import Estimate
from crossover.eval.analysis.sweep import VolumeVerdict
from crossover.eval.report.curves import Curve
from crossover.eval.report.text import dollars, visible

HUES = {"context": 5, "weights": 3}
"""Colours of each kind in page.css: cool ones in context, warm ones in weights."""

DASH = {"context": "solid", "weights": "dash"}

MOST_LINES = 4
"""Arms in the break-even figure, unless more are chosen at some volume."""


def hue_names(arms: Sequence[Arm]) -> dict[str, str]:
    """Return the CSS variable of each arm's colour by arm name, one for each method: `context-1`."""
    methods: dict[str, list[str]] = {"context": [], "weights": []}
    for arm in arms:
        if arm.method not in methods[arm.kind]:
            methods[arm.kind].append(arm.method)
    return {a.name: f"{a.kind}-{methods[a.kind].index(a.method) % HUES[a.kind] + 1}" for a in arms}


def colour(name: str) -> str:
    """Return a CSS variable as a colour; page.js turns it into the colour of the theme."""
    return f"var(--{name})"


def label(text: object) -> str:
    """Return text escaped for Plotly, which reads HTML tags in labels."""
    return html.escape(visible(text), quote=False)


def pareto_figure(arms: Sequence[Arm], front: Sequence[str], *, by: Literal["usd", "p95"]) -> go.Figure | None:
    """Return score against dollars or p95, or None when no arm has that value.

    Numbers are ranks, filled dots are on the Pareto front.
    """
    points = [(n, a, x) for n, a in enumerate(arms, 1) if a.score.n and (x := _position(a, by)) is not None]
    if not points:
        return None
    shown, xs = [a for _, a, _ in points], [x for _, _, x in points]
    hues = [colour(hue_names(arms)[a.name]) for a in shown]
    fills = [hue if a.name in front else colour("paper") for a, hue in zip(shown, hues, strict=True)]
    inks = [colour("paper") if a.name in front else hue for a, hue in zip(shown, hues, strict=True)]
    trace = go.Scatter(
        mode="markers+text",
        cliponaxis=False,
        x=xs,
        y=[a.score.mean for a in shown],
        error_y=_error_bars([a.score for a in shown], "line"),
        text=[str(rank) for rank, _, _ in points],
        textfont_color=inks,
        marker={"size": 22, "color": fills, "line": {"width": 2, "color": hues}, "opacity": 1},
        hovertext=[f"{label(a.name)}<br>score {_range(a.score)}<br>{_value_text(x, by)}" for _, a, x in points],
        hoverinfo="text",
        showlegend=False,
    )
    title = "dollars per 1,000 requests" if by == "usd" else "p95 latency, milliseconds"
    return _figure([trace], xaxis={"title_text": title, **_value_axis(xs, by)}, yaxis=_score_axis(shown))


def _figure(traces: Sequence[go.Scatter], **layout: Any) -> go.Figure:
    """Return a figure without Plotly's own template, in place of which page.js sets the theme."""
    return go.Figure(traces, {"template": "none", **layout})


def _position(arm: Arm, by: str) -> float | None:
    if by == "usd":
        return arm.cost.per_1k_requests
    return arm.latency.p95.mean if arm.latency.n else None


def _value_text(x: float, by: str) -> str:
    return f"{dollars(x)} per 1,000" if by == "usd" else f"p95 {x:,.0f} ms"


def _value_axis(xs: Sequence[float], by: str) -> dict[str, Any]:
    """Return an axis with room for the dots at both ends, logarithmic where the values differ by more than 8 times."""
    low, high = min(xs), max(xs)
    if low > 0 and high / low > 8:
        ticks = _dollar_ticks(xs) if by == "usd" else {}
        return {"type": "log", "range": [math.log10(low) - 0.25, math.log10(high) + 0.25], "dtick": 1, **ticks}
    room = 0.12 * (high - low) or 0.5 * high or 1.0
    return {"range": [max(-room, low - room), high + room]} | ({"tickprefix": "$", "nticks": 5} if by == "usd" else {})


def _dollar_ticks(values: Sequence[float]) -> dict[str, Any]:
    """Return about ten ticks at most for a logarithmic axis, with dollars as people write them."""
    low, high = min(values), max(values)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if len(decades) <= 3 else (1, 3) if len(decades) <= 5 else (1,)
    ticks = [float(f"{m}e{d}") for d in decades for m in steps]
    return {"tickvals": ticks, "ticktext": [f"${t:,.10f}".rstrip("0").rstrip(".") for t in ticks]}


def _score_axis(arms: Sequence[Arm]) -> dict[str, Any]:
    """Return an axis from 0, with room below for a dot at 0."""
    top = max(0.02, *(a.score.high for a in arms), 0.0)
    return {"title_text": "score", "range": [-0.05 * top, 1.06 * top], "tickformat": ".2~f", "zeroline": False}


def _error_bars(estimates: Sequence[Estimate], hue: str) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [e.high - e.mean for e in estimates],
        "arrayminus": [e.mean - e.low for e in estimates],
        "color": colour(hue),
        "thickness": 1.5,
        "width": 4,
    }


def _range(e: Estimate) -> str:
    return f"{e.mean:.3f} ({e.low:.3f} to {e.high:.3f})"


def learning_figure(
    curves: Sequence[Curve], hues: Mapping[str, str], crossovers: Sequence[Crossover] = ()
) -> go.Figure:
    """Return score over train size: measured scores, fitted curves with their bands, and the crossovers.

    Prompting is solid, fine-tuning dashed. A ring marks a crossover, with the interval of its size.
    """
    sizes = sorted({n for c in curves for n in c.sizes})
    room = 0.06 * math.log10(sizes[-1] / sizes[0])
    hue_of = {c.name: hues[c.arms[0].name] for c in curves}
    traces = [_band(c, hue_of[c.name]) for c in curves if c.line or c.constant]
    traces += [_fitted(c, hue_of[c.name]) for c in curves if c.line]
    traces += [_measured(c, hue_of[c.name]) for c in curves]
    marked = [x for x in crossovers if not x.throughout and x.size.value is not None and x.size.value <= sizes[-1]]
    axis = {
        "title_text": "training examples",
        "type": "log",
        "tickvals": sizes,
        "ticktext": [f"{n:,}" for n in sizes],
        "range": [math.log10(sizes[0]) - room, math.log10(sizes[-1]) + room],
    }
    traces += [_ring(x, hue_of[x.weights]) for x in marked]
    return _figure(traces, xaxis=axis, yaxis=_score_axis([a for c in curves for a in c.arms]), showlegend=False)


def _band(curve: Curve, hue: str) -> go.Scatter:
    """Return the 95 % interval around a fitted or a level curve as an area."""
    score = curve.arms[0].score
    points = curve.line or [Point(n, score.mean, score.low, score.high) for n in curve.sizes]
    return go.Scatter(
        mode="none",
        fill="toself",
        fillcolor=colour(hue),
        opacity=0.13,
        hoverinfo="skip",
        x=[p.size for p in points] + [p.size for p in reversed(points)],
        y=[p.high for p in points] + [p.low for p in reversed(points)],
    )


def _fitted(curve: Curve, hue: str) -> go.Scatter:
    return go.Scatter(
        mode="lines",
        meta=curve.name,
        x=[p.size for p in curve.line],
        y=[p.score for p in curve.line],
        line=_stroke(hue, DASH[curve.kind]),
        hoverinfo="skip",
    )


def _measured(curve: Curve, hue: str) -> go.Scatter:
    """Return the measured scores: dots with intervals, joined where no curve is fitted, or a level line."""
    scores = [a.score for a in curve.arms]
    hovers = [
        f"{label(curve.name)}<br>{n:,} examples<br>score {_range(s)}" for n, s in zip(curve.sizes, scores, strict=True)
    ]
    return go.Scatter(
        mode="lines" if curve.constant else "markers" if curve.line else "lines+markers",
        meta=None if curve.line else curve.name,
        x=list(curve.sizes),
        y=[s.mean for s in scores],
        cliponaxis=False,
        line=_stroke(hue, DASH[curve.kind]),
        marker={"size": 9, "color": colour(hue), "symbol": "diamond" if curve.kind == "weights" else "circle"},
        error_y=None if curve.constant else _error_bars(scores, hue),
        hovertext=hovers,
        hoverinfo="text",
    )


def _stroke(hue: str, dash: str) -> dict[str, Any]:
    return {"color": colour(hue), "width": 2.5, "dash": dash}


def _ring(x: Crossover, hue: str) -> go.Scatter:
    """Return the ring of a crossover with the interval of its size; an end at `never` runs out of the figure."""
    value = x.size.value or 0.0
    low, high = (REACH * x.measured if end is None else end for end in (x.size.low, x.size.high))
    bars = _error_bars([Estimate(value, min(low, value), high, 1)], hue)
    return go.Scatter(
        mode="markers",
        x=[value],
        y=[x.score],
        error_x=bars | {"thickness": 1, "width": 5},
        marker={"size": 13, "symbol": "circle-open", "color": colour(hue), "line": {"width": 2}},
        hovertext=[f"{label(x.weights)}<br>overtakes {label(x.context)}<br>at {size_words(x.size)} examples"],
        hoverinfo="text",
    )


def break_even_figure(arms: Sequence[Arm], verdicts: Sequence[VolumeVerdict], *, spread: float) -> go.Figure | None:
    """Return dollars per 1,000 requests over requests a month, fitting spread over `spread` months.

    None with fewer than two priced arms. The first shape is the line that page.js moves to the slider's volume.
    """
    volumes = [v.volume for v in verdicts if v.volume is not None]
    xs = [10 ** (math.log10(volumes[0]) + i / 8) for i in range(round(8 * math.log10(volumes[-1] / volumes[0])) + 1)]
    shown = _arms_to_draw(arms, verdicts)
    if len(shown) < 2:
        return None
    hues, traces, drawn = hue_names(arms), list[go.Scatter](), set[str]()
    for a in shown:
        # Arms of one method share a colour: the second and later ones are dotted.
        dash = "dot" if hues[a.name] in drawn else DASH[a.kind]
        drawn.add(hues[a.name])
        traces.append(_price_line(a, xs, spread, _stroke(hues[a.name], dash)))
    decades = range(round(math.log10(xs[0])), round(math.log10(xs[-1])) + 1)
    axis = {
        "title_text": "requests a month",
        "type": "log",
        "range": [math.log10(xs[0]), math.log10(xs[-1])],
        "tickvals": [10**d for d in decades],
        "ticktext": [_short(10**d) for d in decades],
    }
    ys = [y for t in traces for y in t.y if y > 0] or [1.0]
    room = 0.06 * math.log10(max(ys) / min(ys)) + 0.02
    price = {
        "title_text": "dollars per 1,000 requests",
        "type": "log",
        **_dollar_ticks(ys),
        "range": [math.log10(min(ys)) - room, math.log10(max(ys)) + room],
    }
    figure = _figure(traces, xaxis=axis, yaxis=price, showlegend=False)
    line = {"color": colour("ink"), "width": 1.5, "dash": "solid"}
    return figure.add_shape(type="line", xref="x", yref="paper", x0=xs[0], x1=xs[0], y0=0, y1=1, line=line)


def _price_line(arm: Arm, volumes: Sequence[float], spread: float, stroke: Mapping[str, Any]) -> go.Scatter:
    """Return the price of 1,000 requests to an arm over the volumes."""
    months = [monthly_usd(arm.cost, v, months=spread) or 0.0 for v in volumes]
    return go.Scatter(
        mode="lines",
        meta=arm.name,
        x=volumes,
        y=[1000 * usd / v for v, usd in zip(volumes, months, strict=True)],
        line=stroke,
        hovertext=[
            f"{label(arm.name)}<br>{rounded(v)} requests a month<br>"
            f"{dollars(1000 * usd / v)} per 1,000, {dollars(usd)} a month"
            for v, usd in zip(volumes, months, strict=True)
        ],
        hoverinfo="text",
    )


def _short(power: int) -> str:
    """Return a power of ten as 100, 1k, 10M or 1B."""
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if power >= size:
            return f"{power // size}{unit}"
    return str(power)


def _arms_to_draw(arms: Sequence[Arm], verdicts: Sequence[VolumeVerdict]) -> list[Arm]:
    """Return the priced arms to draw: those chosen at some volume, those of the break-even, the best of each method."""
    priced = [a for a in arms if a.score.n and monthly_usd(a.cost, 1, months=1) is not None]
    names = {v.verdict.choose for v in verdicts}
    names |= {name for v in verdicts if (b := v.verdict.break_even) for name in (b.start, b.run)}
    named = [a for a in priced if a.name in names]
    others = {a.method: a for a in reversed(priced) if a.method not in {b.method for b in named}}
    best = sorted(others.values(), key=priced.index)
    return (named + best)[: max(len(named), MOST_LINES)]
