"""Show a comparison as a plain table or as JSON. The same comparison gives the same bytes."""

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from crossover.eval.analysis.arm import Arm, Contrast
from crossover.eval.analysis.compare import Comparison
from crossover.eval.analysis.cost import BreakEven
from crossover.eval.analysis.human import HumanCheck
from crossover.eval.analysis.labels import rare_and_frequent
from crossover.eval.analysis.learning import learning_sentences
from crossover.eval.analysis.stats import Estimate
from crossover.eval.analysis.verdict import Verdict
from crossover.eval.experiment.spec import METHODOLOGY_VERSION

SCHEMA_VERSION = 1
WIDTH = 110
"""Columns that text is wrapped to."""
HEADER = ("arm", "score", "95 % interval", "n", "failed", "p50 ms", "p95 ms", "fit $", "$ per 1k", "tokens")


def money(value: float | None) -> str:
    """Return dollars with the digits that matter; an unknown price is said, never shown as 0."""
    if value is None:
        return "unpriced"
    if value == 0:
        return "0"
    return f"{value:.0f}" if value >= 100 else f"{value:.{max(2, 1 - math.floor(math.log10(value)))}f}"


def _cells(arm: Arm) -> tuple[str, ...]:
    """Return the texts of one line of the table."""
    s, ms = arm.score, arm.latency
    scored = s.n > 0
    return (
        arm.name + (" !" if arm.integrity else "") + (" (dropped)" if arm.dropped else ""),
        f"{s.mean:.3f}" if scored else "-",
        f"{s.low:.3f} - {s.high:.3f}" if scored else "-",
        str(s.n),
        str(arm.failed),
        f"{ms.p50.mean:.0f}" if ms.n else "-",
        f"{ms.p95.mean:.0f}" if ms.n else "-",
        money(arm.cost.fit),
        money(arm.cost.per_1k_requests),
        f"{round((arm.tokens.prompt + arm.tokens.completion) / max(arm.rows / len(arm.seeds), 1))}",
    )


def arms_table(arms: Sequence[Arm]) -> list[str]:
    """Return the lines of one task's table, best score first."""
    return columns([HEADER, *map(_cells, _ranked(arms))])


def _ranked(arms: Sequence[Arm]) -> list[Arm]:
    """Return the arms, best score first."""
    return sorted(arms, key=lambda a: (-a.score.mean if a.score.n else math.inf, a.name))


def columns(lines: Sequence[Sequence[str]]) -> list[str]:
    """Return lines whose columns stand below each other, the first to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            t.ljust(w) if c == 0 else t.rjust(w) for c, (t, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def contrast_table(chosen: str, contrasts: Sequence[Contrast]) -> list[str]:
    """Return the lines of a table of differences: the chosen arm minus each other one, p after Holm's adjustment."""
    lines: list[tuple[str, ...]] = [
        (f"{chosen} against", "difference", "95 % interval", "p (Holm)", "it is", "detectable")
    ]
    turned = {"better": "worse", "worse": "better"}
    for c in contrasts:
        d, is_a = c.difference, c.a == chosen
        delta, low, high = (d.delta, d.low, d.high) if is_a else (-d.delta, -d.high, -d.low)
        p = "< 0.001" if c.p_holm < 0.001 else f"{c.p_holm:.2g}"
        finding = c.verdict if is_a else turned.get(c.verdict, c.verdict)
        interval = f"{low:+.3f} to {high:+.3f}"
        lines.append((c.b if is_a else c.a, f"{delta:+.3f}", interval, p, finding, f"{d.detectable:.3f}"))
    return columns(lines)


def details_table(arms: Sequence[Arm]) -> list[str]:
    """Return the lines of a second table: other measures, rare labels, when answers begin, what a cold start costs."""
    halves = {a.name: rare_and_frequent(a.labels) for a in arms}
    measures = sorted({m for a in arms for m in a.secondary})
    kinds: dict[str, Callable[[Arm], str]] = {
        **{m: partial(_secondary, m) for m in measures},
        "rare labels": lambda a: f"{h[0]:.3f}" if (h := halves[a.name]) else "",
        "other labels": lambda a: f"{h[1]:.3f}" if (h := halves[a.name]) else "",
        "first token ms": lambda a: _milliseconds(a.latency.first_token),
        "cold ms": lambda a: _milliseconds(a.latency.cold),
        "cold first token ms": lambda a: _milliseconds(a.latency.cold_first_token),
    }
    ranked = _ranked(arms)
    filled = {title: texts for title, text in kinds.items() if any(texts := [text(a) for a in ranked])}
    if not filled:
        return []
    return ["", *columns([("arm", *filled), *zip([a.name for a in ranked], *filled.values(), strict=True)])]


def _secondary(measure: str, arm: Arm) -> str:
    return f"{arm.secondary[measure]:.3f}" if measure in arm.secondary else ""


