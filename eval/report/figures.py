"""The figures of the page, as Plotly's JSON; colours are names (`@context-1`) that the page turns into its theme's."""

import html
import math
from collections.abc import Sequence
from typing import Any

from crossover.eval.analysis.compare import Arm
from crossover.eval.analysis.cost import monthly_usd
from crossover.eval.analysis.learning import Overtaking, Point, size_words
from crossover.eval.analysis.rules import rounded
from crossover.eval.analysis.saturation import REACH
from crossover.eval.analysis.stats import Estimate
from crossover.eval.report.curves import Curve, crossing
from crossover.eval.report.text import dollars, visible
from crossover.eval.report.volumes import State

Figure = dict[str, Any]

HUES = {"context": 5, "weights": 3}
"""Colours of each side: cool ones in context, warm ones in weights."""

DASH = {"context": "solid", "weights": "dash"}

MOST_LINES = 4
"""Arms in the break-even figure, unless more are chosen at some volume."""


def colours(arms: Sequence[Arm]) -> dict[str, str]:
    """Return the colour of each arm by name: one for a method, cool in context, warm in weights."""
    methods: dict[str, list[str]] = {"context": [], "weights": []}
    for arm in arms:
        if arm.method not in methods[arm.kind]:
            methods[arm.kind].append(arm.method)
    return {a.name: f"@{a.kind}-{methods[a.kind].index(a.method) % HUES[a.kind] + 1}" for a in arms}


def label(text: object) -> str:
    """Return a name for Plotly, which reads tags in text."""
    return html.escape(visible(text), quote=False)


def pareto(arms: Sequence[Arm], front: Sequence[str], *, by: str) -> Figure | None:
    """Return score against dollars (`by="usd"`) or p95 (`by="p95"`); numbers are ranks, filled dots are on the front.

    None when nothing has that value.
    """
    found = [(rank, a, _position(a, by)) for rank, a in enumerate(arms, 1) if a.score.n]
    points = [(rank, a, x) for rank, a, x in found if x is not None]
    if not points:
        return None
    shown, xs = [a for _, a, _ in points], [x for _, _, x in points]
    hues = [colours(arms)[a.name] for a in shown]
    fills = [hue if a.name in front else "@paper" for a, hue in zip(shown, hues, strict=True)]
    inks = ["@paper" if a.name in front else hue for a, hue in zip(shown, hues, strict=True)]
    trace = {
        "type": "scatter",
        "mode": "markers+text",
        "cliponaxis": False,
        "x": xs,
        "y": [a.score.mean for a in shown],
        "error_y": _errors([a.score for a in shown], "@line"),
        "text": [str(rank) for rank, _, _ in points],
        "textfont": {"color": inks},
        "marker": {"size": 22, "color": fills, "line": {"width": 2, "color": hues}, "opacity": 1},
        "hovertext": [f"{label(a.name)}<br>score {_range(a.score)}<br>{_value(x, by)}" for _, a, x in points],
        "hoverinfo": "text",
        "showlegend": False,
    }
    title = "dollars per 1,000 requests" if by == "usd" else "p95 latency, milliseconds"
    axis = {"title": {"text": title}, **_scale(xs), **_ticks(xs, by)}
    return {"data": [trace], "layout": {"xaxis": axis, "yaxis": _score_axis(shown)}}


def _value(x: float, by: str) -> str:
    return f"{dollars(x)} per 1,000" if by == "usd" else f"p95 {x:,.0f} ms"


def _position(arm: Arm, by: str) -> float | None:
    if by == "usd":
        return arm.cost.per_1k_requests
    return arm.latency.p95.mean if arm.latency.n else None


def _scale(xs: Sequence[float]) -> Figure:
    """Return a logarithmic axis for values of several sizes, with room for the dots at both ends."""
    low, high = min(xs), max(xs)
    if low > 0 and high / low > 8:
        return {"type": "log", "range": [math.log10(low) - 0.25, math.log10(high) + 0.25], "dtick": 1}
    room = 0.12 * (high - low) or 0.5 * high or 1.0
    return {"range": [max(-room, low - room), high + room]}


def _ticks(xs: Sequence[float], by: str) -> Figure:
    if by != "usd":
        return {}
    return _dollar_ticks(xs) if _scale(xs).get("type") == "log" else {"tickprefix": "$", "nticks": 5}


