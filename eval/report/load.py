"""Show load tests: a table and JSON for the terminal, a figure and a table for the page."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from crossover.eval.analysis.arm import Arm
from crossover.eval.analysis.load import LoadSummary, summarize_load
from crossover.eval.analysis.stats import Estimate
from crossover.eval.report.plot import Axis, Dot, Figure, Line, even_ticks, interval, log_ticks, path
from crossover.eval.report.schema import estimate_json
from crossover.eval.report.text import columns, figure
from crossover.eval.store.loads import LoadLevel

HEADER = (
    *("cells", "load", "answered", "failed", "requests/s", "tokens/s"),
    *("p50 ms", "p95 ms", "p99 ms", "first token ms", "first token p95"),
)


def load_words(level: LoadLevel) -> str:
    """Return a level of load in words: `8 users`, `2.5 a second`."""
    if level.loop == "open":
        return f"{level.load:g} a second"
    return f"{level.load:g} user{'s' * (level.load != 1)}"


def load_line(level: LoadLevel, names: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Return the cells of a table's line under `HEADER`; `names` holds the arms of the cells' keys."""
    s = summarize_load(level)
    who = (names or {}).get(level.cells[0], level.cells[0]) if len(level.cells) == 1 else f"{len(level.cells)} in turn"
    times = (_ms(e) for e in (s.p50, s.p95, s.p99, s.first_p50, s.first_p95))
    rates = f"{s.per_second:.1f}", f"{s.tokens_per_second:.1f}"
    return who, load_words(level), f"{s.answered:,}", f"{s.failed:,}", *rates, *times


def _ms(estimate: Estimate | None) -> str:
    return "-" if estimate is None or not estimate.n else figure(estimate.mean)


def load_table(levels: Sequence[LoadLevel]) -> list[str]:
    """Return the lines of a table of levels, the first reason of a failure, and how to see them on a page."""
    lines = columns([HEADER, *(load_line(level) for level in levels)])
    failure = next((r.failure for level in levels for r in level.requests if r.failure), "")
    return [
        *lines,
        *([f"the first failure: {failure}"] if failure else []),
        "as a figure: crossover report -o report.html",
    ]


def load_json(levels: Sequence[LoadLevel]) -> list[dict[str, Any]]:
    """Return the levels with their summaries as JSON; an unknown end of an interval is null."""
    found = []
    for level in levels:
        about = {name: getattr(level, name) for name in ("task", "cells", "loop", "load", "server", "seconds")}
        summary = summarize_load(level)._asdict()
        found.append(about | {k: estimate_json(v) if isinstance(v, Estimate) else v for k, v in summary.items()})
    return found


class LoadFigure(NamedTuple):
    """The load tests of one task: a figure, and the table of its levels."""

    plot: Figure | None
    """p95 over requests answered a second; None where no level was answered."""
    header: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    servers: tuple[str, ...]


def load_figure(levels: Sequence[LoadLevel], arms: Sequence[Arm], hues: Mapping[str, str]) -> LoadFigure | None:
    """Return the load tests of a task, None without any; `hues` maps the names of arms to colours.

    A line joins the levels of the same cells on the same server under the same loop; users are solid, rates dashed.
    """
    if not levels:
        return None
    names = {key: a.name for a in arms for key in a.cells}
    found = [(level, s) for level in levels if (s := summarize_load(level)).answered]
    table = tuple(load_line(level, names) for level in levels)
    servers = tuple(dict.fromkeys(level.server for level in levels))
    return LoadFigure(_plot(found, names, hues) if found else None, HEADER, table, servers)


def _plot(found: Sequence[tuple[LoadLevel, LoadSummary]], names: Mapping[str, str], hues: Mapping[str, str]) -> Figure:
    highest = max(s.per_second for _, s in found)
    values = [v for _, s in found for v in (s.p50.mean, s.p95.mean)]
    low, high = max(0.01, min(values)) / 1.6, max(values) * 1.6
    x = Axis("requests answered a second", 0.0, 1.1 * highest, tuple((t, f"{t:g}") for t in even_ticks(0, highest, 5)))
    y = Axis("p95 latency, milliseconds", low, high, tuple((t, f"{t:,g}") for t in log_ticks(low, high)), log=True)
    groups: dict[tuple[tuple[str, ...], str, str], list[tuple[LoadLevel, LoadSummary]]] = {}
    for level, summary in found:
        groups.setdefault((level.cells, level.server, level.loop), []).append((level, summary))
    lines, dots = list[Line](), list[Dot]()
    for (cells, _, loop), group in groups.items():
        hue, name = hues[names[cells[0]]], names[cells[0]] if len(cells) == 1 else f"{len(cells)} arms in turn"
        points = [(s.per_second, s.p95.mean) for _, s in group]
        dash = ("solid" if loop == "closed" else "dash") if len(cells) == 1 else "dot"
        lines.append(Line(f"{name}, {'users' if loop == 'closed' else 'rates'}", hue, dash, path(x, y, points)))
        shape = "round" if len(cells) == 1 else "square"
        dots += [_dot(level, s, name, x, y, hue, shape) for level, s in group]
    return Figure(x, y, tuple(dots), tuple(lines))


def _dot(level: LoadLevel, s: LoadSummary, name: str, x: Axis, y: Axis, hue: str, shape: str) -> Dot:
    first = [] if s.first_p50 is None else [f"first token {figure(s.first_p50.mean)} ms"]
    speed = f"{s.per_second:.1f} requests, {s.tokens_per_second:.0f} tokens a second"
    quantiles = f"p50 {figure(s.p50.mean)}, p95 {figure(s.p95.mean)}, p99 {figure(s.p99.mean)} ms"
    place, height = (x.at(s.per_second), y.at(s.p95.mean)), interval(y, max(s.p95.low, 1e-3), min(s.p95.high, 1e9))
    return Dot(*place, hue, shape, (name, load_words(level), speed, quantiles, *first), height=height)
