"""The figures of the page, as Plotly's JSON; colours are names (`@context-1`) that the page turns into its theme's."""

import html
import math
from collections.abc import Sequence
from typing import Any

from eval.compare import Arm
from eval.cost import monthly_usd
from eval.report.curves import Curve, crossing
from eval.report.text import dollars, visible
from eval.report.volumes import State
from eval.rules import AMORTISE_MONTHS
from eval.stats import Estimate

Figure = dict[str, Any]

HUES = {"context": 5, "weights": 3}
"""Colours of each side: cool ones in context, warm ones in weights."""

MOST_LINES = 6
"""Arms in the break-even figure."""


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
    hues = colours(arms)
    points = [(rank, a, x) for rank, a in enumerate(arms, 1) if a.score.n and (x := _position(a, by)) is not None]
    if not points:
        return None
    title = {"usd": "dollars per 1,000 requests", "p95": "p95 latency, milliseconds"}[by]
    shape = {"usd": lambda x: f"{dollars(x)} per 1,000", "p95": lambda x: f"p95 {x:,.0f} ms"}[by]
    filled = [a.name in front for _, a, _ in points]
    trace = {
        "type": "scatter", "mode": "markers+text", "cliponaxis": False,
        "x": [x for _, _, x in points], "y": [a.score.mean for _, a, _ in points],
        "error_y": _errors([a.score for _, a, _ in points], "@line"),
        "text": [str(rank) for rank, _, _ in points],
        "textfont": {"color": ["@paper" if f else hues[a.name] for f, (_, a, _) in zip(filled, points, strict=True)]},
        "marker": {
            "size": 22, "color": [hues[a.name] if f else "@paper" for f, (_, a, _) in zip(filled, points, strict=True)],
            "line": {"width": 2, "color": [hues[a.name] for _, a, _ in points]}, "opacity": 1,
        },
        "hovertext": [f"{label(a.name)}<br>score {_range(a.score)}<br>{shape(x)}" for _, a, x in points],
        "hoverinfo": "text", "showlegend": False,
    }  # fmt: skip
    xs = [x for _, _, x in points]
    return {"data": [trace], "layout": {"xaxis": {"title": {"text": title}, **_scale(xs)}, "yaxis": _score_axis()}}


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


def _score_axis() -> Figure:
    return {"title": {"text": "score"}, "rangemode": "tozero", "tickformat": ".2~f"}


def _errors(estimates: Sequence[Estimate], colour: str) -> Figure:
    return {
        "type": "data", "symmetric": False, "array": [e.high - e.mean for e in estimates],
        "arrayminus": [e.mean - e.low for e in estimates], "color": colour, "thickness": 1.5, "width": 4,
    }  # fmt: skip


def _range(e: Estimate) -> str:
    return f"{e.mean:.3f} ({e.low:.3f} to {e.high:.3f})"


def learning(curves: Sequence[Curve], hues: dict[str, str]) -> Figure:
    """Return score over train size, prompting drawn through, fine-tuning dashed, their crossing as a dotted line."""
    traces = []
    for c in curves:
        colour = hues[c.arms[0].name]
        mode = "lines" if c.constant else "lines+markers"
        trace = {
            "type": "scatter", "mode": mode, "name": label(c.name), "x": list(c.sizes),
            "y": [a.score.mean for a in c.arms], "cliponaxis": False,
            "line": {"color": colour, "width": 2.5, "dash": "dash" if c.kind == "weights" else "solid"},
            "marker": {"size": 9, "color": colour, "symbol": "diamond" if c.kind == "weights" else "circle"},
            "hovertext": [
                f"{label(c.name)}<br>{n:,} examples<br>score {_range(a.score)}"
                for n, a in zip(c.sizes, c.arms, strict=True)
            ],
            "hoverinfo": "text",
        }  # fmt: skip
        traces.append(trace if c.constant else trace | {"error_y": _errors([a.score for a in c.arms], colour)})
    sizes = sorted({n for c in curves for n in c.sizes})
    room = 0.06 * math.log10(sizes[-1] / sizes[0])
    axis = {
        "title": {"text": "training examples"}, "type": "log", "tickvals": sizes, "ticktext": [f"{n:,}" for n in sizes],
        "range": [math.log10(sizes[0]) - room, math.log10(sizes[-1]) + room],
    }  # fmt: skip
    layout: Figure = {"xaxis": axis, "yaxis": _score_axis(), "showlegend": True}
    if (cross := crossing(curves)) is not None:
        layout["shapes"] = [_upright(cross.size, "@ink", "dot")]
        layout["annotations"] = [_note(math.log10(cross.size), f"crossing ≈ {cross.size:,.0f}")]
    return {"data": traces, "layout": layout}


def break_even(arms: Sequence[Arm], verdicts: Sequence[State]) -> Figure | None:
    """Return dollars a month over requests a month; the first shape is where the page's slider stands.

    None when fewer than two arms are priced.
    """
    volumes = [s.volume for s in verdicts if s.volume is not None]
    xs = [10 ** (math.log10(volumes[0]) + i / 8) for i in range(round(8 * math.log10(volumes[-1] / volumes[0])) + 1)]
    priced = [(rank, a) for rank, a in enumerate(arms, 1) if a.score.n and monthly_usd(a.cost, 1, months=1) is not None]
    chosen = {s.verdict.choose for s in verdicts}
    for s in verdicts[:1]:
        chosen |= {s.verdict.break_even.start, s.verdict.break_even.run} if s.verdict.break_even else set()
    told = [(r, a) for r, a in priced if a.name in chosen]
    shown = priced if len(priced) <= MOST_LINES else (told + [p for p in priced if p not in told])[:MOST_LINES]
    if len(shown) < 2:
        return None
    hues, traces = colours(arms), []
    for rank, a in shown:
        ys = [monthly_usd(a.cost, x, months=AMORTISE_MONTHS) for x in xs]
        traces.append({
            "type": "scatter", "mode": "lines", "name": f"{rank}  {label(a.name)}", "x": xs, "y": ys,
            "line": {"color": hues[a.name], "width": 2.5, "dash": "dash" if a.kind == "weights" else "solid"},
            "hovertemplate": f"{label(a.name)}<br>%{{x:,.3~s}} requests<br>$%{{y:,.3~s}} a month<extra></extra>",
        })  # fmt: skip
    axis = {"title": {"text": "requests a month"}, "type": "log", "dtick": 1, "tickformat": "~s",
            "range": [math.log10(xs[0]), math.log10(xs[-1])]}  # fmt: skip
    dollars = {"title": {"text": "dollars a month"}, "type": "log", "dtick": 1, "tickprefix": "$", "tickformat": "~s"}
    layout = {"xaxis": axis, "yaxis": dollars, "showlegend": True, "shapes": [_upright(xs[0], "@ink", "solid")]}
    return {"data": traces, "layout": layout}


def _upright(x: float, colour: str, dash: str) -> Figure:
    line = {"color": colour, "width": 1.5, "dash": dash}
    return {"type": "line", "xref": "x", "yref": "paper", "x0": x, "x1": x, "y0": 0, "y1": 1, "line": line}


def _note(x: float, text: str) -> Figure:
    return {"x": x, "y": 1, "yref": "paper", "yanchor": "bottom", "showarrow": False, "text": text}