def _dollar_ticks(values: Sequence[float]) -> Figure:
    """Return ticks of a logarithmic axis, with dollars as people write them, at most about ten of them."""
    low, high = min(values), max(values)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if len(decades) <= 3 else (1, 3) if len(decades) <= 5 else (1,)
    ticks = [float(f"{m}e{d}") for d in decades for m in steps]
    return {"tickvals": ticks, "ticktext": [f"${t:,.10f}".rstrip("0").rstrip(".") for t in ticks]}


def _score_axis(arms: Sequence[Arm]) -> Figure:
    """Return an axis from 0, with room for a dot that stands on it."""
    top = max(0.02, *(a.score.high for a in arms), 0.0)
    return {"title": {"text": "score"}, "range": [-0.05 * top, 1.06 * top], "tickformat": ".2~f", "zeroline": False}


def _errors(estimates: Sequence[Estimate], colour: str) -> Figure:
    return {
        "type": "data",
        "symmetric": False,
        "array": [e.high - e.mean for e in estimates],
        "arrayminus": [e.mean - e.low for e in estimates],
        "color": colour,
        "thickness": 1.5,
        "width": 4,
    }


def _range(e: Estimate) -> str:
    return f"{e.mean:.3f} ({e.low:.3f} to {e.high:.3f})"


def learning(curves: Sequence[Curve], hues: dict[str, str], overtakings: Sequence[Overtaking] = ()) -> Figure:
    """Return score over train size: what was measured, fitted curves with their bands, and where sides change places.

    Prompting is drawn through, fine-tuning dashed. A ring with a level bar is where fine-tuning overtakes and the
    interval of that size; without fitted curves a dotted line is where the sides cross.
    """
    sizes = sorted({n for c in curves for n in c.sizes})
    room = 0.06 * math.log10(sizes[-1] / sizes[0])
    axis = {
        "title": {"text": "training examples"},
        "type": "log",
        "tickvals": sizes,
        "ticktext": [f"{n:,}" for n in sizes],
        "range": [math.log10(sizes[0]) - room, math.log10(sizes[-1]) + room],
    }
    layout: Figure = {"xaxis": axis, "yaxis": _score_axis([a for c in curves for a in c.arms]), "showlegend": False}
    traces = [_band(c, hues[c.arms[0].name]) for c in curves if c.line or c.constant]
    traces += [_line(c, hues[c.arms[0].name]) for c in curves if c.line]
    traces += [_measured(c, hues[c.arms[0].name]) for c in curves]
    if not any(c.line for c in curves) and (cross := crossing(curves)) is not None:
        layout["shapes"] = [_upright(cross.size, "@ink", "dot")]
        layout["annotations"] = [_note(math.log10(cross.size), f"crossing ≈ {cross.size:,.0f}")]
    names = {c.name: c.arms[0].name for c in curves}
    shown = [o for o in overtakings if not o.throughout and o.size.value is not None and o.size.value <= sizes[-1]]
    return {"data": [*traces, *(_ring(o, hues[names[o.weights]]) for o in shown)], "layout": layout}


def _band(curve: Curve, colour: str) -> Figure:
    """Return the 95 % interval around a fitted or a level curve as an area."""
    score = curve.arms[0].score
    points = curve.line or [Point(n, score.mean, score.low, score.high) for n in curve.sizes]
    return {
        "type": "scatter",
        "mode": "none",
        "fill": "toself",
        "fillcolor": colour,
        "opacity": 0.13,
        "hoverinfo": "skip",
        "x": [p.size for p in points] + [p.size for p in reversed(points)],
        "y": [p.high for p in points] + [p.low for p in reversed(points)],
    }


def _line(curve: Curve, colour: str) -> Figure:
    """Return a fitted curve."""
    return {
        "type": "scatter",
        "mode": "lines",
        "meta": curve.name,
        "x": [p.size for p in curve.line],
        "y": [p.score for p in curve.line],
        "line": {"color": colour, "width": 2.5, "dash": DASH[curve.kind]},
        "hoverinfo": "skip",
    }


def _measured(curve: Curve, colour: str) -> Figure:
    """Return what was measured: dots with intervals, joined where no curve is fitted; a level line for a constant."""
    mode = "lines" if curve.constant else "markers" if curve.line else "lines+markers"
    scores = [a.score for a in curve.arms]
    trace = {
        "type": "scatter",
        "mode": mode,
        "x": list(curve.sizes),
        "y": [s.mean for s in scores],
        "cliponaxis": False,
        "line": {"color": colour, "width": 2.5, "dash": DASH[curve.kind]},
        "marker": {"size": 9, "color": colour, "symbol": "diamond" if curve.kind == "weights" else "circle"},
        "hovertext": [
            f"{label(curve.name)}<br>{n:,} examples<br>score {_range(s)}"
            for n, s in zip(curve.sizes, scores, strict=True)
        ],
        "hoverinfo": "text",
    }
    if not curve.line:
        trace["meta"] = curve.name
    return trace if curve.constant else trace | {"error_y": _errors(scores, colour)}


