"""The page: one HTML file that works offline, the verdict first."""

import base64
import hashlib
import json
import re
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from crossover.eval.analysis.compare import Arm, Contrast, Verdict
from crossover.eval.analysis.learning import number_words
from crossover.eval.analysis.rules import MARGIN
from crossover.eval.analysis.saturation import REACH
from crossover.eval.analysis.stats import Estimate
from crossover.eval.report import figures
from crossover.eval.report.curves import crossing_words, learning_curves
from crossover.eval.report.evidence import Evidence, checks, ledger, together, versions
from crossover.eval.report.examples import disagreements, label_lines
from crossover.eval.report.table import break_even_line, human_words
from crossover.eval.report.text import cut, dollars, visible
from crossover.eval.report.volumes import State, states

MOST_COLUMNS = 6
"""Arms in the table of labels and in the examples."""

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""What the page may load: nothing."""

CONFIDENCE = {
    "high": "high confidence",
    "moderate": "moderate confidence",
    "low": "low confidence",
    "abstain": "the data cannot tell",
}


@dataclass(frozen=True)
class Row:
    """One line of the forest plot: the shown arm minus another."""

    name: str
    contrast: Contrast
    delta: float
    low: float
    high: float
    finding: str


def html_page(evidence: Evidence) -> str:
    """Return the whole page. The same evidence gives the same bytes."""
    environment = Environment(
        loader=PackageLoader("crossover.eval.report", "template"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "usd": dollars,
        "human": human_words,
        "cut": cut,
        "percent": _percent,
        "bar": _bar,
        "breakable": _breakable,
        "score": lambda x: f"{x:.3f}",
        "signed": lambda x: f"{x:+.3f}",
        "count": lambda x: f"{x:,.0f}",
        "examples": number_words,
    }
    source = files("crossover.eval.report") / "template"
    script = (source / "page.js").read_text(encoding="utf-8")
    plotly = (files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
    return environment.get_template("page.html").render(
        evidence=evidence,
        tasks=[_task(evidence, v, number) for number, v in enumerate(evidence.comparison.verdicts, 1)],
        confidence=CONFIDENCE,
        margin=MARGIN,
        reach=REACH,
        months=evidence.experiment.needs.refresh_months,
        versions=versions(),
        file=_file(evidence),
        style=Markup((source / "page.css").read_text(encoding="utf-8")),
        plotly=Markup(plotly),
        script=Markup(script),
        policy=f"{POLICY}; script-src {_hash(plotly)} {_hash(script)}",
    )


def _finalize(value: Any) -> Any:
    """Show what cannot be seen in every text that a template prints."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _hash(script: str) -> str:
    """Return the source expression that lets this one script run, and no other that data might smuggle in."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _file(evidence: Evidence) -> str:
    """Return the text of the experiment file, empty when it is gone."""
    file = evidence.experiment.file
    return file.read_text(encoding="utf-8") if file is not None and file.is_file() else ""


def _task(evidence: Evidence, verdict: Verdict, number: int) -> dict[str, Any]:
    """Return what the template shows of one task."""
    task, arms, shown = verdict.task, evidence.arms(verdict.task), evidence.shown(verdict)
    front, there = evidence.comparison.fronts[task], states(evidence, verdict)
    curves, few = learning_curves(evidence, task), _few(arms, shown)
    found = evidence.comparison.learning.get(task)
    samples, disagreeing = disagreements(evidence, task, few)
    rows = _forest([c for c in evidence.comparison.contrasts if c.task == task], shown)
    hues = figures.colours(arms)
    charts = {
        "usd": figures.pareto(arms, front, by="usd"),
        "p95": figures.pareto(arms, front, by="p95"),
        "learning": figures.learning(curves, hues, found.overtakings if found else ()) if curves else None,
        "breakeven": figures.break_even(arms, there, spread=evidence.experiment.needs.refresh_months),
    }
    return {
        "number": number,
        "name": task,
        "verdict": verdict,
        "arms": arms,
        "shown": shown,
        "front": front,
        "ranks": {a.name: rank for rank, a in enumerate(arms, 1)},
        "legends": _legends(charts, hues),
        "by_name": {a.name: a for a in arms},
        "hues": {name: hue.removeprefix("@") for name, hue in hues.items()},
        "states": there,
        "at": next(i for i, s in enumerate(there) if s.stated),
        "volumes": [s.volume for s in there],
        "words": [_volume_words(s) for s in there],
        "ends": [_end(there[0].volume), _end(there[-1].volume)],
        "break_even": break_even_line(verdict.break_even) if verdict.break_even else "",
        "crossing": "" if found else crossing_words(curves),
        "learning": found,
        "charts": {k: _json(c) for k, c in charts.items() if c is not None},
        "forest": rows,
        "span": _span(rows),
        "columns": few,
        "labels": label_lines(evidence, task, few),
        "samples": samples,
        "disagreeing": disagreeing,
        "ledger": ledger(evidence, task),
        "prices": list(dict.fromkeys(a.price_source for a in arms if a.price_source)),
        "measures": sorted({m for a in arms for m in a.secondary}),
        "cautions": evidence.comparison.cautions.get(task, ()),
        "checks": together(checks(evidence, task)),
        "split": evidence.comparison.split_sha256[task],
    }


def _few(arms: list[Arm], shown: Arm) -> list[Arm]:
    """Return the shown arm, the best of the other side, the best of each other method, then the next best."""
    scored = [shown] + [a for a in arms if a.score.n and a is not shown]
    rivals = [a for a in scored if a.kind != shown.kind][:1]
    best = [next(a for a in scored if a.method == m) for m in dict.fromkeys(a.method for a in scored)]
    names = dict.fromkeys(a.name for a in [shown, *rivals, *best, *scored])
    return [next(a for a in scored if a.name == name) for name in names][:MOST_COLUMNS]


def _forest(contrasts: list[Contrast], shown: Arm) -> list[Row]:
    """Return the differences of the shown arm to the others, the largest first."""
    turned = {"better": "worse", "worse": "better"}
    rows = []
    for c in contrasts:
        d = c.difference
        if c.a == shown.name:
            rows.append(Row(c.b, c, d.delta, d.low, d.high, c.verdict))
        elif c.b == shown.name:
            rows.append(Row(c.a, c, -d.delta, -d.high, -d.low, turned.get(c.verdict, c.verdict)))
    return sorted(rows, key=lambda r: (-r.delta, r.name))


def _span(rows: list[Row]) -> float:
    """Return the half width of the forest plot's axis."""
    return max([2.5 * MARGIN, *(abs(x) for r in rows for x in (r.low, r.high))]) * 1.05


