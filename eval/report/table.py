"""Print a comparison as plain text: tables of arms and contrasts, doubts, and the verdict of each task."""

import math
from collections.abc import Callable, Sequence
from functools import partial

from crossover.eval.analysis.arm import Arm, best_first
from crossover.eval.analysis.break_even import BreakEven
from crossover.eval.analysis.compare import Comparison
from crossover.eval.analysis.contrast import Contrast
from crossover.eval.analysis.human import HumanCheck
from crossover.eval.analysis.labels import rare_and_frequent
from crossover.eval.analysis.learning_words import learning_sentences
from crossover.eval.analysis.stats import Estimate
from crossover.eval.analysis.verdict import Verdict
from crossover.eval.report.text import columns, money, p95_words, p_value, wrapped

HEADER = ("arm", "score", "95 % interval", "n", "failed", "p50 ms", "p95 ms", "fit $", "$ per 1k", "tokens")


def arms_table(arms: Sequence[Arm]) -> list[str]:
    """Return the lines of the table of arms, best score first."""
    return columns([HEADER, *map(_arm_cells, best_first(arms))])


def _arm_cells(arm: Arm) -> tuple[str, ...]:
    """Return the cells of one line of the table of arms."""
    s, ms, tokens = arm.score, arm.latency, arm.tokens
    scored, answered = s.n > 0, max(arm.charged / len(arm.seeds), 1)
    return (
        marked_name(arm),
        f"{s.mean:.3f}" if scored else "-",
        f"{s.low:.3f} - {s.high:.3f}" if scored else "-",
        str(s.n),
        str(arm.failed),
        f"{ms.p50.mean:.0f}" if ms.n else "-",
        p95_words(ms) or "-",
        money(arm.cost.fit),
        money(arm.cost.per_1k_requests),
        "~" * arm.tokens_estimated + str(round(tokens.tokens / answered)),
    )


def marked_name(arm: Arm) -> str:
    """Return the arm's name, with a mark where it broke a rule or left a race."""
    return arm.name + (" !" if arm.integrity else "") + (" (dropped)" if arm.dropped else "")


def contrast_table(chosen: str, contrasts: Sequence[Contrast]) -> list[str]:
    """Return the lines of the table of contrasts, each as the chosen arm minus another."""
    lines = [(f"{chosen} against", "difference", "95 % interval", "p (Holm)", "finding", "detectable")]
    for c in (c if c.a == chosen else c.reversed() for c in contrasts):
        d = c.difference
        interval = f"{d.low:+.3f} to {d.high:+.3f}"
        lines.append((c.b, f"{d.delta:+.3f}", interval, p_value(c.p_holm), c.finding, f"{c.detectable:.3f}"))
    return columns(lines)


def details_table(arms: Sequence[Arm]) -> list[str]:
    """Return the lines of a second table: scores on val, unparsed answers, other metrics, labels, first tokens."""
    halves = {a.name: rare_and_frequent(a.labels) for a in arms}
    texts: dict[str, Callable[[Arm], str]] = {
        "val": lambda a: "" if a.val is None else f"{a.val:.3f}",
        "unparsed": lambda a: str(a.unparsed) if any(b.unparsed for b in arms) else "",
        **{m: partial(_secondary, m) for m in sorted({m for a in arms for m in a.secondary})},
        **{f: partial(_field, f) for f in dict.fromkeys(f for a in arms for f in a.fields)},
        "rare labels": lambda a: f"{h[0]:.3f}" if (h := halves[a.name]) else "",
        "other labels": lambda a: f"{h[1]:.3f}" if (h := halves[a.name]) else "",
        "first token ms": lambda a: _milliseconds(a.latency.first_token),
        "cold ms": lambda a: _milliseconds(a.latency.cold),
        "$ per 1k alone": lambda a: "" if a.cost.per_1k_alone is None else money(a.cost.per_1k_alone),
        "cold first token ms": lambda a: _milliseconds(a.latency.cold_first_token),
    }
    ranked = best_first(arms)
    filled = {title: cells for title, text in texts.items() if any(cells := [text(a) for a in ranked])}
    if not filled:
        return []
    return ["", *columns([("arm", *filled), *zip([a.name for a in ranked], *filled.values(), strict=True)])]


def _secondary(metric: str, arm: Arm) -> str:
    return f"{arm.secondary[metric]:.3f}" if metric in arm.secondary else ""


def _field(name: str, arm: Arm) -> str:
    return f"{arm.fields[name].mean:.3f}" if name in arm.fields else ""


def _milliseconds(median: Estimate | None) -> str:
    return "" if median is None else f"{median.mean:.0f}"


def passage_sentences(arms: Sequence[Arm]) -> list[str]:
    """Return the quality of the passages that the arms read, one sentence for each way to find them."""
    sentences = dict[str, None]()
    for a in arms:
        if (r := a.ranking) is not None and not a.knowledge.endswith("none"):
            how = f"passages, {a.knowledge}" + (f" by {a.retrieval}" if a.retrieval else "")
            # Gold and noisy passages come in a fixed order, which says nothing about a ranking.
            order = f", MRR {r.mrr:.3f}, nDCG {r.ndcg:.3f}" if a.knowledge.endswith("retrieved") else ""
            sentences[f"{how}: recall {r.recall:.3f}{order}, {r.with_gold} questions"] = None
    return list(sentences)