def _milliseconds(median: Estimate | None) -> str:
    return "" if median is None else f"{median.mean:.0f}"


def passage_lines(arms: Sequence[Arm]) -> list[str]:
    """Return how good the passages shown are, and what each arm scores where they held the gold ones and where not."""
    found = dict[str, None]()
    for a in arms:
        if (r := a.ranking) is not None and not a.knowledge.endswith("none"):
            how = f"passages, {a.knowledge}" + (f" by {a.retrieval}" if a.retrieval else "")
            # Only a ranking has an order worth judging: gold and noisy passages come in one of their own.
            ranked = a.knowledge.endswith("retrieved")
            order = f", MRR {r.mrr:.3f}, nDCG {r.ndcg:.3f}" if ranked else ""
            found[f"{how}: recall {r.recall:.3f}{order}, {r.with_gold} questions"] = None
    lines = [line for text in found for line in wrapped(text, "")]
    split = [(a.name, _estimate(a.hit), _estimate(a.miss)) for a in _ranked(arms) if a.hit and a.miss]
    if split:
        lines += ["", *columns([("arm", "where all gold passages were found", "where not"), *split])]
    return ["", *lines] if lines else []


def human_words(h: HumanCheck) -> str:
    """Return what people say of a judged score."""
    agree = ", ".join(f"{name} {k:.2f}" if k == k else f"{name} -" for name, k in h.kappa.items())
    return f"corrected by {h.n} human ratings {_estimate(h.corrected)}; agreement of judge and people (kappa) {agree}"


def _estimate(e: Estimate) -> str:
    """Return a score with its interval and n."""
    return f"{e.mean:.3f} [{e.low:.3f}, {e.high:.3f}] (n {e.n})" if e.n else "- (n 0)"


def verdict_lines(v: Verdict) -> list[str]:
    """Return the verdict as a person reads it."""
    lines = [f"use {v.choose}" if v.choose else "no verdict", *wrapped(v.because), f"  confidence: {v.confidence}"]
    if v.ties:
        lines += wrapped(f"as good, as far as this test can tell: {', '.join(v.ties)}")
    if v.break_even is not None:
        lines += wrapped(break_even_line(v.break_even))
    if v.flips:
        lines += ["  what would change this:", *(line for f in v.flips for line in wrapped(f, "  - "))]
    return lines


def wrapped(text: str, lead: str = "  ") -> list[str]:
    """Return a sentence as lines that fit the width."""
    return textwrap.wrap(text, WIDTH, initial_indent=lead, subsequent_indent=" " * len(lead), break_on_hyphens=False)


def price_lines(arms: Sequence[Arm]) -> list[str]:
    """Return which table, of which date, the prices of API models come from."""
    sources = dict.fromkeys(a.price_source for a in arms if a.price_source)
    return [line for source in sources for line in wrapped(f"prices: {source}", "")]


def break_even_line(b: BreakEven) -> str:
    """Return where the arm that is cheaper to run has paid back what it cost to start."""
    if b.value is None:
        return f"break-even: never, {b.run} does not get cheaper than {b.start}"
    low = "0" if b.low is None else f"{b.low:,.0f}"
    high = "never" if b.high is None else f"{b.high:,.0f}"
    return f"break-even of {b.run} over {b.start}: {b.value:,.0f} requests ({low} to {high})"


def render(comparison: Comparison) -> str:
    """Return the whole comparison as plain text."""
    lines = [f"experiment {comparison.experiment}", *([str(comparison.partial)] if comparison.partial else [])]
    for v in comparison.verdicts:
        arms = [a for a in comparison.arms if a.task == v.task]
        lines += ["", f"{v.task}   split {comparison.split_sha256[v.task][:12]}, {arms[0].score.n} test examples", ""]
        lines += arms_table(arms)
        lines += details_table(arms)
        lines += passage_lines(arms)
        lines += price_lines(arms)
        if (learning := comparison.learning.get(v.task)) is not None:
            lines += ["", *(x for said in learning_sentences(learning) for x in wrapped(said, ""))]
            lines += [x for warning in learning.warnings for x in wrapped(warning, "! ")]
        lines += [x for a in arms if a.human for x in wrapped(f"{a.name}: {human_words(a.human)}", "")]
        doubts = [x for a in arms for w in (*a.integrity, *a.warnings) for x in wrapped(f"{a.name}: {w}", "! ")]
        doubts += [x for caution in comparison.cautions.get(v.task, ()) for x in wrapped(caution, "? ")]
        lines += ["", *doubts] if doubts else []
        lines += ["", *verdict_lines(v)]
        planned = [c for c in comparison.contrasts if c.task == v.task and v.choose in (c.a, c.b)]
        if v.choose and planned:
            lines += ["", *contrast_table(v.choose, planned)]
    if comparison.failures:
        lines += ["", *(x for failure in comparison.failures for x in wrapped(failure, "! "))]
    return "\n".join(lines) + "\n"


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 6)