def _breakable(name: str) -> Markup:
    """Return a name that a narrow column may break after its punctuation."""
    return Markup(re.sub(r"([_/-])(?=\w)", r"\1<wbr>", str(escape(visible(name)))))


def _legends(charts: dict[str, figures.Figure | None], hues: dict[str, str]) -> dict[str, list[dict[str, Any]]]:
    """Return name, colour and dash of each line of the figures that have lines."""
    return {
        key: [
            {"name": line["meta"], "hue": line["line"]["color"].removeprefix("@"), "dash": line["line"]["dash"]}
            for line in (charts[key] or {"data": []})["data"]
            if "meta" in line
        ]
        for key in ("learning", "breakeven")
    }


def _percent(x: float, span: float) -> str:
    """Return a position on an axis from -span to +span as a CSS percentage."""
    return f"{50 + 50 * max(-1.0, min(1.0, x / span)):.2f}%"


def _bar(e: Estimate) -> Markup:
    """Return the interval of a score in 0..1 as the styles of a bar."""
    return Markup("--low:{:.1f}%;--high:{:.1f}%;--mean:{:.1f}%").format(100 * e.low, 100 * (1 - e.high), 100 * e.mean)


def _volume_words(state: State) -> str:
    if state.volume is None:
        return "not stated: by the price of a request alone"
    return f"{state.volume:,.0f}" + (" (as the experiment file says)" if state.stated else "")


def _end(volume: float | None) -> str:
    return "not stated" if volume is None else f"{volume:,.0f}"


def _json(figure: figures.Figure) -> Markup:
    """Return a figure as JSON that can stand inside a script element."""
    return Markup(json.dumps(figure, ensure_ascii=True, allow_nan=False).replace("<", "\\u003c"))