def passage_lines(arms: Sequence[Arm]) -> list[str]:
    """Return the quality of the passages, and the score of each arm with and without all gold passages."""
    lines = [line for sentence in passage_sentences(arms) for line in wrapped(sentence, "")]
    split = [(a.name, _estimate(a.hit), _estimate(a.miss)) for a in best_first(arms) if a.hit and a.miss]
    if split:
        lines += ["", *columns([("arm", "all gold passages found", "some missed"), *split])]
    return ["", *lines] if lines else []


def human_words(h: HumanCheck) -> str:
    """Return the score of a judged arm as corrected by human ratings, and how well judge and people agree."""
    agree = ", ".join(f"{name} -" if math.isnan(k) else f"{name} {k:.2f}" for name, k in h.kappa.items())
    return f"corrected by {h.n} human ratings {_estimate(h.corrected)}; agreement of judge and people (kappa) {agree}"


def _estimate(e: Estimate) -> str:
    """Return a score with its interval and n."""
    return f"{e.mean:.3f} [{e.low:.3f}, {e.high:.3f}] (n {e.n})" if e.n else "- (n 0)"


def verdict_lines(v: Verdict) -> list[str]:
    """Return the verdict with its reason, ties, break-even and what would change it."""
    lines = [f"use {v.choose}" if v.choose else "no verdict", *wrapped(v.because), f"  confidence: {v.confidence}"]
    if v.ties:
        lines += wrapped(f"as good, as far as this test can tell: {', '.join(v.ties)}")
    if v.break_even is not None:
        lines += wrapped(break_even_line(v.break_even))
    if v.flips:
        lines += ["  what would change this:", *(line for f in v.flips for line in wrapped(f, "  - "))]
    return lines


def price_lines(arms: Sequence[Arm]) -> list[str]:
    """Return for which use the prices of serving hold, and the table and date that those of API models come from."""
    sources = dict.fromkeys(f"prices: {a.price_source}" for a in arms if a.price_source)
    bases = dict.fromkeys(f"$ per 1k: {a.cost.basis}" for a in arms if a.cost.per_1k_requests is not None)
    return [line for sentence in (*sources, *bases) for line in wrapped(sentence, "")]


def break_even_line(b: BreakEven) -> str:
    """Return as a sentence after how many requests the arm that costs more to start has paid for itself."""
    if b.value is None and b.low is None:
        return f"break-even: never, {b.run} does not get cheaper than {b.start}"
    value = "never, as measured" if b.value is None else f"{b.value:,.0f} requests"
    low = "0" if b.low is None else f"{b.low:,.0f}"
    high = "never" if b.high is None else f"{b.high:,.0f}"
    # Equal ends know of no spread, and are no interval.
    interval = "" if low == high or b.low is None else f" ({low} to {high})"
    return f"break-even of {b.run} over {b.start}: {value}{interval}"


def render(comparison: Comparison) -> str:
    """Return the whole comparison as plain text."""
    lines = [f"experiment {comparison.experiment}", *([str(comparison.partial)] if comparison.partial else [])]
    for v in comparison.verdicts:
        lines += _task_lines(comparison, v)
    if comparison.failures:
        lines += ["", *(x for failure in comparison.failures for x in wrapped(failure, "! "))]
    return "\n".join(lines) + "\n"


def format_choices(arms: Sequence[Arm]) -> list[str]:
    """Return a sentence for each model whose prompt format was chosen on val."""
    choices = {(a.model, f"prompt format {a.prompt_format}: {a.format_choice}") for a in arms if a.format_choice}
    return sorted(text if len(choices) == 1 else f"{model}, {text}" for model, text in choices)


def _task_lines(comparison: Comparison, v: Verdict) -> list[str]:
    """Return the lines of one task: its tables, doubts and verdict."""
    arms = [a for a in comparison.arms if a.task == v.task]
    lines = [
        "",
        f"{v.task}   split {comparison.split_sha256[v.task][:12]}, {max(a.score.n for a in arms)} test examples",
    ]
    lines += [x for choice in format_choices(arms) for x in wrapped(choice, "")]
    lines += ["", *arms_table(arms), *details_table(arms), *passage_lines(arms), *price_lines(arms)]
    if (learning := comparison.learning.get(v.task)) is not None:
        lines += ["", *(x for sentence in learning_sentences(learning) for x in wrapped(sentence, ""))]
        lines += [x for warning in learning.warnings for x in wrapped(warning, "! ")]
    lines += [x for a in arms if a.human for x in wrapped(f"{a.name}: {human_words(a.human)}", "")]
    doubts = [x for a in arms for w in (*a.integrity, *a.warnings) for x in wrapped(f"{a.name}: {w}", "! ")]
    doubts += [x for caution in comparison.cautions.get(v.task, ()) for x in wrapped(caution, "? ")]
    lines += ["", *doubts] if doubts else []
    lines += ["", *verdict_lines(v)]
    planned = [c for c in comparison.contrasts if c.task == v.task and v.choose in (c.a, c.b)]
    return lines + (["", *contrast_table(v.choose, planned)] if v.choose and planned else [])