def _ring(o: Overtaking, colour: str) -> Figure:
    """Return the mark of an overtaking, with the interval of its size; an end of it that is never leaves the figure."""
    value = o.size.value or 0.0
    far = REACH * o.measured
    low, high = (far if x is None else x for x in (o.size.low, o.size.high))
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [value],
        "y": [o.score],
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [high - value],
            "arrayminus": [value - min(low, value)],
            "color": colour,
            "thickness": 1,
            "width": 5,
        },
        "marker": {"size": 13, "symbol": "circle-open", "color": colour, "line": {"width": 2}},
        "hovertext": [f"{label(o.weights)}<br>overtakes {label(o.context)}<br>at {size_words(o.size)} examples"],
        "hoverinfo": "text",
    }


def break_even(arms: Sequence[Arm], verdicts: Sequence[State], *, spread: float) -> Figure | None:
    """Return dollars per 1,000 requests, fitting spread over months, over requests a month; None with one priced arm.

    The first shape is where the page's slider stands.
    """
    volumes = [s.volume for s in verdicts if s.volume is not None]
    xs = [10 ** (math.log10(volumes[0]) + i / 8) for i in range(round(8 * math.log10(volumes[-1] / volumes[0])) + 1)]
    shown = _told(arms, verdicts)
    if len(shown) < 2:
        return None
    hues, traces = colours(arms), list[Figure]()
    for a in shown:
        again = any(t["line"]["color"] == hues[a.name] for t in traces)
        months = [monthly_usd(a.cost, x, months=spread) or 0.0 for x in xs]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "meta": a.name,
                "x": xs,
                "y": [1000 * usd / x for x, usd in zip(xs, months, strict=True)],
                "line": {"color": hues[a.name], "width": 2.5, "dash": "dot" if again else DASH[a.kind]},
                "hovertext": [
                    f"{label(a.name)}<br>{rounded(x)} requests a month<br>"
                    f"{dollars(1000 * usd / x)} per 1,000, {dollars(usd)} a month"
                    for x, usd in zip(xs, months, strict=True)
                ],
                "hoverinfo": "text",
            }
        )
    decades = range(round(math.log10(xs[0])), round(math.log10(xs[-1])) + 1)
    axis = {
        "title": {"text": "requests a month"},
        "type": "log",
        "range": [math.log10(xs[0]), math.log10(xs[-1])],
        "tickvals": [10**d for d in decades],
        "ticktext": [_short(10**d) for d in decades],
    }
    ys = [y for t in traces for y in t["y"] if y > 0] or [1.0]
    room = 0.06 * math.log10(max(ys) / min(ys)) + 0.02
    price = {
        "title": {"text": "dollars per 1,000 requests"},
        "type": "log",
        **_dollar_ticks(ys),
        "range": [math.log10(min(ys)) - room, math.log10(max(ys)) + room],
    }
    layout = {"xaxis": axis, "yaxis": price, "showlegend": False, "shapes": [_upright(xs[0], "@ink", "solid")]}
    return {"data": traces, "layout": layout}


def _short(count: int) -> str:
    """Return a power of ten in few characters."""
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count // size}{unit}"
    return str(count)


def _told(arms: Sequence[Arm], verdicts: Sequence[State]) -> list[Arm]:
    """Return the priced arms worth a line: those chosen at some volume, those of the break-even, best methods."""
    priced = [a for a in arms if a.score.n and monthly_usd(a.cost, 1, months=1) is not None]
    named = {s.verdict.choose for s in verdicts}
    for state in verdicts:
        if (b := state.verdict.break_even) is not None:
            named |= {b.start, b.run}
    told = [a for a in priced if a.name in named]
    methods = {a.method for a in told}
    best = [
        next(a for a in priced if a.method == m) for m in dict.fromkeys(a.method for a in priced) if m not in methods
    ]
    return (told + best)[: max(len(told), MOST_LINES)]


def _upright(x: float, colour: str, dash: str) -> Figure:
    line = {"color": colour, "width": 1.5, "dash": dash}
    return {"type": "line", "xref": "x", "yref": "paper", "x0": x, "x1": x, "y0": 0, "y1": 1, "line": line}


def _note(x: float, text: str) -> Figure:
    return {"x": x, "y": 1, "yref": "paper", "yanchor": "bottom", "showarrow": False, "text": text}