def arm_json(arm: Arm) -> dict[str, Any]:
    """Return one arm as `run --json` gives it; seeds are pooled, their cells and runs listed."""
    ms = arm.latency
    return {
        "cell": arm.cells[0],
        "cells": list(arm.cells),
        "name": arm.name,
        "task": arm.task,
        "model": arm.model,
        "method": arm.method,
        "train_size": arm.train_size,
        "knowledge": arm.knowledge,
        "seed": arm.seeds[0],
        "seeds": list(arm.seeds),
        "score": {
            "mean": _finite(arm.score.mean),
            "low": _finite(arm.score.low),
            "high": _finite(arm.score.high),
            "n": arm.score.n,
            "failed": arm.failed,
        },
        "latency_ms": {
            "p50": _finite(ms.p50.mean),
            "p95": _finite(ms.p95.mean),
            "p99": _finite(ms.p99.mean),
            "n": ms.n,
            "concurrency": ms.concurrency,
            "first_token_p50": _mean_of(ms.first_token),
            "cold_p50": _mean_of(ms.cold),
            "cold_first_token_p50": _mean_of(ms.cold_first_token),
        },
        "tokens": {"prompt": arm.tokens.prompt, "cached": arm.tokens.cached, "completion": arm.tokens.completion},
        "cost_usd": {
            "fit": _finite(arm.cost.fit),
            "per_1k_requests": _finite(arm.cost.per_1k_requests),
            "paid": _finite(arm.cost.paid),
            "per_1k_correct": _finite(arm.cost.per_1k_correct(arm.score.mean)),
            "judge": _finite(arm.cost.judge),
            "hosting_per_month": _finite(arm.cost.hosting_per_month),
        },
        "retrieval": arm.retrieval,
        "retrieval_recall": None if arm.ranking is None else arm.ranking.recall,
        "secondary": {name: _finite(value) for name, value in arm.secondary.items()},
        "labels": {y: asdict(x) | {"score": _finite(x.score)} for y, x in arm.labels.items()},
        "retrieval_quality": None if arm.ranking is None else asdict(arm.ranking),
        "retrieval_ms": _finite(arm.retrieval_ms),
        "price_source": arm.price_source,
        "score_hit": _score_json(arm.hit),
        "score_miss": _score_json(arm.miss),
        "human": None
        if arm.human is None
        else {
            "n": arm.human.n,
            "corrected": _score_json(arm.human.corrected),
            "kappa": {name: _finite(k) for name, k in arm.human.kappa.items()},
        },
        "dropped": None if arm.dropped is None else {"after": arm.dropped[0], "of": arm.dropped[1]},
        "warnings": list(arm.warnings),
        "integrity": list(arm.integrity),
        "mlflow_run_id": arm.mlflow_run_ids[0],
        "mlflow_run_ids": list(arm.mlflow_run_ids),
    }


def _mean_of(estimate: Estimate | None) -> float | None:
    return None if estimate is None else _finite(estimate.mean)


def _score_json(e: Estimate | None) -> dict[str, Any] | None:
    return None if e is None else {"mean": _finite(e.mean), "low": _finite(e.low), "high": _finite(e.high), "n": e.n}


def to_json(comparison: Comparison) -> dict[str, Any]:
    """Return the comparison as the interface's `run --json`, schema version 1."""
    return {
        "schema_version": SCHEMA_VERSION,
        "methodology_version": METHODOLOGY_VERSION,
        "experiment": comparison.experiment,
        "partial": None if comparison.partial is None else asdict(comparison.partial),
        "split_sha256": dict(comparison.split_sha256),
        "arms": [arm_json(a) for a in comparison.arms],
        "contrasts": [
            {
                "task": c.task,
                "a": c.a,
                "b": c.b,
                "delta": _finite(c.difference.delta),
                "low": _finite(c.difference.low),
                "high": _finite(c.difference.high),
                "p": _finite(c.difference.p),
                "p_holm": _finite(c.p_holm),
                "detectable": _finite(c.difference.detectable),
                "verdict": c.verdict,
            }
            for c in comparison.contrasts
        ],
        "learning": {task: asdict(found) for task, found in comparison.learning.items()},
        "failures": list(comparison.failures),
        "cautions": {task: list(sentences) for task, sentences in comparison.cautions.items()},
        "verdict": [
            {
                "task": v.task,
                "choose": v.choose,
                "because": v.because,
                "confidence": v.confidence,
                "ties": list(v.ties),
                "flips": list(v.flips),
                "break_even_requests": None
                if v.break_even is None
                else {
                    "value": _finite(v.break_even.value),
                    "low": _finite(v.break_even.low),
                    "high": _finite(v.break_even.high),
                },
            }
            for v in comparison.verdicts
        ],
    }
