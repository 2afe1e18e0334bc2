"""Write a report as one HTML page that works offline, the verdict first."""

import base64
import hashlib
import importlib.metadata
import json
import re
import shlex
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from crossover.eval.analysis.arm import Arm
from crossover.eval.analysis.compare import Comparison
from crossover.eval.analysis.contrast import Contrast
from crossover.eval.analysis.learning_words import number_words
from crossover.eval.analysis.rules import DEFAULT_VOLUME, MARGIN
from crossover.eval.analysis.saturation import REACH
from crossover.eval.analysis.stats import Estimate
from crossover.eval.analysis.sweep import VolumeVerdict, verdicts_by_volume
from crossover.eval.analysis.verdict import Verdict
from crossover.eval.report import figures
from crossover.eval.report.curves import learning_curves
from crossover.eval.report.data import ReportData, checks, ledger, machine, merged, method_words, versions
from crossover.eval.report.examples import disagreements, label_lines, shown_arms
from crossover.eval.report.load import load_figure
from crossover.eval.report.markdown import markdown
from crossover.eval.report.schema import to_json
from crossover.eval.report.summary import next_command
from crossover.eval.report.table import break_even_line, format_choices, human_words
from crossover.eval.report.text import cut, dollars, figure, p95_words, small_money, visible

MOST_BARS = 5
"""Arms shown as bars on the first screen."""

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""Content security policy of the page, which loads nothing."""

CONFIDENCE = {
    "high": "high confidence",
    "moderate": "moderate confidence",
    "low": "low confidence",
    "abstain": "the data cannot tell",
}


def html_page(data: ReportData) -> str:
    """Return the whole page, the same bytes for the same data on the same machine."""
    environment = Environment(
        loader=PackageLoader("crossover.eval.report", "template"),
        autoescape=True,  # names, answers and labels come from data
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "usd": dollars,
        "price": _price,
        "ms": lambda x: f"{figure(x)} ms",
        "p95": lambda latency: f"{words} ms" if (words := p95_words(latency, figure)) else "–",
        "human": human_words,
        "cut": cut,
        "percent": _percent,
        "bar": _bar,
        "breakable": _breakable,
        "code": _code,
        "quoted": shlex.quote,
        "score": lambda x: f"{x:.3f}",
        "signed": lambda x: f"{x:+.3f}",
        "count": lambda x: f"{x:,.0f}",
        "examples": number_words,
    }
    source = files("crossover.eval.report") / "template"
    script = (source / "page.js").read_text(encoding="utf-8")
    return environment.get_template("page.html").render(
        data=data,
        fingerprint=_fingerprint(data.comparison),
        tasks=[_task(data, v, number) for number, v in enumerate(data.comparison.verdicts, 1)],
        confidence=CONFIDENCE,
        margin=MARGIN,
        reach=REACH,
        months=data.experiment.needs.refresh_months,
        machine=machine(),
        versions=versions(),
        file=_file(data),
        markdown=markdown(data),
        style=Markup((source / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        policy=f"{POLICY}; script-src {_hash(script)}",
    )


def is_current(page: Path, comparison: Comparison) -> bool:
    """Return whether a file is the page of this comparison, as this version writes it."""
    if not page.is_file():
        return False
    with page.open(encoding="utf-8") as f:
        return _fingerprint(comparison) in f.read(500)


def _fingerprint(comparison: Comparison) -> str:
    """Return a hash of all that a comparison says, and of the version that says it."""
    facts = [importlib.metadata.version("crossover"), to_json(comparison)]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _finalize(value: Any) -> Any:
    """Make invisible characters visible in every text that the template prints."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _hash(script: str) -> str:
    """Return the source expression that allows this script, and so no other that data might smuggle in."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _file(data: ReportData) -> str:
    """Return the text of the experiment file, or an empty string when it no longer exists."""
    file = data.experiment.file
    return file.read_text(encoding="utf-8") if file is not None and file.is_file() else ""


def _task(data: ReportData, verdict: Verdict, number: int) -> dict[str, Any]:
    """Return the variables of the template for one task."""
    task, arms, shown = verdict.task, data.arms(verdict.task), data.reference_arm(verdict)
    needs, front = data.experiment.needs, data.comparison.fronts[task]
    volumes = verdicts_by_volume(data.comparison, verdict, needs)
    few, learning = shown_arms(data, verdict), data.comparison.learning.get(task)
    samples, disagreeing = disagreements(data, task, few)
    forest, hues = _forest(data.contrasts(task), shown), figures.hue_names(arms)
    cost = figures.cost_figure(arms, front, volumes, spread=needs.refresh_months)
    curves = learning_curves(data, task)
    return {
        "number": number,
        "name": task,
        "metric": data.finished.tasks[task].metric_name,
        "date": max(r.finished_on for a in arms for r in data.results(a)),
        "models": list(dict.fromkeys(a.model for a in arms)),
        "verdict": verdict,
        "arms": arms,
        "shown": shown,
        "bars": _bars(arms, shown),
        "plain": {a.name: method_words(data.results(a)[0].cell.method) for a in arms},
        "next": next_command(data.comparison, verdict),
        "ranks": {a.name: rank for rank, a in enumerate(arms, 1)},
        "by_name": {a.name: a for a in arms},
        "hues": hues,
        "states": volumes,
        "at": next(i for i, v in enumerate(volumes) if v.stated),
        "places": [None if v.volume is None or cost is None else cost.x.at(v.volume) for v in volumes],
        "words": [_volume_words(v) for v in volumes],
        "ends": ["not stated" if v.volume is None else f"{v.volume:,.0f}" for v in (volumes[0], volumes[-1])],
        "break_even": break_even_line(verdict.break_even) if verdict.break_even else "",
        "learning": learning,
        "pareto": figures.pareto_figure(arms, front),
        "cost": cost,
        "curves": figures.learning_figure(curves, hues, learning.crossovers if learning else ()) if curves else None,
        "load": load_figure([n for n in data.loads if n.task == task], arms, hues),
        "forest": forest,
        "span": _span(forest),
        "columns": few,
        "labels": label_lines(data, task, few),
        "samples": samples,
        "disagreeing": disagreeing,
        "ledger": ledger(data, task),
        "prices": list(dict.fromkeys(a.price_source for a in arms if a.price_source)),
        "measures": sorted({m for a in arms for m in a.secondary}),
        "fields": list(dict.fromkeys(f for a in arms for f in a.fields)),
        "cautions": data.comparison.cautions.get(task, ()),
        "checks": merged(checks(data, task)),
        "split": data.comparison.split_sha256[task],
        "formats": format_choices(arms),
    }


def _bars(arms: list[Arm], shown: Arm) -> list[Arm]:
    """Return the arms of the first screen: the shown one, and the best of each other method and model."""
    best = {_method(shown): shown}
    for a in arms:
        if a.score.n and len(best) < MOST_BARS:
            best.setdefault(_method(a), a)
    return [a for a in arms if a.score.n and best.get(_method(a)) is a]


def _method(arm: Arm) -> tuple[str, ...]:
    """Return the model of an arm and the names of its methods, without their options."""
    return arm.model, *(step.name for step in arm.spec.steps)


def _forest(contrasts: list[Contrast], shown: Arm) -> list[Contrast]:
    """Return the contrasts of the shown arm, each as the shown arm minus another, the largest first."""
    turned = [c if c.a == shown.name else c.reversed() for c in contrasts if shown.name in (c.a, c.b)]
    return sorted(turned, key=lambda c: (-c.difference.delta, c.b))


def _span(forest: list[Contrast]) -> float:
    """Return the half width of the axis of the forest plot."""
    return 1.05 * max([2.5 * MARGIN, *(abs(x) for c in forest for x in (c.difference.low, c.difference.high))])


def _price(value: float | None) -> str:
    """Return dollars with their sign, `–` for next to nothing, and "unpriced" for None."""
    text = small_money(value)
    return f"${text}" if text[0].isdigit() else text


def _breakable(name: str) -> Markup:
    """Return a name that may break after its punctuation in a narrow column."""
    return Markup(re.sub(r"([_/-])(?=\w)", r"\1<wbr>", str(escape(visible(name)))))


def _code(sentence: str) -> Markup:
    """Return a sentence with what stands in backticks as code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(visible(sentence)))))


def _percent(x: float, span: float) -> str:
    """Return a position on an axis from -span to +span as a CSS percentage."""
    return f"{50 + 50 * max(-1.0, min(1.0, x / span)):.2f}%"


def _bar(e: Estimate) -> Markup:
    """Return the interval of a score in 0..1 as the styles of a bar."""
    return Markup("--low:{:.1f}%;--high:{:.1f}%;--mean:{:.1f}%").format(100 * e.low, 100 * (1 - e.high), 100 * e.mean)


def _volume_words(v: VolumeVerdict) -> str:
    if v.volume is None:
        return f"not stated: {DEFAULT_VOLUME:,.0f} by default"
    return f"{v.volume:,.0f}" + (" (as the experiment file says)" if v.stated else "")
